"""Which classes a client trained on, read from the gradient of its last layer: counts, not pictures.

With cross-entropy the gradient of the last layer's bias is, for each class, the mean probability that the network
gives it less the share of examples that have it. Whoever knows about what the network says reads the counts off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import REAL, Attack, Finding, Scene, by_client, control_where, with_controls
from veilmark.audit.gradient_inversion import sgd_gradient
from veilmark.audit.own_step import OWN_STEP, is_plain, own_step
from veilmark.audit.record import Record, ThreatModel, in_noise, network_of
from veilmark.federation.tasks.classify import ClassifierNetwork
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit
from veilmark.run.local_training import Training, batches, rate, sgd_weight
from veilmark.run.seeds import rng_for

Counts = NDArray[np.int64]


def apportioned(wanted: Tensor, total: int) -> Counts:
    """Whole counts nearest to real ones, not below 0, that add up to a total.

    Args:
        wanted: ``(k,)`` real counts.
        total: How many examples there are.
    """
    values = wanted.double().clamp(min=0).numpy()
    values = np.full(len(values), total / len(values)) if values.sum() <= 0 else values * total / values.sum()
    counts: Counts = np.floor(values).astype(np.int64)
    # Largest remainders first; ties by class.
    counts[np.argsort(-(values - counts), kind="stable")[: total - int(counts.sum())]] += 1
    return counts


def sign_rule(weights: Tensor, total: int) -> Counts:
    """Presence by sign (iDLG; Zhao et al. 2020): a class with a negative gradient is there. A baseline.

    It counts nothing: the examples are shared out evenly among the classes that it finds. Right for activations that
    are not negative, and for one example exactly.

    Args:
        weights: ``(k, d)``: the gradient of the last layer's weights, of a mean over examples.
        total: How many examples there are.
    """
    there = weights.sum(dim=1) < 0
    return apportioned(there.double() if bool(there.any()) else torch.ones(len(weights)), total)


def llg(weights: Tensor, total: int) -> Counts:
    """LLG (Wainakh et al. 2022, arXiv 2105.09369), from the gradient alone. A baseline.

    Classes with a negative sum are there; each example is worth the same, the *impact*, and labels are taken from the
    most negative class one by one. Right for activations that are not negative, early in training.

    Args:
        weights: ``(k, d)``: the gradient of the last layer's weights, of a mean over examples.
        total: How many examples there are.
    """
    sums = weights.double().sum(dim=1).numpy().copy()
    impact = sums[sums < 0].sum() / total * (1 + 1 / len(sums))
    counts = np.zeros(len(sums), dtype=np.int64)
    for label in np.flatnonzero(sums < 0)[:total]:
        counts[label] += 1
        sums[label] -= impact
    while counts.sum() < total:
        label = int(sums.argmin())
        counts[label] += 1
        sums[label] -= impact
    return counts


def counts_from_bias(bias: Tensor, probabilities: Tensor, total: int) -> Counts:
    """Counts from the gradient of the last layer's bias: the enhanced attack, whatever the activation.

    ``gradient = p - share``, where ``p`` is what the network says on average. The attacker asks the broadcast network
    about labelled pictures of its own: ``p`` is the shares' mix of what it says of each class, so that shares are the
    solution of ``(P^T - 1) share = gradient`` that sums to 1.

    Args:
        bias: ``(k,)``: the gradient, of a mean over examples.
        probabilities: ``(k, k)``: mean class probabilities of each class of public pictures, a row a class; or
            ``(k,)``, of all alike.
        total: How many examples there are.
    """
    classes = len(bias)
    said = probabilities.double().expand(classes, classes) if probabilities.ndim == 1 else probabilities.double()
    # Without the sum the system does not tell how many there are in all.
    system = torch.cat([said.T - torch.eye(classes), torch.ones(1, classes)]).double()
    wanted = torch.cat([bias.double(), torch.ones(1, dtype=torch.float64)])
    return apportioned(total * torch.linalg.lstsq(system, wanted[:, None]).solution[:, 0], total)


def counts_from_weights(weights: Tensor, activations: Tensor, probabilities: Tensor, total: int) -> Counts:
    """Counts from the gradient of the last layer's weights, for a layer whose bias is not shared.

    Row ``k`` is about ``(p_k - share_k)`` times the mean activation: its projection on that gives the share.

    Args:
        weights: ``(k, d)``: the gradient, of a mean over examples.
        activations: ``(d,)``: mean of what enters the last layer, estimated like the probabilities.
        probabilities: ``(k,)``: mean class probabilities.
        total: How many examples there are.
    """
    projected = weights.double() @ activations.double() / activations.double().square().sum()
    return apportioned(total * (probabilities - projected), total)


class LastLayerSolver:
    """Counts from the gradient of the whole last layer, for networks that have learned something.

    Each example adds ``(p - one_hot(label)) x (1, h)`` to it, ``h`` being what enters the layer. Labelled public
    pictures tell the mean and the spread of that by class, so that shares are those of a linear model with known
    noise. How uneven shares may be is not known: the gradient itself weighs degrees of it, from a batch drawn at
    random to a batch of one class. Where it tells nothing, the answer is even counts.

    Of the weights' gradient only the part along the axes that tell public classes apart is used: for all of it there
    are never enough public pictures.

    Args:
        entered: ``(n, d)``: what enters the last layer for public pictures, from the network that was broadcast.
        said: ``(n, k)``: its class probabilities.
        labels: ``(n,)`` int64.
    """

    _RIDGE = 1.0
    """How much of each variance is added to it: covariances of few pictures are not to be trusted."""
    _HEAVY = 3.0
    """Degrees of freedom of the noise: once learned, a few hard pictures make nearly all of the gradient."""
    _DEGREES = 7
    _BORROWED = 10.0
    """Pictures that a class' covariance borrows from those of all classes."""

    def __init__(self, entered: Tensor, said: Tensor, labels: Tensor) -> None:
        entered, said = entered.double(), said.double()
        classes = said.shape[1]
        self.middle = entered.mean(dim=0)
        self.axes = _telling_axes(entered - self.middle, labels)
        along = torch.cat([torch.ones(len(entered), 1), (entered - self.middle) @ self.axes], dim=1)
        means, spreads, sizes = [], [], []
        for label in range(classes):
            # A class of which there is no public picture is taken to look like all of them.
            rows = labels == label if bool((labels == label).any()) else torch.ones(len(labels), dtype=torch.bool)
            slopes = said[rows] - torch.eye(classes).double()[label]
            added = (slopes[:, :, None] * along[rows][:, None]).flatten(1)
            means.append(added.mean(dim=0))
            spreads.append((added - means[-1]).T @ (added - means[-1]))
            sizes.append(len(added))
        self.means, self.sizes = torch.stack(means), torch.tensor(sizes).double()
        spread = torch.stack(spreads)
        whole = spread.sum(dim=0) / self.sizes.sum()
        self.spreads = (spread + self._BORROWED * whole) / (self.sizes + self._BORROWED)[:, None, None]

    def counts(self, weights: Tensor, bias: Tensor, total: int) -> Counts:
        """Counts of one batch.

        Args:
            weights: ``(k, d)``: the gradient, of a mean over examples.
            bias: ``(k,)``: the gradient.
            total: How many examples there are.
        """
        slopes, classes = bias.double()[:, None], len(bias)
        seen = torch.cat([slopes, (weights.double() - slopes * self.middle) @ self.axes], dim=1).flatten()
        even = torch.full((classes,), 1 / classes, dtype=torch.float64)
        share = even
        # The noise depends on the shares: once more when they are known roughly.
        for _ in range(2):
            share = self._shares(seen - even @ self.means, self._noise(share, total), even, total)
        return apportioned(total * share, total)

    def _noise(self, share: Tensor, total: int) -> Tensor:
        """Covariance of what is seen given shares: a batch is a sample, and so are the public pictures."""
        parts = share.clamp(min=1e-3)
        noise = torch.einsum("c,cij->ij", parts / total + parts.square() / self.sizes, self.spreads)
        # Gradients of the bias add up to nothing: without the second term there is no inverse.
        floor = 1e-9 * float(noise.trace()) / len(noise) + 1e-16
        return noise + self._RIDGE * noise.diagonal().diag() + floor * torch.eye(len(noise))

    def _shares(self, apart: Tensor, noise: Tensor, even: Tensor, total: int) -> Tensor:
        """Expected shares ``(k,)``, over degrees of unevenness by how well each explains what is seen."""
        classes = len(even)
        scatter = (torch.eye(classes).double() - 1 / classes) / classes
        found, evidence = [], []
        # Of n examples drawn at random shares vary by 1 / n of this scatter; of one class alone by all of it.
        for degree in np.geomspace(1 / total, 1, self._DEGREES):
            spread = float(degree) * scatter
            factor = torch.linalg.cholesky(self.means.T @ spread @ self.means + noise)
            solved = torch.cholesky_solve(apart[:, None], factor)[:, 0]
            found.append(even + spread @ self.means @ solved)
            far = torch.log1p(apart @ solved / self._HEAVY) * (self._HEAVY + len(apart)) / 2
            evidence.append(-far - factor.diagonal().log().sum())
        shares = torch.stack(evidence).softmax(dim=0) @ torch.stack(found)
        return shares.clamp(min=0) / shares.clamp(min=0).sum()


