"""Which classes a client has, read from the accuracies that it sends for the table of rounds.

Where networks stay with the clients, each says of the public test set how much of every class its own network gets
right, and a network knows what it has learned. The server rehearses: it plays a federation of the run's method with
clients of known class mixes, and learns how large a class is of which so much is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.class_counts import SCORES, Counts, LabelScore, apportioned, label_score, prior_counts
from veilmark.audit.class_mix import SKEWED, drawn
from veilmark.audit.record import Record, ThreatModel
from veilmark.audit.shadows import federation_of, taken
from veilmark.federation.tasks.classify import accuracy_of_classes
from veilmark.run.seeds import rng_for

REHEARSED = 6
"""Clients of the federation that sizes are learned from; each is also read by what the others taught."""
_MOST = 1.0
"""The largest Dirichlet concentration of their mixes; the smallest one leaves them one or two classes."""
_FEDERATION = 200
"""Its number: other attacks' federations have others."""


class SizeOfClass:
    """From accuracies of classes to class counts: the more of a class is right, the larger it is, and no more is taken.

    Args:
        accuracies: ``(n, k)`` percent, of rehearsed clients.
        shares: ``(n, k)``: their class shares.
    """

    def __init__(self, accuracies: NDArray[np.float64], shares: NDArray[np.float64]) -> None:
        self._rising = IsotonicRegression(y_min=0, increasing=True, out_of_bounds="clip")
        self._rising.fit(accuracies.ravel(), shares.ravel())

    def counts(self, accuracies: NDArray[np.float64], total: int) -> Counts:
        """Counts ``(k,)`` for one client.

        Args:
            accuracies: ``(k,)`` percent.
            total: How many pictures the client has.
        """
        shares = torch.from_numpy(self._rising.predict(accuracies))
        return apportioned(shares / shares.sum() if bool(shares.any()) else torch.ones(len(shares)), total)


@dataclass(frozen=True, eq=False)
class _Said:
    """What clients say whose mixes are known: accuracies ``(n, k)`` in percent, and counts ``(n, k)``."""

    accuracies: NDArray[np.float64]
    counts: Counts

    @property
    def shares(self) -> NDArray[np.float64]:
        """``(n, k)``: the clients' class shares."""
        shares: NDArray[np.float64] = self.counts / self.counts.sum(axis=1, keepdims=True)
        return shares


class ClassMixOfScores(Attack):
    """How many pictures of each class a client has, from the accuracies that it sends."""

    name = "class mix out of the scores"
    cost = 120.0
    threat_model = ThreatModel.server
    needs = (
        "each client's accuracy on every class of the public test set; labelled public pictures, to rehearse clients"
    )
    question = "Does the server learn how many pictures of each class a client has from the accuracies that it sends?"

    def obstacle(self, record: Record) -> str | None:
        """Clients must differ in what they answer, and say it class by class."""
        if not record.method.personal:
            return "all clients answer with one network, which the server has"
        return None if "of_classes" in record.task.scored() else "clients send no accuracy of a class"

    def findings(self, scene: Scene) -> list[Finding]:
        """Clients of unlike classes that the attacker plays; then what the run's clients sent last."""
        played = _rehearsed(scene)
        rung = f"{len(played.counts)} clients of unlike classes, played as the method has them"
        asked = {rung: played, REAL: _of_run(scene)}
        # What noise has: each class is given another one's accuracy.
        mixed = {which: _mixed_up(some, scene.seed) for which, some in asked.items()}
        sizes = SizeOfClass(played.accuracies, played.shares)
        guessed, blind = (
            {rung: _by_the_others(played, said[rung]), REAL: _guessed(sizes, said[REAL])} for said in (asked, mixed)
        )
        even = {
            which: [label_score(prior_counts(int(have.sum()), len(have)), have) for have in some.counts]
            for which, some in asked.items()
        }
        found: list[Finding] = []
        for metric, figure in SCORES.items():
            control = float(np.mean([figure(score) for score in guessed[rung]]))
            for which in asked:
                reached, noise, chance = ([figure(score) for score in some[which]] for some in (guessed, blind, even))
                line = self._finding(scene, which, metric, "%", reached, chance)
                found += with_controls([line], control, float(np.mean(noise)))
        return found


def _of_run(scene: Scene) -> _Said:
    """The run's clients, by what they sent after the last recorded round."""
    said, classes = scene.record.rounds[-1].scores, len(scene.record.task.classes)
    accuracies = [np.asarray(of_client["of_classes"]) for of_client in said.values()]
    counts = [np.bincount(scene.truth.owners[client].targets.numpy(), minlength=classes) for client in said]
    return _Said(np.stack(accuracies), np.stack(counts))


def _rehearsed(scene: Scene) -> _Said:
    """Plays a federation of the run's method on one half of the public pictures, and scores it on the other."""
    record, classes = scene.record, len(scene.record.task.classes)
    order = rng_for(scene.seed, 90).permutation(len(scene.public))
    mine, others = (taken(scene.public, rows) for rows in np.array_split(order, 2))
    examples = max(update.examples for update in record.rounds[-1].updates.values())
    owners = []
    for client, mix in enumerate(np.geomspace(SKEWED, _MOST, REHEARSED)):
        rng = rng_for(scene.seed, 91, client)
        owners.append(taken(mine, drawn(mine.targets.numpy(), examples, float(mix), rng)))
    played = federation_of(scene, owners, _FEDERATION)
    said = [client.predict(played.broadcast, others.inputs) for client in played.clients]
    accuracies = [accuracy_of_classes(some, others.targets, classes).double().numpy() for some in said]
    counts = [np.bincount(owned.targets.numpy(), minlength=classes) for owned in owners]
    return _Said(np.stack(accuracies), np.stack(counts))


def _guessed(sizes: SizeOfClass, asked: _Said) -> list[LabelScore]:
    return [
        label_score(sizes.counts(said, int(have.sum())), have)
        for said, have in zip(asked.accuracies, asked.counts, strict=True)
    ]


def _by_the_others(played: _Said, said: _Said) -> list[LabelScore]:
    """Each rehearsed client, read by what the others taught."""
    found = []
    for client in range(len(played.counts)):
        others = np.arange(len(played.counts)) != client
        sizes = SizeOfClass(played.accuracies[others], played.shares[others])
        found += _guessed(sizes, _Said(said.accuracies[~others], said.counts[~others]))
    return found


def _mixed_up(asked: _Said, seed: int) -> _Said:
    rng = rng_for(seed, 92)
    return _Said(np.stack([rng.permutation(said) for said in asked.accuracies]), asked.counts)
