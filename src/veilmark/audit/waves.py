"""Coordinates of pictures in which a search finds the coarse and the likely before the fine: waves, and components."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FALL = 1.5
"""How fast waves get smaller: amplitude over (1 + frequency) to this power. Photographs' fall about as 1 / frequency
(Field 1987); 1.5 was best of 0.5, 1, 1.5 and 2 for DLG on pictures of CIFAR-10's training set."""
REACH = 2.0
"""Standard deviations that a search goes from the mean of public pictures in each direction."""
FINE = 0.2
"""How large waves are beside principal components: of 0.05, 0.2, 0.5 and 1, on digits and on MNIST together."""


class Waves:
    """The two-dimensional cosine transform (DCT-II, orthonormal), each wave in units of its usual amplitude.

    A gradient says little of single pixels and much of what they have in common, so that in these units a search
    is far better conditioned than in pixels: the same L-BFGS needs a fraction of the steps.

    Args:
        height: Pixels.
        width: Pixels.
        device: Where it computes.
    """

    def __init__(self, height: int, width: int, device: torch.device | str = "cpu") -> None:
        self._down, self._across = (_cosines(side).to(device) for side in (height, width))
        frequency = (torch.arange(height)[:, None] ** 2 + torch.arange(width) ** 2).sqrt()
        amplitude = (1 + frequency) ** -FALL
        # Numbers of spread 1 make pictures of spread 1.
        self._amplitude = (amplitude / amplitude.square().mean().sqrt()).to(device)

    def size(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        """The shape of the numbers behind pictures ``(n, c, h, w)``: theirs."""
        return shape

    def picture(self, numbers: Tensor) -> Tensor:
        """Pictures ``(n, c, h, w)`` of as many numbers of any size."""
        return self._down.T @ (self._amplitude * numbers) @ self._across

    def numbers(self, pictures: Tensor) -> Tensor:
        """The way back, exact but for rounding."""
        return (self._down @ pictures @ self._across.T) / self._amplitude


class LikelyPictures:
    """Pictures as what public ones have in common, and faint cosine waves for what they do not.

    A search along principal components alone stays where public pictures are; along waves alone it begins knowing
    nothing of them. With as many evaluations both together find more than components alone on digits and on MNIST;
    waves alone find the most on MNIST and the least on digits (docs/audit-attacks.md).

    Args:
        public: ``(m, c, h, w)`` in [-1, 1], on the CPU: other pictures of the same kind.
        device: Where it computes.
    """

    def __init__(self, public: Tensor, device: torch.device | str = "cpu") -> None:
        mean, axes = principal_axes(public)
        self._mean, self._axes, self._shape = mean.to(device), axes.to(device), public.shape[1:]
        self._waves = Waves(public.shape[2], public.shape[3], device)

    def size(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        """The shape of the numbers behind ``n`` pictures: those of waves, then one for each component."""
        return shape[0], self._shape.numel() + len(self._axes)

    def picture(self, numbers: Tensor) -> Tensor:
        """Pictures ``(n, c, h, w)`` of numbers ``(n, k)`` of any size; numbers of 0 are the mean picture."""
        fine, common = torch.split(numbers, [self._shape.numel(), len(self._axes)], dim=1)
        whole: Tensor = (self._mean + common @ self._axes).view(-1, *self._shape)
        return whole + FINE * self._waves.picture(fine.view(-1, *self._shape))


def principal_axes(public: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(p,)`` and principal components ``(k, p)`` of pictures ``(m, c, h, w)``, two standard deviations long."""
    mean = public.flatten(1).mean(dim=0)
    # On the CPU: another device may turn axes round, and a search would begin elsewhere.
    _, spread, axes = torch.linalg.svd(public.flatten(1) - mean, full_matrices=False)
    return mean, axes * (REACH * spread / len(public) ** 0.5)[:, None]


def _cosines(side: int) -> Tensor:
    """Orthonormal ``(side, side)``, a wave a row."""
    rows = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi * (rows + 0.5) * rows[:, None] / side) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    return waves.float()