def _telling_axes(entered: Tensor, labels: Tensor) -> Tensor:
    """Axes ``(d, c - 1)`` along which means of ``c`` classes differ, against the spread in them (Fisher 1936)."""
    there = torch.from_numpy(np.unique(labels.numpy()))
    means = torch.stack([entered[labels == label].mean(dim=0) for label in there])
    inner = entered - means[torch.searchsorted(there, labels)]
    spread = inner.T @ inner / len(entered)
    spread += (0.01 * spread.trace() / len(spread) + 1e-12) * torch.eye(len(spread))
    factor = torch.linalg.cholesky(spread)
    white = torch.linalg.solve_triangular(factor, (means - means.mean(dim=0)).T, upper=False)
    turned = torch.linalg.svd(white, full_matrices=False).U[:, : len(there) - 1]
    axes: Tensor = torch.linalg.solve_triangular(factor.T, turned, upper=True)
    return axes


@dataclass(frozen=True)
class LabelScore:
    """How right guessed counts are.

    Attributes:
        exact: Share of classes whose count is right, in percent.
        presence: Share of classes of which it is right whether they are there, in percent.
        l1: Share of examples that are counted in a wrong class, in percent: half the L1 distance.
    """

    exact: float
    presence: float
    l1: float


def label_score(guess: Counts, truth: Counts) -> LabelScore:
    """Scores counts ``(k,)`` of one batch.

    Raises:
        ValueError: If shapes differ.
    """
    if guess.shape != truth.shape:
        raise ValueError(f"{guess.shape} classes guessed, {truth.shape} are there")
    return LabelScore(
        100 * float((guess == truth).mean()),
        100 * float(((guess > 0) == (truth > 0)).mean()),
        50 * float(np.abs(guess - truth).sum() / truth.sum()),
    )


def prior_counts(total: int, classes: int) -> Counts:
    """The guess of somebody who saw nothing: all classes alike."""
    return apportioned(torch.ones(classes), total)


SCORES: dict[str, Callable[[LabelScore], float]] = {
    "pictures counted in the right class": lambda score: 100 - score.l1,
    "classes known to be there or not": lambda score: score.presence,
    "classes counted exactly": lambda score: score.exact,
}
"""What attacks on counts report, in percent; the first is what they are judged by."""


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
    config, owner = scene.record.config, scene.truth.owners[client]
    rows = torch.cat(batches(len(owner), config.training, config.seed, client, number - 1))
    seen = np.bincount(owner.targets[rows].numpy(), minlength=len(scene.record.task.classes))
    return apportioned(torch.from_numpy(seen), counted(config.training, len(owner)))


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
                steps = training.local_steps or training.epochs * -(-update.examples // training.batch)
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
