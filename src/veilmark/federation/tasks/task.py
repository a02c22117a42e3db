"""The interface of a task: what is learned, by which network, and how answers are scored."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from veilmark.run.local_training import Training


@dataclass(frozen=True, eq=False)
class Data:
    """Examples of one owner.

    Attributes:
        inputs: ``(n, c, s, s)`` uint8.
        targets: ``(n, ...)``: what is to be learned of each.
        names: A name for each, the same in every run (per-image subkeys are derived from it).
    """

    inputs: Tensor
    targets: Tensor
    names: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the names' SHA-256: tells whether two owners have the same examples, and not which."""
        return hashlib.sha256(b"\n".join(self.names)).hexdigest()[:16]

    def to(self, device: torch.device | str) -> Data:
        """The same examples on another device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


class Learner(ABC):
    """The task's whole network beside one owner's examples: what plain training needs.

    Attributes:
        model: The network. Methods read and replace its weights.
        examples: How many examples there are.
    """

    model: nn.Module
    examples: int

    @abstractmethod
    def to(self, device: torch.device | str) -> Learner:
        """This learner, its network and its examples moved to another device."""

    @abstractmethod
    def loss(self, rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of some examples (a mean over them), and figures to report (percent or loss, means).

        Args:
            rows: ``(b,)`` int64 numbers of examples.
            rng: Where chance comes from.
        """

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """The task's answers to inputs ``(n, c, s, s)`` uint8, one row each, without gradients, on the CPU."""

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the network sees and makes of inputs, as pictures like them, by what they are; nothing by default."""
        return {}


class Task(ABC):
    """What is learned, with public test examples and the networks; built from the run's config."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """Names of the figures of :meth:`Learner.loss`."""
    score_name: ClassVar[str]
    """What :meth:`summary` measures, as it stands in ``metrics.jsonl`` and ``summary.json``."""
    score_words: ClassVar[str]
    """The same with its unit, for people."""
    less_is_better: ClassVar[bool] = False
    test_inputs: Tensor
    """Public test inputs ``(n, c, s, s)`` uint8, untouched."""
    shown_words: ClassVar[str] = "The pictures are public test pictures."

    def shown(self, count: int) -> Tensor:
        """Inputs that any page may show, at most so many: of those that are scored by default."""
        return self.test_inputs[:count]

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The networks' public measures, for a transcript."""

    @abstractmethod
    def network(self, seed: int) -> nn.Module:
        """A fresh network, the same for the same seed."""

    @abstractmethod
    def learner(self, data: Data, training: Training, rounds: int, seed: int, number: int) -> Learner:
        """The network with an owner's examples."""

    @abstractmethod
    def scored(self) -> Mapping[str, int | None]:
        """The names of what :meth:`score` gives, and how many figures each has; None where the test set says that."""

    @abstractmethod
    def score(self, answers: Tensor, own: Data) -> dict[str, list[float]]:
        """Figures of a client's answers to the test inputs, computed by the client: what :meth:`summary` needs.

        Args:
            answers: One row a test input.
            own: The client's examples, for the score on its own distribution.
        """

    def in_mean(self, score: dict[str, list[float]]) -> bool:
        """Whether a client's score is one of those whose mean :meth:`summary` gives: every one by default."""
        return True

    @abstractmethod
    def summary(self, scores: dict[int, dict[str, list[float]]], clients: int) -> dict[str, Any]:
        """What ``summary.json`` says of the clients' scores: mean, min, max, per client, own distribution.

        Args:
            scores: By client. Those that could not be scored are left out; one at least is ``in_mean``.
            clients: How many clients there are: in ``per_client`` each has its place, with None for who has no score.
        """
