"""Which classes a client of PPIDSG trained on, read from what its round made of the shared generator.

The server rehearses: it plays clients itself, with public pictures of known class mixes, from the very generator that
it sent, and learns by ridge regression how a mix shows. What it reads does not depend on the key: for each class of
public pictures, how the client's generator treats them compared with the other classes. A generator that saw much of a
class sets it apart and moves it more, whatever the scrambled pictures look like and wherever the secret head pushes.
One regression serves all classes, so that every rehearsal is as many examples as there are classes. The whole movement
of the weights, projected, was tried in its place: it depends on the key, and a few dozen rehearsals do not teach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from torch import Tensor

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.class_counts import SCORES, Counts, LabelScore, apportioned, label_score, prior_counts
from veilmark.audit.generator_attacks import generator_in
from veilmark.audit.label_inference import counted, counts_behind
from veilmark.audit.record import Record, ThreatModel, in_noise
from veilmark.federation.engine import side_by_side
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of, generator_of
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import PPIDSGClient, to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.local_training import steps_of
from veilmark.run.seeds import rng_for

LEARNED = 12
"""Rehearsals that the regression learns from, on each rung."""
HELD = 4
"""Rehearsals with other pictures that it is tried on."""
EASY_LEARNED, EASY_HELD = 24, 12
"""The same where a rehearsal is one step: of four an interval is as wide as what is gained."""
MOST_STEPS = 10
"""Steps of a rehearsed round, at most."""
MOST_PIXELS = 40_000
"""Pixels that a rehearsed round takes in, at most: 51 pictures of 28 px, 39 of 32 px."""
ASKED = 4
"""Public pictures of each class that a generator is asked about, at most."""
EVEN, SKEWED = 3.0, 0.1
"""Dirichlet concentrations between which mixes are drawn: from nearly all classes to one or two."""
_PENALTIES = np.logspace(-1, 4, 11)

Readings = NDArray[np.float64]
"""``(..., k, 4)``: what is read of each class."""


def reading(before: Tensor, after: Tensor, labels: Tensor, classes: int) -> Readings:
    """How a generator treats public pictures of each class, compared with the other classes.

    Of each class: the logarithm of how far its pictures moved on average, how far its mean is from the mean of all
    (as a share of all classes' distances, and as the logarithm of its growth), and the logarithm of how much its
    pictures differ.

    Args:
        before: ``(n, p)``: what the broadcast generator makes of the pictures.
        after: The same by the client's.
        labels: ``(n,)``. A class without a picture is taken to look like all of them.
        classes: Number of classes.

    Returns:
        ``(k, 4)``; the mean over classes is 0.
    """
    rows = [labels == label if bool((labels == label).any()) else labels >= 0 for label in range(classes)]
    apart = [torch.stack([made[row].mean(dim=0) for row in rows]) for made in (before, after)]
    distances = [(means - means.mean(dim=0)).square().sum(dim=1).clamp(min=1e-12) for means in apart]
    moves = torch.stack([(after[row] - before[row]).abs().mean() for row in rows])
    spread = torch.stack([after[row].std(dim=0, correction=0).mean() for row in rows])
    read = torch.stack(
        [
            moves.clamp(min=1e-12).log(),
            distances[1] / distances[1].sum(),
            (distances[1] / distances[0]).log(),
            spread.clamp(min=1e-6).log(),
        ],
        dim=1,
    ).double()
    return np.asarray((read - read.mean(dim=0)).numpy())


class MixRegression:
    """From readings to class counts: one ridge regression for all classes.

    Readings are taken relative to the rehearsals' mean of the same class, for classes are not equally easy; what is
    left means the same for each class. The penalty is found by cross-validation among rehearsals.

    Args:
        readings: ``(n, k, 4)`` of rehearsals, two at least.
        shares: ``(n, k)``: their class shares.
    """

    def __init__(self, readings: Readings, shares: NDArray[np.float64]) -> None:
        count, classes, kinds = readings.shape
        self._centre = readings.mean(axis=0)
        self._scale = np.maximum((readings - self._centre).std(axis=(0, 1)), 1e-12)
        rows = ((readings - self._centre) / self._scale).reshape(-1, kinds)
        wanted = (shares - 1 / classes).ravel()
        whole = np.repeat(np.arange(count), classes)
        folds = list(GroupKFold(min(4, count)).split(rows, wanted, whole))
        self._ridge = RidgeCV(_PENALTIES, fit_intercept=False, cv=folds).fit(rows, wanted)

    def counts(self, read: Readings, total: int) -> Counts:
        """Counts ``(k,)`` for one client.

        Args:
            read: ``(k, 4)``.
            total: How many pictures the client has.
        """
        shares = self._ridge.predict((read - self._centre) / self._scale) + 1 / len(read)
        return apportioned(torch.from_numpy(shares), total)


@dataclass(frozen=True)
class _Stage:
    """How clients are rehearsed: steps and pictures of each, whether all is known, and the least even mix's opposite.

    Attributes:
        steps: Steps of the round.
        batch: Pictures of a step.
        known: Whether every rehearsal has the same secrets, D, F and C.
        evenest: The largest concentration that mixes are drawn with.
        learned: Rehearsals that a regression learns from.
        held: Rehearsals that it is tried on.
    """

    steps: int
    batch: int
    known: bool
    evenest: float
    learned: int
    held: int


@dataclass(frozen=True, eq=False)
class _Played:
    """Rehearsed clients: readings ``(n, k, 4)``, counts ``(n, k)``, and readings of noise as large as the changes."""

    readings: Readings
    counts: Counts
    noise: Readings


class ClassMix(Attack):
    """How many pictures of each class a client of PPIDSG trained on, from the generator that it sent."""

    name = "class mix out of the generator"
    cost = 88.0
    threat_model = ThreatModel.server
    needs = "the changes of the generator; labelled public pictures; the public settings, to rehearse clients"
    question = "Does the server learn how many pictures of each class a client has, though only the generator travels?"

    def obstacle(self, record: Record) -> str | None:
        """A generator must travel."""
        options = record.method.options
        return None if isinstance(options, PPIDSGOptions) and options.share else "no generator travels"

    def findings(self, scene: Scene) -> list[Finding]:
        """One step with all known, a round with all known, a round with all but G guessed; then the run's messages."""
        record, training = scene.record, scene.record.config.training
        side, classes = record.task.side, len(record.task.classes)
        fewest = min(update.examples for update in record.rounds[0].updates.values())
        steps = min(MOST_STEPS, steps_of(fewest, training))
        batch = max(1, min(training.batch, MOST_PIXELS // (steps * side**2)))
        known, mixed = "; D, F, C and the key known", f"a round of {steps} steps of {batch} pictures"
        stages = {
            f"one step of {training.batch} pictures of few classes{known}": _Stage(
                1, training.batch, True, SKEWED, EASY_LEARNED, EASY_HELD
            ),
            f"{mixed}{known}": _Stage(steps, batch, True, EVEN, LEARNED, HELD),
            f"{mixed}; D, F, C and the key guessed": _Stage(steps, batch, False, EVEN, LEARNED, HELD),
        }
        asked, learned, held = _parts(scene)
        scores: dict[str, list[LabelScore]] = {}
        chances: dict[str, list[LabelScore]] = {}
        noise: dict[str, list[LabelScore]] = {}
        for number, (rung, stage) in enumerate(stages.items()):
            seen = _rehearsed(scene, stage, asked, learned, stage.learned, 2 * number)
            tried = _rehearsed(scene, stage, asked, held, stage.held, 2 * number + 1)
            regression = MixRegression(seen.readings, seen.counts / seen.counts.sum(axis=1, keepdims=True))
            scores[rung] = _scored(regression, tried.readings, tried.counts)
            noise[rung] = _scored(regression, tried.noise, tried.counts)
            chances[rung] = [label_score(prior_counts(int(counts.sum()), classes), counts) for counts in tried.counts]
        guessed = self.run(scene, scene.record, regression, asked)
        in_vain = self.run(scene, in_noise(record, scene.seed), regression, asked)
        have = {client: counts_behind(scene, record.rounds[0].number, client) for client in guessed}
        scores[REAL] = [label_score(counts, have[client]) for client, counts in guessed.items()]
        chances[REAL] = [label_score(prior_counts(int(have[client].sum()), classes), have[client]) for client in have]
        # Mixes of one rung are easier to guess than those of another: each has its own noise.
        noise[REAL] = [label_score(counts, have[client]) for client, counts in in_vain.items()]
        found: list[Finding] = []
        for metric in SCORES:
            easiest = _mean(metric, scores[next(iter(stages))])
            for rung, reached in scores.items():
                line = self._finding(scene, rung, metric, "%", _of(metric, reached), _of(metric, chances[rung]))
                found += with_controls([line], easiest, _mean(metric, noise[rung]))
        return found

    def run(self, scene: Scene, record: Record, regression: MixRegression, asked: Data) -> dict[int, Counts]:
        """Counts by client, of the first recorded round's messages.

        Args:
            scene: What the attacker has.
            record: The messages that are attacked: the scene's, or noise in their place.
            regression: Learned from rehearsals of that round with all but G guessed.
            asked: Public pictures that no rehearsal learned from.
        """
        first, classes, training = record.rounds[0], len(record.task.classes), record.config.training
        before = _made(scene, first.broadcast, asked)
        return {
            client: regression.counts(
                reading(before, _made(scene, update.tensors, asked), asked.targets, classes),
                counted(training, update.examples),
            )
            for client, update in first.updates.items()
        }


def _of(metric: str, scores: Sequence[LabelScore]) -> list[float]:
    return [float(SCORES[metric](score)) for score in scores]


def _mean(metric: str, scores: Sequence[LabelScore]) -> float:
    return float(np.mean(_of(metric, scores)))


def _scored(regression: MixRegression, readings: Readings, counts: Counts) -> list[LabelScore]:
    return [
        label_score(regression.counts(read, int(have.sum())), have) for read, have in zip(readings, counts, strict=True)
    ]


def _parts(scene: Scene) -> tuple[Data, Data, Data]:
    """Public pictures to ask generators about, to learn from and to be tried on: every class is in each, if it can."""
    public = scene.public
    mixed = rng_for(scene.seed, 60).permutation(len(public))
    order = mixed[np.argsort(public.targets.numpy()[mixed], kind="stable")]
    parts = [order[start::3] if len(order) > 2 else order for start in range(3)]
    labels = public.targets.numpy()[parts[0]]
    few = [parts[0][labels == label][:ASKED] for label in np.unique(labels)]
    return _taken(public, np.concatenate(few)), _taken(public, parts[1]), _taken(public, parts[2])


def _rehearsed(scene: Scene, stage: _Stage, asked: Data, pictures: Data, count: int, number: int) -> _Played:
    """Plays clients of the first recorded round.

    Args:
        scene: What the attacker has.
        stage: How.
        asked: What generators are asked about.
        pictures: What clients learn from.
        count: How many clients.
        number: Another number gives other draws.
    """
    record, classes = scene.record, len(scene.record.task.classes)
    first = record.rounds[0]
    before = _made(scene, first.broadcast, asked)
    mixes = np.geomspace(SKEWED, stage.evenest, count)
    # A client draws its networks, which no two may do at once.
    building = Lock()

    def played(client: int) -> tuple[Readings, Counts, Readings]:
        rng = rng_for(scene.seed, 61, number, client)
        rows = drawn(pictures.targets.numpy(), stage.steps * stage.batch, float(mixes[client]), rng)
        own = _taken(pictures, rows)
        # What is known is the same for all: one set of secrets and first weights.
        after = _trained(scene, stage, own, (0, 0) if stage.known else (number, client + 1), building)
        noisy = _noise(generator_of(first.broadcast), after, scene.seed + client)
        seen, blind = (reading(before, _made(scene, some, asked), asked.targets, classes) for some in (after, noisy))
        scene.advance()
        return seen, np.bincount(own.targets.numpy(), minlength=classes), blind

    every = [found for _, found in side_by_side(range(count), played, scene.device)]
    return _Played(*(np.stack(some) for some in zip(*every, strict=True)))


def drawn(labels: NDArray[np.int64], total: int, concentration: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of pictures by a mix from a Dirichlet distribution; a class with too few gives each of its own again."""
    there = np.unique(labels)
    counts = rng.multinomial(total, rng.dirichlet(np.full(len(there), concentration)))
    rows = [
        np.resize(rng.permutation(np.flatnonzero(labels == label)), many)
        for label, many in zip(there, counts, strict=True)
    ]
    return np.concatenate(rows)


def _trained(scene: Scene, stage: _Stage, own: Data, who: tuple[int, int], building: Lock) -> Tensors:
    """The generator that a client of the attacker's sends; another one has other secrets and first weights."""
    record, options, first = scene.record, scene.record.method.options, scene.record.rounds[0]
    assert isinstance(options, PPIDSGOptions)
    secret = Secret(rng_for(scene.seed, 62, *who).bytes(SECRET_BYTES))
    with building:
        client = PPIDSGClient(
            own.inputs,
            own.targets,
            len(record.task.classes),
            cipher_of(options, secret, secret),
            secret.derive(b"key"),
            options,
            training=record.config.training.model_copy(update={"local_steps": stage.steps, "batch": stage.batch}),
            rounds=record.config.rounds,
            head_widths=record.task.head_widths,
            seed=int(rng_for(scene.seed, 63, *who).integers(2**31)),
            names=list(own.names) if options.scope == "image" else None,
            device=scene.device,
        )
    client.train_round(generator_of(first.broadcast), first.number - 1)
    return {name: value.detach().cpu() for name, value in client.generator.state_dict().items()}


def _noise(before: Tensors, after: Tensors, seed: int) -> Tensors:
    """The broadcast generator, changed by noise as large as a client's change, tensor by tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + torch.randn(value.shape, generator=generator) * (after[name] - value).square().mean().sqrt()
        for name, value in before.items()
    }


def _made(scene: Scene, tensors: Tensors, asked: Data) -> Tensor:
    """``(n, p)``: what a generator makes of pictures."""
    generator = generator_in(scene.record, tensors, scene.device)
    # Not in inference mode: what G keeps for its convolutions would then be of no use to training.
    with torch.no_grad():
        made: Tensor = generator(to_unit(asked.inputs.to(scene.device)))
    return made.flatten(start_dim=1).cpu()


def _taken(data: Data, rows: NDArray[np.integer]) -> Data:
    index = torch.from_numpy(rows)
    return Data(data.inputs[index], data.targets[index], tuple(data.names[row] for row in rows))
