"""What a training needs of others: batches, the samples they are drawn from, a critic."""

from __future__ import annotations

from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

Drawn_co = TypeVar("Drawn_co", bound="Inputs", covariant=True)


class Inputs(Protocol):
    """A batch: knows what of it goes through the network, and how it goes to another device."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of the network's ``forward``."""
        ...

    def to(self, device: torch.device) -> Self:
        """The batch on another device."""
        ...


class Samples(Protocol[Drawn_co]):
    """Training samples, drawn from (seed, epoch, place in it) alone."""

    def __len__(self) -> int:
        """Samples of an epoch."""
        ...

    def step(self, epoch: int, number: int, size: int, rank: int = 0, world: int = 1) -> Drawn_co:
        """The share of process ``rank`` of ``world`` in batch ``number`` of an epoch, ``size`` samples in all."""
        ...


class Critic(Protocol):
    """A network that learns to tell the trained network's answers from the truth."""

    @property
    def network(self) -> nn.Module:
        """The critic itself."""
        ...

    def loss(self, network: nn.Module, output: Any, batch: Any) -> Tensor:
        """What the critic minimises, given an output without gradients."""
        ...
