"""ATS: clients train on transformed pictures (Gao et al. 2021, CVPR, arXiv 2011.12505).

A policy of up to three transforms is applied to every training picture; with several policies (the paper's *hybrid*)
one is drawn for each picture. Test pictures are untouched. The paper searches the policies: of many drawn at random
those are kept whose accuracy score is high enough, and the one with the best privacy score is taken; no score needs
any training on a candidate. :func:`search_policy` does it, on pictures and networks that the caller gives: whoever
searches sees those pictures, so a run never searches by itself, and never on test pictures or on a client's.

Where the paper and its authors' code differ, the paper is followed. A picture is transformed once, before training
(their code draws anew at every pass). The privacy score is a mean over K steps of the cosine of whole gradients (their
code takes the trapezium rule, and the mean of the layers' cosines). Their random crops and mirroring are left out.

A replication (Taboada Warmerdam et al. 2022, ReScience C) found no correlation of the privacy score with the quality of
reconstructions, and an attacker who knows that pictures are shifted undoes much of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn

from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.tasks.task import Data
from veilmark.federation.transforms import LIBRARY, Policy, as_policy, transformed
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.run.errors import ConfigError
from veilmark.run.seeds import rng_for

_EPSILON = 1e-5
"""Added to eigenvalues in the accuracy score."""


class ATSOptions(BaseModel):
    """Options of ``ats``.

    Attributes:
        policies: Lists of transforms, by name (``translate_x:9``) or by number in the paper's library of 50; one list
            for all pictures, or several of which one is drawn for each.

    The default is the paper's 43-18-18 (for CIFAR-100). The paper's hybrid is ``[[3, 1, 7], [43, 18, 18]]``, that for
    Fashion-MNIST ``[[19, 15, 45], [2, 43, 21]]``. What :func:`search_policy` puts first on other pictures need not be
    better: neither of its scores sees that test pictures are untouched, and 3-1-7 shifts a digit by half its side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    policies: tuple[tuple[str | int, ...], ...] = (("translate_y:3", "contrast:7", "contrast:7"),)

    @field_validator("policies")
    @classmethod
    def _policies(cls, policies: tuple[tuple[str | int, ...], ...]) -> tuple[Policy, ...]:
        if not policies:
            raise ValueError("at least one policy is needed; [[]] changes nothing")
        return tuple(as_policy(policy) for policy in policies)


def transform_all(pictures: Tensor, policies: Sequence[Policy], seed: int, number: int) -> Tensor:
    """A client's pictures, each after one of the policies; the same in every round and on every machine.

    Args:
        pictures: ``(n, c, s, s)`` uint8.
        policies: From which one is drawn for each picture.
        seed: The run's seed.
        number: The client's number.

    Returns:
        ``(n, c, s, s)`` uint8.
    """
    out = torch.empty_like(pictures)
    for row, picture in enumerate(pictures):
        rng = rng_for(seed, 31, number, row)
        out[row] = transformed(picture, policies[int(rng.integers(len(policies)))], rng)
    return out


class TransformedTraining(Method[ATSOptions]):
    """Federated averaging of classifiers that are trained on transformed pictures."""

    summary = "a classifier of transformed pictures, whole"
    source = "Gao et al. 2021, arXiv 2011.12505"
    tasks = ("classify",)
    model = ATSOptions

    def client(self, view: ClientView) -> Client:
        """A client that transforms its pictures once, and trains on nothing else."""
        policies = [as_policy(policy) for policy in self.options.policies]
        pictures = transform_all(view.data.inputs, policies, view.seed, view.number)
        learner = view.learner(Data(pictures, view.data.targets, view.data.names))
        return FedAvgClient(view, learner, list(learner.model.state_dict()))

    def server(self, view: ServerView) -> Server:
        """A server that averages."""
        return FedAvgServer(view.task.network(view.seed).state_dict(), view.task.metrics)


def _gradient(network: nn.Module, picture: Tensor, label: Tensor) -> Tensor:
    loss = class_loss(network(picture[None]), label[None])
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


