"""The layers of SHT: GroupNorm throughout, so that no face depends on the others in its batch."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

GROUP = 16
"""Channels per normalisation group."""

SMALLEST_FACE = 8
"""Smallest side in pixels of a face that the networks accept."""


def enlarge(faces: Tensor, size: int) -> Tensor:
    """Faces of any side brought to a network's grid by bicubic interpolation.

    Args:
        faces: ``(n, 3, s, s)`` in [0, 1], ``s`` from 8 to any size.
        size: Side of the grid.

    Returns:
        ``(n, 3, size, size)``.

    Raises:
        ValueError: If the faces are not square RGB, or smaller than 8 px.
    """
    if faces.ndim != 4 or faces.shape[1] != 3 or faces.shape[2] != faces.shape[3]:
        raise ValueError(f"faces have shape {tuple(faces.shape)}; expected (n, 3, s, s)")
    side = faces.shape[2]
    if side < SMALLEST_FACE:
        raise ValueError(f"faces are {side} px; the network takes {SMALLEST_FACE} px and more")
    if side == size:
        return faces
    return nn.functional.interpolate(faces, (size, size), mode="bicubic", align_corners=False, antialias=side > size)


class Norm(nn.GroupNorm):
    """GroupNorm in groups of 16 channels (Wu and He 2018): ``(n, c, h, w)`` to the same.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(max(1, channels // GROUP), channels)

    def forward(self, x: Tensor) -> Tensor:
        """The features, normalised, scaled and shifted."""
        if not x.requires_grad and self.weight.requires_grad and torch.is_grad_enabled():
            # The first layer that learns behind frozen ones: for channels that lie last, PyTorch 2.13 computes on the
            # CPU a gradient of x that nobody asked for, into memory that is not there, and the process ends.
            x = x.contiguous()
        return super().forward(x)


class Residual(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions (He et al. 2016b): ``(n, c, h, w)`` to the same.

    Args:
        channels: Channels in and out.
        hidden: Channels between the two convolutions; fewer make a bottleneck. Defaults to ``channels``.
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        self.norm1, self.norm2 = Norm(channels), Norm(hidden)
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)
        # Starting as the identity lets many blocks be stacked without a warm-up.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        y: Tensor = self.conv1(nn.functional.silu(self.norm1(x)))
        y = self.conv2(nn.functional.silu(self.norm2(y)))
        return x + y


class Hourglass(nn.Module):
    """Encoder-decoder with a skip connection per level (Newell et al. 2016), wider as maps shrink.

    Args:
        widths: Channels per level; level ``i`` works on maps ``2**i`` times smaller than the input.

    The bottom of the hourglass is handed out too: it sees the whole face.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.enter = nn.ModuleList(Residual(width) for width in widths[1:])
        self.skip = nn.ModuleList(Residual(width, max(GROUP, width // 2)) for width in widths[:-1])
        self.leave = nn.ModuleList(Residual(width, max(GROUP, width // 2)) for width in widths[1:])
        self.down = nn.ModuleList(nn.Conv2d(wide, narrow, 2, stride=2) for wide, narrow in itertools.pairwise(widths))
        self.up = nn.ModuleList(nn.Conv2d(narrow, wide, 1) for wide, narrow in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``(n, widths[0], h, w)`` to the same shape, and the bottom's features.

        ``h`` and ``w`` must be divisible by ``2 ** (len(widths) - 1)``.
        """
        skips = []
        for skip, down, enter in zip(self.skip, self.down, self.enter, strict=True):
            skips.append(skip(x))
            x = enter(down(x))
        bottom = x
        for level in reversed(range(len(skips))):
            x = self.up[level](self.leave[level](x))
            x = skips[level] + nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x, bottom


class ComponentAttention(nn.Module):
    """Heatmaps guide features, one attention map per facial component.

    The probabilities of a component's points are summed to one map (Ma et al. 2020, deep iterative
    collaboration); from these maps a small convolution predicts a scale and a shift for every feature.

    Args:
        channels: Channels of the guided features.
        component_of: For each point, the number of its component.
    """

    member: Tensor

    def __init__(self, channels: int, component_of: tuple[int, ...]) -> None:
        super().__init__()
        components = max(component_of) + 1
        member = torch.zeros(components, len(component_of))
        member[list(component_of), list(range(len(component_of)))] = 1
        self.register_buffer("member", member, persistent=False)
        self.modulation = nn.Conv2d(components, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.modulation.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, probability: Tensor) -> Tensor:
        """Guides ``(n, c, h, w)`` by probabilities ``(n, k, h, w)``."""
        maps = torch.einsum("ck,nkhw->nchw", self.member, probability.to(features.dtype))
        # Probabilities are small numbers; the strongest cell of each component becomes 1.
        maps = maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        scale, shift = self.modulation(maps).chunk(2, dim=1)
        guided: Tensor = features * (1 + scale) + shift
        return guided


class Stem(nn.Module):
    """Takes the picture apart without losing a pixel: patches become channels, twice.

    Args:
        channels: Channels out.
        stride: Picture pixels per cell of the result, even.
        cells: Cells along each axis of the result, for the learned embedding of places.
        hidden: Channels at half the stride.
    """

    def __init__(self, channels: int, stride: int, cells: int, hidden: int = 32) -> None:
        super().__init__()
        half = stride // 2
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(half),
            nn.Conv2d(3 * half**2, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, channels, 2, stride=2),
        )
        # Faces stand upright in the middle of their crops: a place says much about what is there.
        self.place = nn.Parameter(torch.zeros(1, channels, cells, cells))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, 3, h, w)`` to ``(n, channels, cells, cells)``."""
        y: Tensor = self.layers(x) + self.place
        return y


class DetailBlock(nn.Module):
    """Residual blocks at half and at full map size: context first, then texture.

    Args:
        channels: Channels at full map size.
        context: Channels at half map size.
    """

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, context, 2, stride=2)
        self.context = Residual(context)
        self.up = nn.Conv2d(context, channels, 1)
        self.texture = Residual(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, c, h, w)`` to the same shape; ``h`` and ``w`` even."""
        context = nn.functional.interpolate(self.up(self.context(self.down(x))), scale_factor=2.0)
        y: Tensor = self.texture(x + context)
        return y


