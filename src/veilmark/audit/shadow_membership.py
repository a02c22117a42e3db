"""Membership with shadow federations: what a server can play itself with the pictures in question, and hears."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veilmark.audit.attack import REAL, Finding, Scene
from veilmark.audit.membership import MembershipAttack, Scores, attack_network, confidence, lira
from veilmark.audit.shadows import (
    Classifiers,
    Questions,
    Shadows,
    answers_of,
    questions,
    shadows_of,
    whole_classifiers,
)
from veilmark.run.seeds import rng_for

MOST_ANSWERS = 1000
"""Answers of shadows on pictures that they learned, and on such that they have not seen, for an attack network."""


class MembershipByShadows(MembershipAttack):
    """Which pictures a client trained on, with shadows; what is made of their answers is the subclasses'.

    A picture is asked as it is: where clients scramble or transform pictures, the server cannot.

    Args:
        federations: How many shadow federations are played: a multiple of three, 6 at least.
    """

    needs = "a whole classifier from each client; the picture in question, with its label; public pictures"
    easiest: ClassVar[str] = "a network of the server's is the target, and knows its pictures by heart"

    def __init__(self, federations: int = 9) -> None:
        self.federations = federations

    @abstractmethod
    def scores(self, shadows: Shadows, used: NDArray[np.int64], asked: Tensor, labels: Tensor, seed: int) -> Scores:
        """Scores of the pool's pictures.

        Args:
            shadows: All of one kind.
            used: Which of them compare.
            asked: ``(t, n, k)`` logits on the pool, of the networks that are attacked.
            labels: ``(n,)`` of the pool.
            seed: Of the attack.

        Returns:
            ``(t, n)``, larger for members.
        """

    def asked(self, scene: Scene) -> tuple[Questions, Classifiers]:
        """The pictures in question, and how messages are asked."""
        return questions(scene), whole_classifiers(scene)

    def run(
        self, scene: Scene, asked: Questions, shadows: Shadows, how: Classifiers
    ) -> tuple[Scores, dict[int, Scores]]:
        """The attack on what each client sent last.

        Args:
            scene: Its record; its truth is not read.
            asked: The pictures in question; which of them are whose is not read.
            shadows: What shadow federations say of these.
            how: How messages are asked.

        Returns:
            Scores ``(n,)`` of the pool, larger for members: of the untrained start, and of each client's message.
        """
        record = scene.record
        # All clients' messages at once, and the untrained start: one attack network serves all.
        sent = [record.start, *(update.tensors for update in record.rounds[-1].updates.values())]
        answers = answers_of(scene, sent, asked.pool.inputs, how)
        scene.advance()
        everyone = np.arange(len(shadows.group))
        start, *given = self.scores(shadows, everyone, torch.stack(answers), asked.pool.targets, scene.seed)
        return start, dict(zip(record.rounds[-1].updates, given, strict=True))

    def findings(self, scene: Scene) -> list[Finding]:
        """Networks that know their pictures by heart, shadows as the run trains, and what each client sent last."""
        asked, how = self.asked(scene)
        by_heart, shadows = shadows_of(scene, asked, self.federations, how)
        found: list[Finding] = []
        for some, data, rung in (
            (by_heart, asked.public, self.easiest),
            (shadows, asked.pool, "a client of a shadow federation is the target"),
        ):
            pairs, classes = [], []
            labels = data.targets[: some.learned.shape[1]]
            for target in some.first:
                # Those of its own group would tell by what they learned.
                others = np.flatnonzero(some.group != some.group[target])
                given = self.scores(some, others, some.pool[[target]], labels, scene.seed)[0]
                learned, unseen = some.learned[target], some.unseen[target]
                pairs.append((given[learned], given[unseen]))
                classes.append((labels[torch.from_numpy(learned)], labels[torch.from_numpy(unseen)]))
                scene.advance()
            found += self._scored(scene, rung, pairs, classes)
        start, given = self.run(scene, asked, shadows, how)
        real = [(given[client][own], given[client][asked.strangers]) for client, own in asked.owners.items()]
        targets = asked.pool.targets
        classes = [(targets[own], targets[asked.strangers]) for own in asked.owners.values()]
        found += self._scored(scene, REAL, real, classes, common=True)
        untrained = [(start[own], start[asked.strangers]) for own in asked.owners.values()]
        return self._controlled(found, self._scored(scene, REAL, untrained, classes, common=True))


class MembershipByLiRA(MembershipByShadows):
    """LiRA (Carlini et al. 2022), online: some shadows learned the picture, others have not seen it."""

    name = "membership with shadow federations (LiRA)"
    cost = 109.0
    question = "Can the server tell whether a client trained on a picture, if it plays federations of its own with it?"

    def scores(self, shadows: Shadows, used: NDArray[np.int64], asked: Tensor, labels: Tensor, seed: int) -> Scores:
        """The likelihood ratio."""
        known = confidence(shadows.pool, labels)[used]
        learned, unseen = shadows.learned[used], shadows.unseen[used]
        return np.stack([lira(said, known, learned, unseen) for said in confidence(asked, labels)])


class MembershipByPredictions(MembershipByShadows):
    """The PPIDSG paper's own attack (Shokri et al. 2017): a network that learns from shadows what members look like."""

    name = "membership from prediction vectors"
    cost = 6.0
    question = "Can the server tell whether a client trained on a picture, by the answer of the network it sent?"

    def scores(self, shadows: Shadows, used: NDArray[np.int64], asked: Tensor, labels: Tensor, seed: int) -> Scores:
        """What the attack network takes for a member."""
        rng = rng_for(seed, 57)
        # As many of each kind, or the network learns how often pictures are members.
        rows = [rng.permutation(np.argwhere(kind[used])) for kind in (shadows.learned, shadows.unseen)]
        count = min(MOST_ANSWERS, *(len(some) for some in rows))
        shadow, picture = (torch.from_numpy(column) for column in np.concatenate([some[:count] for some in rows]).T)
        said = shadows.pool[torch.from_numpy(used)][shadow, picture]
        scores = attack_network(said, np.arange(2 * count) < count, asked.flatten(0, 1), seed)
        return scores.reshape(asked.shape[:2])
