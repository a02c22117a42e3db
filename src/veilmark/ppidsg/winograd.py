"""3x3 convolutions with fewer multiplications (Winograd), and what stands between them, for CPUs.

Lavin and Gray 2016 (arXiv 1509.09308): a tile of 4x4 outputs takes 36 multiplications a pair of channels instead of
144. Maps are kept pixel by pixel, ``(pixels, pictures, channels)``, so that the transforms (columns first, then the
rows of one row of tiles at a time) and the products between them are plain matrix products, and so that taking the
largest of four pixels and normalising work on whole vectors. Everything can be differentiated twice, as attacks on
gradients do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import batch_norm

LARGEST_SIDE = 32
"""Up to here the transform of columns, a product with whole rows, costs little beside what is saved."""

_TILE = 4
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
"""Where polynomials are taken, infinity besides; a third of the rounding error of the usual 0, 1, -1, 2, -2."""
_VALUES = len(_POINTS) + 1


@dataclass(frozen=True, eq=False)
class TileRow:
    """One row of tiles.

    Attributes:
        read: Rows of the map that it reads.
        write: Rows that it gives.
        entering: ``(6, rows read)``.
        leaving: ``(rows written, 6)``.
    """

    read: slice
    write: slice
    entering: Tensor
    leaving: Tensor


@dataclass(frozen=True, eq=False)
class Transforms:
    """The linear maps of a 3x3 convolution with padding 1 on square maps of one side.

    Attributes:
        entering: ``(6 tiles, side)``: pixels of a row to the six values of every tile, value by value.
        leaving: ``(side, 6 tiles)``: products of all tiles of a row to pixels.
        rows: Rows of tiles.
        kernel: ``(36, 9)``: a kernel to its 36 values.
        turned: ``(36, 9)``: the same of a kernel turned by half a circle, which carries gradients back.
    """

    entering: Tensor
    leaving: Tensor
    rows: tuple[TileRow, ...]
    kernel: Tensor
    turned: Tensor


def to_pixels(x: Tensor) -> Tensor:
    """``(n, c, h, w)`` to ``(h w, n, c)``."""
    n, c, h, w = x.shape
    # Channels go last picture by picture first: both copies then move runs of numbers that lie together.
    return x.contiguous(memory_format=torch.channels_last).permute(2, 3, 0, 1).reshape(h * w, n, c)


def from_pixels(x: Tensor, side: int) -> Tensor:
    """``(side * side, n, c)`` to ``(n, c, side, side)``."""
    _, n, c = x.shape
    pictures = x.transpose(0, 1).contiguous().view(n, side, side, c)
    return pictures.permute(0, 3, 1, 2).contiguous()


def convolve(x: Tensor, weight: Tensor, side: int) -> Tensor:
    """A 3x3 convolution with padding 1, equal to ``conv2d`` to rounding.

    Args:
        x: ``(side * side, n, c)``.
        weight: ``(k, c, 3, 3)``.
        side: Of the map, in pixels.

    Returns:
        ``(side * side, n, k)``.
    """
    return _convolve(x, weight, side, turned=False)


def largest_of_four(x: Tensor, side: int) -> Tensor:
    """The largest of every 2x2 pixels; ``(side * side, n, c)`` to a quarter of the pixels, ``side`` even.

    Where pixels are equal, one of them gets the gradient, as with ``max_pool2d``.
    """
    made: Tensor = _Largest.apply(x, side)  # type: ignore[no-untyped-call]
    return made


def normalise(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """What ``norm`` does where every channel is a group of its own; ``(pixels, n, c)`` to the same."""
    pixels, n, c = x.shape
    # Pixels take the part of examples, and every channel of every picture is a feature.
    made = batch_norm(
        x.reshape(pixels, n * c), None, None, norm.weight.repeat(n), norm.bias.repeat(n), training=True, eps=norm.eps
    )
    return made.view(pixels, n, c)


def _convolve(x: Tensor, weight: Tensor, side: int, turned: bool) -> Tensor:
    """See :func:`convolve`; ``turned`` takes gradients ``(pixels, n, k)`` of its output back to its input."""
    made: Tensor = _Convolution.apply(x, weight, side, turned)  # type: ignore[no-untyped-call]
    return made


class _Convolution(torch.autograd.Function):
    """Keeps its input only; values of tiles are computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, side: int, turned: bool) -> Tensor:
        # A frozen kernel's gradient is not asked for, and its input need not be kept.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.side, ctx.turned = side, turned
        maps = transforms_of(side, x.dtype)
        # Kernels are never put in another order in memory: the products read them as they lie, or transposed.
        kernels = (maps.turned if turned else maps.kernel) @ weight.reshape(-1, 9).T
        kernels = kernels.view(-1, *weight.shape[:2])
        kernels = kernels if turned else kernels.transpose(1, 2)
        left = x.shape[1] * kernels.shape[2]
        columns = _of_columns(maps.entering, x, side)
        made = x.new_empty(side, side, left)
        for row in maps.rows:
            values = (row.entering @ columns[row.read]).view(len(kernels), -1, x.shape[2])
            products = torch.bmm(values, kernels).view(_VALUES, -1)
            written = (row.leaving @ products).view(len(row.leaving), -1, left)
            torch.matmul(maps.leaving, written, out=made[row.write])
        return made.view(*x.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _convolve(slope, weight, ctx.side, not ctx.turned)
        if ctx.needs_input_grad[1]:
            ends = (slope, x) if ctx.turned else (x, slope)
            of_weight = _KernelSlope.apply(*ends, ctx.side)  # type: ignore[no-untyped-call]
        return of_x, of_weight, None, None


class _KernelSlope(torch.autograd.Function):
    """The gradient of :func:`convolve` for the kernel, out of its input and its output's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, side: int) -> Tensor:
        ctx.save_for_backward(x, slope)
        ctx.side = side
        c, k = x.shape[2], slope.shape[2]
        maps = transforms_of(side, x.dtype)
        columns, slopes = _of_columns(maps.entering, x, side), _of_columns(maps.leaving.T, slope, side)
        kernels = x.new_zeros(len(maps.kernel), k, c)
        for row in maps.rows:
            values = (row.entering @ columns[row.read]).view(len(kernels), -1, c)
            products = (row.leaving.T @ slopes[row.write]).view(len(kernels), -1, k)
            kernels.baddbmm_(products.transpose(1, 2), values)
        return (kernels.view(len(kernels), -1).T @ maps.kernel).view(k, c, 3, 3)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, of_output = ctx.saved_tensors
        return _convolve(of_output, slope, ctx.side, turned=True), convolve(x, slope, ctx.side), None


class _Largest(torch.autograd.Function):
    """Keeps which pixels were the largest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, side: int) -> Tensor:
        _, n, c = x.shape
        half = side // 2
        upper, lower = x.reshape(half, 2, side, n * c).unbind(1)
        left, right = torch.maximum(upper, lower).view(half, half, 2, n * c).unbind(2)
        ctx.save_for_backward(upper >= lower, left >= right)
        return torch.maximum(left, right).view(-1, n, c)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        upper, left = ctx.saved_tensors
        _, n, c = slope.shape
        half = len(left)
        slope = slope.reshape(left.shape)
        of_left = slope * left
        columns = torch.stack([of_left, slope - of_left], dim=2).view(upper.shape)
        of_upper = columns * upper
        return torch.stack([of_upper, columns - of_upper], dim=1).view(4 * half**2, n, c), None