class Painter(nn.Module):
    """Sub-pixel enlarging of features to picture pixels (Shi et al. 2016).

    Starts by painting nothing: from random pixels, training first empties the features to silence them, and
    then learns for a long time from none.

    Args:
        channels: Channels in.
        stride: Picture pixels per cell of the features.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, 3 * stride**2, 1)
        self.shuffle = nn.PixelShuffle(stride)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, channels, h, w)`` to ``(n, 3, h * stride, w * stride)``."""
        # A tenth: a step of the optimiser then moves pixels by less than the residual that is to be learned.
        y: Tensor = 0.1 * self.shuffle(self.mix(nn.functional.silu(x)))
        return y


class FinePainter(nn.Module):
    """Paints in steps of two, and looks at the enlarged picture itself at every step.

    What a larger input still shows of fine detail cannot pass through the cells of the streams; here it goes
    around them (skip connections as in Ronneberger et al. 2015), so that the streams only say what is missing.

    Args:
        channels: Channels in.
        stride: Picture pixels per cell of the features: 2, 4 or 8.
        width: Channels after the first step; each further step has half.
    """

    def __init__(self, channels: int, stride: int, width: int) -> None:
        super().__init__()
        self.up, self.look, self.texture = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.strides: list[int] = []
        while stride > 2:
            stride //= 2
            self.strides.append(stride)
            self.up.append(nn.Sequential(nn.Conv2d(channels, 4 * width, 3, padding=1), nn.PixelShuffle(2)))
            self.look.append(nn.Conv2d(3 * stride**2, width, 3, padding=1))
            self.texture.append(Residual(width))
            channels, width = width, max(GROUP, width // 2)
        self.mix = nn.Conv2d(channels, 3 * stride**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(stride)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, centred: Tensor) -> Tensor:
        """Maps features ``(n, channels, h, w)`` and the picture to ``(n, 3, h * stride, w * stride)``."""
        x = nn.functional.silu(x)
        for stride, up, look, texture in zip(self.strides, self.up, self.look, self.texture, strict=True):
            x = nn.functional.silu(up(x) + look(nn.functional.pixel_unshuffle(centred, stride)))
            x = texture(x)
        y: Tensor = 0.1 * self.shuffle(self.mix(x))
        return y