def privacy_score(network: nn.Module, pictures: Tensor, labels: Tensor, starts: Tensor, steps: int = 20) -> float:
    """S_pri: how much gradients tell an attacker who walks from noise to the pictures; less is better.

    The mean over pictures and ``j = 0 .. steps - 1`` of the cosine between the network's gradients at
    ``(1 - j / steps) start + (j / steps) picture`` and at the picture (the paper's S_pri and GradSim).

    Args:
        network: Half-trained, in [-1, 1] to logits.
        pictures: ``(n, c, s, s)`` uint8, after the policy.
        labels: ``(n,)`` int64.
        starts: ``(n, c, s, s)`` noise in [-1, 1].
        steps: K.
    """
    cosines = []
    for picture, label, start in zip(to_unit(pictures), labels, starts, strict=True):
        aim = _gradient(network, picture, label)
        for step in range(steps):
            share = step / steps
            there = _gradient(network, (1 - share) * start + share * picture, label)
            cosines.append(float(torch.nn.functional.cosine_similarity(there, aim, dim=0)))
    return float(np.mean(cosines))


def accuracy_score(network: nn.Module, pictures: Tensor) -> float:
    """S_acc: how well a network could tell the pictures apart, before any training; more is better, -1 is the best.

    ``-mean(log(v + e) + 1 / (v + e))`` over the eigenvalues ``v`` of the correlation matrix of the network's Jacobians,
    one row a picture, ``e`` = 1e-5 (after Mellor et al. 2020, arXiv 2006.04647, whose sign it has; the authors' code
    takes the sum in place of the mean).

    Args:
        network: With the weights it starts from.
        pictures: ``(n, c, s, s)`` uint8, after the policy; 2 or more.
    """
    inputs = to_unit(pictures).requires_grad_()
    rows = torch.autograd.grad(network(inputs).sum(), inputs)[0].flatten(1)
    values = np.linalg.eigvalsh(np.corrcoef(rows.double().numpy())) + _EPSILON
    return float(-np.mean(np.log(values) + 1 / values))


@dataclass(frozen=True)
class Candidate:
    """A policy with its scores.

    Attributes:
        policy: Names of its transforms.
        privacy: S_pri, less is better.
        accuracy: S_acc, more is better.
    """

    policy: Policy
    privacy: float
    accuracy: float


def search_policy(
    half_trained: nn.Module,
    fresh: nn.Module,
    pictures: Tensor,
    labels: Tensor,
    rng: np.random.Generator,
    *,
    candidates: int = 1500,
    length: int = 3,
    scored: int = 10,
    steps: int = 20,
    least_accuracy: float | None = None,
) -> list[Candidate]:
    """The paper's search (its Algorithm 1): random policies that are accurate enough, the most private first.

    Args:
        half_trained: Network for the privacy score; the paper trains it on a tenth of the data.
        fresh: Network with the weights it starts from, for the accuracy score.
        pictures: ``(n, c, s, s)`` uint8, which whoever searches gets to see.
        labels: ``(n,)`` int64.
        rng: Where policies, directions and noise come from.
        candidates: How many policies are drawn; the paper draws 1,500.
        length: Most transforms of a policy.
        scored: How many pictures, the first ones, the privacy score takes.
        steps: Of the privacy score.
        least_accuracy: Accuracy score below which a policy is dropped; that of the untouched pictures by default. The
            paper's threshold (-85 for the sum over CIFAR-100's pictures) holds for its networks and data only.

    Returns:
        The policies that are left, the lowest privacy score first.

    Raises:
        ConfigError: If none is left.
    """
    least = accuracy_score(fresh, pictures) if least_accuracy is None else least_accuracy
    draws: NDArray[np.int64] = rng.integers(-1, len(LIBRARY), (candidates, length))
    # -1 leaves a place empty, so that shorter policies are drawn too.
    policies = dict.fromkeys(as_policy([int(entry) for entry in draw if entry >= 0]) for draw in draws)
    shape = (min(scored, len(pictures)), *pictures.shape[1:])
    starts = torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))
    kept, best = [], -np.inf
    for policy in policies:
        after = torch.stack([transformed(picture, policy, rng) for picture in pictures])
        accuracy = accuracy_score(fresh, after)
        best = max(best, accuracy)
        if accuracy >= least:
            privacy = privacy_score(half_trained, after[: len(starts)], labels[: len(starts)], starts, steps)
            kept.append(Candidate(policy, privacy, accuracy))
    if not kept:
        raise ConfigError(f"no policy reaches least_accuracy = {least:g}; the best has {best:g}: lower it to that")
    return sorted(kept, key=lambda candidate: candidate.privacy)