def _of_columns(matrix: Tensor, x: Tensor, side: int) -> Tensor:
    """The columns of ``x`` ``(side * side, n, c)`` by a matrix ``(m, side)``: ``(side, m n c)``."""
    return torch.matmul(matrix, x.reshape(side, side, -1)).view(side, -1)


@cache
def transforms_of(side: int, dtype: torch.dtype = torch.float32) -> Transforms:
    """The transforms of maps of one side, in pixels."""
    into, out, kernel = _one_tile()
    tiles = -(-side // _TILE)
    entering, leaving = np.zeros((_VALUES, tiles, side)), np.zeros((side, _VALUES, tiles))
    rows = []
    for tile in range(tiles):
        # A tile reads one pixel beyond its outputs on both sides; outside the map there is nothing.
        first = tile * _TILE - 1
        read = slice(max(0, first), min(side, first + _VALUES))
        write = slice(tile * _TILE, min(side, (tile + 1) * _TILE))
        taps, places = into[:, read.start - first : read.stop - first], out[: write.stop - write.start]
        entering[:, tile, read], leaving[write, :, tile] = taps, places
        rows.append(TileRow(read, write, _tensor(taps, dtype), _tensor(places, dtype)))
    kernels = np.einsum("ia,jb->ijab", kernel, kernel).reshape(_VALUES**2, -1)
    return Transforms(
        _tensor(entering.reshape(-1, side), dtype),
        _tensor(leaving.reshape(side, -1), dtype),
        tuple(rows),
        _tensor(kernels, dtype),
        _tensor(kernels[:, ::-1], dtype),
    )


def _one_tile() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The matrices of one tile along one side: of its input, of its output, of the kernel (Toom and Cook's)."""

    def powers(count: int) -> NDArray[np.float64]:
        finite = np.vander(np.array(_POINTS), count, increasing=True)
        # At infinity a polynomial is its highest coefficient.
        return np.vstack([finite, np.eye(count)[-1]])

    return np.asarray(np.linalg.inv(powers(_VALUES)).T, dtype=np.float64), powers(_TILE).T, powers(3)


def _tensor(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
