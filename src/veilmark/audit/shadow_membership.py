"""Membership with shadow networks: what the server can train itself on public pictures, and what that tells it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import REAL, Finding, Scene
from veilmark.audit.membership import MembershipAttack, Scores, attack_network, confidence, lira
from veilmark.audit.record import network_of
from veilmark.audit.shadows import Shadows, questions, shadows_of

Pairs = list[tuple[Scores, Scores]]
"""Scores of members and of strangers, by attacked network."""


def lira_offline(asked: Scores, shadows_without: Scores) -> Scores:
    """LiRA, offline (Carlini et al. 2022, section IV-E): how surprising a confidence is for a picture not learned.

    One-sided: members are more confident. A normal distribution for each picture; one variance for all pictures, as
    they do where there are few shadows.

    Args:
        asked: ``(n,)`` confidences of the network that is attacked.
        shadows_without: ``(s, n)`` confidences of shadow networks that learned none of the pictures.

    Returns:
        ``(n,)``: minus the log of the probability that a network which has not seen the picture is as confident.

    Raises:
        ValueError: If there are fewer than two shadows.
    """
    if len(shadows_without) < 2:
        raise ValueError(f"{len(shadows_without)} shadow networks: a spread needs two")
    mean = shadows_without.mean(axis=0)
    spread = np.sqrt((shadows_without - mean).var() + 1e-9)
    found: Scores = -norm.logsf((asked - mean) / spread)
    return found


class MembershipByShadows(MembershipAttack):
    """Which pictures a client trained on, with shadow networks; what is made of their answers is the subclasses'.

    The questioned picture is asked as it is: where clients scramble or transform pictures, the server cannot.

    Args:
        shadows: How many of each kind are trained: even, 6 at least.
    """

    needs = "a whole classifier from each client; the picture in question, with its label; public pictures"

    def __init__(self, shadows: int = 8) -> None:
        self.shadows = shadows

    @abstractmethod
    def on_pool(self, shadows: Shadows, target: int, labels: Tensor, seed: int) -> Scores:
        """Scores of the pool's pictures against a shadow; neither it nor the other half's is used as a shadow."""

    @abstractmethod
    def on_asked(
        self, shadows: Shadows, said: Sequence[Tensor], asked: Sequence[Tensor], labels: Sequence[Tensor], seed: int
    ) -> list[Scores]:
        """Scores of pictures that no shadow learned.

        Args:
            shadows: Those that learned as clients do.
            said: The shadows' logits ``(s, n, k)`` on several sets.
            asked: The attacked network's logits ``(n, k)`` on these sets.
            labels: ``(n,)`` of these sets.
            seed: Of the attack.
        """

    def findings(self, scene: Scene) -> list[Finding]:
        """Shadows that know their pictures by heart, shadows as the run trains, and what each client sent last."""
        asked = questions(scene)
        by_heart, shadows = shadows_of(scene, asked, self.shadows)
        found: list[Finding] = []
        rungs = (
            (by_heart, "a shadow is the target, and knows its pictures by heart"),
            (shadows, "a shadow is the target"),
        )
        for some, rung in rungs:
            pairs: Pairs = []
            for target in range(self.shadows):
                scores = self.on_pool(some, target, asked.pool.targets[: some.member.shape[1]], scene.seed)
                pairs.append((scores[some.member[target]], scores[~some.member[target]]))
                scene.advance()
            found += self._scored(scene, rung, pairs)
        record = scene.record
        start = network_of(record, record.rounds[0].broadcast, scene.device)
        # All clients' messages at once, and the untrained start on the same pictures: one attack network serves all.
        said: list[Tensor] = []
        answers: list[Tensor] = []
        labels: list[Tensor] = []
        at_start = logits_of(start, asked.strangers.inputs)
        for client, update in record.rounds[-1].updates.items():
            network, own = network_of(record, update.tensors, scene.device), asked.owners[client]
            answers += [logits_of(network, some.inputs) for some in (own, asked.strangers)]
            answers += [logits_of(start, own.inputs), at_start]
            said += 2 * [shadows.owners[client], shadows.strangers]
            labels += 2 * [own.targets, asked.strangers.targets]
            scene.advance()
        given = self.on_asked(shadows, said, answers, labels, scene.seed)
        real: Pairs = list(zip(given[::4], given[1::4], strict=True))
        untrained: Pairs = list(zip(given[2::4], given[3::4], strict=True))
        found += self._scored(scene, REAL, real)
        return self._controlled(found, self._scored(scene, REAL, untrained))


class MembershipByLiRA(MembershipByShadows):
    """LiRA: online where shadows learned the picture and others did not, offline for a client's pictures."""

    name = "membership with shadow networks (LiRA)"
    question = "Can the server tell whether a client trained on a picture, if it compares with networks of its own?"

    def on_pool(self, shadows: Shadows, target: int, labels: Tensor, seed: int) -> Scores:
        """The likelihood ratio, with the other couples as shadows."""
        others = _others(shadows, target)
        known = confidence(shadows.pool, labels)
        inside = shadows.member[others]
        return lira(known[target], known[others], inside)

    def on_asked(
        self, shadows: Shadows, said: Sequence[Tensor], asked: Sequence[Tensor], labels: Sequence[Tensor], seed: int
    ) -> list[Scores]:
        """The one-sided likelihood: a server has no shadows that learned a client's picture."""
        joined = torch.cat(list(labels))
        scores = lira_offline(confidence(torch.cat(list(asked)), joined), confidence(torch.cat(list(said), 1), joined))
        return np.split(scores, np.cumsum([len(some) for some in labels])[:-1])


class MembershipByPredictions(MembershipByShadows):
    """The PPIDSG paper's own attack (Shokri et al. 2017): a network that learns from shadows what members look like."""

    name = "membership from prediction vectors"
    question = "Can the server tell whether a client trained on a picture, by the answer of the network it sent?"

    def on_pool(self, shadows: Shadows, target: int, labels: Tensor, seed: int) -> Scores:
        """An attack network of the other couples."""
        others = _others(shadows, target)
        said = shadows.pool[torch.from_numpy(others)].flatten(0, 1)
        return attack_network(said, shadows.member[others].reshape(-1), shadows.pool[target], seed)

    def on_asked(
        self, shadows: Shadows, said: Sequence[Tensor], asked: Sequence[Tensor], labels: Sequence[Tensor], seed: int
    ) -> list[Scores]:
        """An attack network of all shadows."""
        scores = attack_network(shadows.pool.flatten(0, 1), shadows.member.reshape(-1), torch.cat(list(asked)), seed)
        return np.split(scores, np.cumsum([len(some) for some in labels])[:-1])


def _others(shadows: Shadows, target: int) -> NDArray[np.int64]:
    """All but a shadow and the one with the other half: how often a picture is in the rest then says nothing."""
    return np.array([number for number in range(len(shadows.member)) if number // 2 != target // 2])
