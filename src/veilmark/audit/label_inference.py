"""Which classes a client trained on, read from the gradient of its last layer: counts, not pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import REAL, Attack, Finding, Scene, by_client, control_where, rows_behind, with_controls
from veilmark.audit.class_counts import (
    SCORES,
    Counts,
    LabelScore,
    LastLayerSolver,
    apportioned,
    counts_from_bias,
    label_score,
    prior_counts,
)
from veilmark.audit.gradient_inversion import sgd_gradient
from veilmark.audit.own_step import OWN_STEP, is_plain, own_step
from veilmark.audit.record import Record, ThreatModel, in_noise, network_of
from veilmark.federation.tasks.classify import ClassifierNetwork
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit
from veilmark.run.local_training import Training, rate, sgd_weight, steps_of
from veilmark.run.seeds import rng_for


def counted(training: Training, examples: int) -> int:
    """How many pictures of a client a message says something of: all of them, or as many as its steps took in."""
    return min(examples, (training.local_steps or examples) * training.batch)


def counts_behind(scene: Scene, number: int, client: int) -> Counts:
    """The truth: the classes of the pictures in a client's steps, each as often as it was in one, of :func:`counted`.

    Args:
        scene: Its truth is read.
        number: Of the round, from 1.
        client: Who sent the message.
    """
    owner = scene.truth.owners[client]
    rows = torch.from_numpy(rows_behind(scene, number, client))
    seen = np.bincount(owner.targets[rows].numpy(), minlength=len(scene.record.task.classes))
    return apportioned(torch.from_numpy(seen), counted(scene.record.config.training, len(owner)))


REHEARSED = 5
"""Steps by which an attacker chooses how to read a network's last layer."""
_BIAS, _WEIGHT = "classifier.layers.5.bias", "classifier.layers.5.weight"
"""The last layer in the classifier that methods share."""


class LabelCounts(Attack):
    """How many pictures of each class a client trained on, from its update.

    By the gradient of the last layer's bias (:func:`counts_from_bias`) or, where that is better in a rehearsal on the
    network that was broadcast, by the whole layer's (:class:`LastLayerSolver`): a network that has learned something
    and many public pictures favour it.
    """

    name = "label counts"
    cost = 6.0
    threat_model = ThreatModel.server
    needs = "the change of the last layer; labelled public pictures"
    question = "Does the server learn how many pictures of each class a client has?"

    def obstacle(self, record: Record) -> str | None:
        """Without the last layer there is nothing to read."""
        return None if _BIAS in record.declared.tensors else "the last layer does not travel"

    def findings(self, scene: Scene) -> list[Finding]:
        """One step of at most 32 public pictures, by the method's own client too, and every recorded message."""
        record, rng = scene.record, rng_for(scene.seed, 31)
        classes, names = len(record.task.classes), _read(record)
        rehearsed: list[LabelScore] = []
        noise: list[LabelScore] = []
        owned: list[LabelScore] = []
        prior: list[LabelScore] = []
        plain = True
        # As many are left to ask the network about.
        size = _step(scene.public)
        readers = self.readers(record, scene.public, scene.device, scene.seed)
        best = readers[record.rounds[0].number].names
        for _ in range(10):
            rows = torch.from_numpy(rng.choice(len(scene.public), size=size, replace=False))
            network = network_of(record, record.rounds[0].broadcast, scene.device)
            seen = _step_of(network, record, scene.public, rows)
            blind = {
                name: record.method.sent_of(torch.from_numpy(rng.normal(0, float(some.std()), some.shape)).float())
                for name, some in seen.items()
            }
            sent = own_step(scene, rows.tolist())
            own = {name: sent[name] for name in names}
            reader = _Reader(network, scene.public, best, rows)
            truth = np.bincount(scene.public.targets[rows].numpy(), minlength=classes)
            for given, scores in ((seen, rehearsed), (blind, noise), (own, owned)):
                scores.append(label_score(reader.counts(given, size), truth))
            prior.append(label_score(prior_counts(size, classes), truth))
            # By the bias: which of many small weights a client prunes, rounding may decide.
            plain = plain and is_plain({_BIAS: own[_BIAS]}, seen)
            scene.advance()
        real, chance = self._right(scene, self.run(record, readers))
        in_vain, _ = self._right(scene, self.run(in_noise(record, scene.seed), readers))
        found: list[Finding] = []
        for metric, figure in SCORES.items():
            by_luck = [figure(score) for score in prior]
            lines = [
                self._finding(scene, f"one step of {size} pictures", metric, "%", list(map(figure, rehearsed)), by_luck)
            ]
            if not plain:
                lines.append(self._finding(scene, OWN_STEP, metric, "%", list(map(figure, owned)), by_luck))
            actual, of_nobody, vain = (
                by_client({message: figure(score) for message, score in scores.items()})
                for scores in (real, chance, in_vain)
            )
            lines.append(self._finding(scene, REAL, metric, "%", actual, of_nobody))
            lines = with_controls(lines, lines[0].value, float(np.mean(list(map(figure, noise)))))
            found += control_where(lines, REAL, float(np.mean(vain)))
        return found

    def _right(
        self, scene: Scene, guessed: dict[tuple[int, int], Counts]
    ) -> tuple[dict[tuple[int, int], LabelScore], dict[tuple[int, int], LabelScore]]:
        """By (round, client), how right guesses are; and those of somebody who saw nothing."""
        classes = len(scene.record.task.classes)
        wanted = {message: counts_behind(scene, *message) for message in guessed}
        right = {message: label_score(counts, wanted[message]) for message, counts in guessed.items()}
        chance = {
            message: label_score(prior_counts(int(have.sum()), classes), have) for message, have in wanted.items()
        }
        return right, chance

    def readers(
        self, record: Record, public: Data, device: torch.device | str = "cpu", seed: int = 0
    ) -> dict[int, _Reader]:
        """By round, what reads counts off the messages.

        Args:
            record: What the server saw.
            public: Labelled pictures that no client has.
            device: Where networks are asked about them.
            seed: Of the rehearsals by which a way to read is chosen.
        """
        networks = {some.number: network_of(record, some.broadcast, device) for some in record.rounds}
        return {
            number: _Reader(network, public, _better(network, record, public, seed))
            for number, network in networks.items()
        }

    def run(self, record: Record, readers: Mapping[int, _Reader]) -> dict[tuple[int, int], Counts]:
        """Counts by (round, client), of as many pictures as the message says something of.

        Args:
            record: What the server saw, or noise in place of its messages.
            readers: By round, see :meth:`readers`.
        """
        training, guessed, names = record.config.training, {}, _read(record)
        for recorded in record.rounds:
            reader = readers[recorded.number]
            share = rate(recorded.number - 1, record.config.rounds, training.decay_after)
            for client, update in recorded.updates.items():
                steps = steps_of(update.examples, training)
                scale = share * training.lr * sgd_weight(steps, training.momentum)
                before, after = ({name: some[name] for name in names} for some in (recorded.broadcast, update.tensors))
                seen = sgd_gradient(before, after, scale, training.weight_decay)
                guessed[recorded.number, client] = reader.counts(seen, counted(training, update.examples))
        return guessed


