"""3x3 convolutions on small maps with fewer multiplications (Winograd), for CPUs.

Lavin and Gray 2016 (arXiv 1509.09308): a tile of 4x4 outputs takes 36 multiplications a pair of channels instead of
144. Maps are kept pixel by pixel, ``(pixels, pictures, channels)``, so that both transforms and the products between
them are plain matrix products, and nothing is copied from layer to layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LARGEST_SIDE = 8
"""Up to here the transforms, which are products with whole maps, cost less than they save."""

_TILE = 4
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
"""Where polynomials are taken, infinity besides; a third of the rounding error of the usual 0, 1, -1, 2, -2."""


@dataclass(frozen=True, eq=False)
class Transforms:
    """The linear maps of a 3x3 convolution with padding 1 on maps of one side.

    Attributes:
        tiles: Tiles of the map.
        entering: ``(36 tiles, pixels)``: pixels to the 36 values of every tile, value by value.
        leaving: ``(pixels, 36 tiles)``: products of all tiles to pixels.
        kernel: ``(36, 9)``: a kernel to its 36 values.
    """

    tiles: int
    entering: Tensor
    leaving: Tensor
    kernel: Tensor


def to_pixels(x: Tensor) -> Tensor:
    """``(n, c, h, w)`` to ``(h w, n, c)``."""
    n, c, h, w = x.shape
    return x.permute(2, 3, 0, 1).reshape(h * w, n, c)


def from_pixels(x: Tensor, side: int) -> Tensor:
    """``(side * side, n, c)`` to ``(n, c, side, side)``."""
    _, n, c = x.shape
    return x.view(side, side, n, c).permute(2, 3, 0, 1).contiguous()


def convolve(x: Tensor, weight: Tensor, transforms: Transforms) -> Tensor:
    """A 3x3 convolution with padding 1, equal to ``conv2d`` to rounding.

    Args:
        x: ``(pixels, n, c)``.
        weight: ``(k, c, 3, 3)``.
        transforms: Those of the map's side.

    Returns:
        ``(pixels, n, k)``.
    """
    pixels, n, c = x.shape
    k, tiles = weight.shape[0], transforms.tiles
    kernels = (transforms.kernel @ weight.permute(2, 3, 1, 0).reshape(9, c * k)).view(-1, c, k)
    values = (transforms.entering @ x.reshape(pixels, n * c)).view(-1, tiles * n, c)
    return (transforms.leaving @ torch.bmm(values, kernels).view(-1, n * k)).view(pixels, n, k)


def normalise(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """What ``norm`` does where every channel is a group of its own; ``(pixels, n, c)`` to the same."""
    centred = x - x.mean(dim=0, keepdim=True)
    scale = (centred.square().mean(dim=0, keepdim=True) + norm.eps).rsqrt() * norm.weight
    return torch.addcmul(norm.bias, centred, scale)


@cache
def transforms_of(side: int) -> Transforms:
    """The transforms of maps of one side, in pixels."""
    into, out, kernel = _one_tile()
    tiles, values = -(-side // _TILE), len(into)
    entering, leaving = np.zeros((values, tiles, side)), np.zeros((side, values, tiles))
    for tile in range(tiles):
        for tap in range(values):
            # A tile reads one pixel beyond its outputs on both sides; outside the map there is nothing.
            pixel = tile * _TILE + tap - 1
            if 0 <= pixel < side:
                entering[:, tile, pixel] = into[:, tap]
        for place in range(_TILE):
            if tile * _TILE + place < side:
                leaving[tile * _TILE + place, :, tile] = out[place]
    return Transforms(
        tiles**2,
        _tensor(np.einsum("iax,jby->ijabxy", entering, entering), values**2 * tiles**2),
        _tensor(np.einsum("xia,yjb->xyijab", leaving, leaving), side**2),
        _tensor(np.einsum("ia,jb->ijab", kernel, kernel), values**2),
    )


def _one_tile() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The matrices of one tile along one side: of its input, of its output, of the kernel (Toom and Cook's)."""

    def powers(count: int) -> NDArray[np.float64]:
        finite = np.vander(np.array(_POINTS), count, increasing=True)
        # At infinity a polynomial is its highest coefficient.
        return np.vstack([finite, np.eye(count)[-1]])

    return np.asarray(np.linalg.inv(powers(_TILE + 2)).T, dtype=np.float64), powers(_TILE).T, powers(3)


def _tensor(values: NDArray[np.float64], rows: int) -> Tensor:
    return torch.from_numpy(values.reshape(rows, -1)).float()