def _read(record: Record) -> list[str]:
    """What of the last layer is read; the bias travels."""
    return [name for name in (_BIAS, _WEIGHT) if name in record.declared.tensors]


def _step(public: Data) -> int:
    """Pictures of a rehearsed step: as many are left to ask the network about."""
    return max(1, min(32, len(public) // 2))


def _step_of(network: ClassifierNetwork, record: Record, public: Data, rows: Tensor) -> dict[str, Tensor]:
    """What the server has of the last layer's gradient after one step on public pictures, by name."""
    device = next(network.parameters()).device
    loss = cross_entropy(network(to_unit(public.inputs[rows].to(device))), public.targets[rows].to(device))
    names, weights = _read(record), dict(network.named_parameters())
    gradients = torch.autograd.grad(loss, [weights[name] for name in names])
    return {name: record.method.sent_of(some.cpu()) for name, some in zip(names, gradients, strict=True)}


def _better(network: ClassifierNetwork, record: Record, public: Data, seed: int) -> list[str]:
    """The tensors of the last layer that tell most in rehearsed steps: the bias, or both."""
    rng, size, ways = rng_for(seed, 95), _step(public), [[_BIAS], _read(record)]
    wrong = [0.0 for _ in ways]
    for _ in range(REHEARSED if len(ways[1]) > 1 else 0):
        rows = torch.from_numpy(rng.choice(len(public), size=size, replace=False))
        seen = _step_of(network, record, public, rows)
        truth = np.bincount(public.targets[rows].numpy(), minlength=len(record.task.classes))
        for place, names in enumerate(ways):
            wrong[place] += label_score(_Reader(network, public, names, rows).counts(seen, size), truth).l1
    # Of two that are as good the simpler one.
    return ways[int(np.argmin(wrong))]


class _Reader:
    """Reads counts off gradients of the last layer, by what a broadcast network does with labelled public pictures.

    Args:
        network: The broadcast network.
        public: The pictures.
        names: Of the tensors that are read.
        without: ``(n,)``: rows of pictures that are not asked about.
    """

    def __init__(
        self, network: ClassifierNetwork, public: Data, names: Sequence[str], without: Tensor | None = None
    ) -> None:
        self.names = list(names)
        keep = torch.ones(len(public), dtype=torch.bool)
        if without is not None:
            keep[without] = False
        inputs, labels = public.inputs[keep], public.targets[keep]
        last = network.classifier.layers[-1]
        entered = logits_of(nn.Sequential(network.extractor, network.classifier.layers[:-1]), inputs)
        with torch.inference_mode():
            said = last(entered.to(next(network.parameters()).device)).softmax(dim=1).cpu().clone()
        # A class of which there is no public picture is taken to look like all of them.
        rows = [said[labels == label] for label in range(said.shape[1])]
        self._by_class = torch.stack([(row if len(row) else said).mean(dim=0) for row in rows])
        self._solver = None
        if _WEIGHT in names:
            self._solver = LastLayerSolver(entered, said, labels)

    def counts(self, seen: Mapping[str, Tensor], total: int) -> Counts:
        """Counts of ``total`` pictures; ``seen``: gradients by name, of a mean over them."""
        if self._solver is None:
            return counts_from_bias(seen[_BIAS], self._by_class, total)
        return self._solver.counts(seen[_WEIGHT], seen[_BIAS], total)
