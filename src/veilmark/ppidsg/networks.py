"""The four networks of PPIDSG (arXiv 2312.10380): generator G, discriminator D, feature extractor F, classifier C.

All work on pictures in [-1, 1]. Only G ever leaves a client. Normalisation is by picture and channel: no answer
depends on what else is in the batch, there are no running statistics to average, and training and testing are the
same function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from veilmark.ppidsg.secret import Secret
from veilmark.ppidsg.winograd import LARGEST_SIDE, convolve, from_pixels, largest_of_four, normalise, to_pixels
from veilmark.run.errors import ConfigError

FEATURES = 128
"""Channels of G's bottleneck and of F's features."""

_FEW = 3
"""Layers of F up to where it has many channels: a convolution, what normalises it, a ReLU."""

_PIECE = 2**20
"""Weights that are drawn from a key stream at once."""


def _norm(channels: int) -> nn.GroupNorm:
    # A group a channel: with 16 channels a group, G keeps C at chance for the first 50 steps (docs/federation.md).
    return nn.GroupNorm(channels, channels)


def _check_side(side: int) -> None:
    if side % 4 or side < 16:
        raise ConfigError(f"pictures are {side} px; PPIDSG's networks take sides of 16 px and more, multiples of 4")


def _takes_pixels(x: Tensor, layers: nn.Module) -> bool:
    """Whether maps may be worked on pixel by pixel: small float32 maps on a CPU, and nobody listens to the layers.

    Opacus does: its hooks take each example's gradients from layers that are called one by one.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.shape[-2] == x.shape[-1] <= LARGEST_SIDE
        and not any(layer._forward_hooks for layer in layers.modules())
    )


def _on_pixels(layers: Iterable[nn.Module], x: Tensor, side: int) -> tuple[Tensor, int]:
    """Layers on ``(side * side, n, c)``: what they give, and its side."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = convolve(x, layer.weight, side)
        elif isinstance(layer, nn.GroupNorm):
            x = normalise(x, layer)
        elif isinstance(layer, nn.MaxPool2d):
            x, side = largest_of_four(x, side), side // 2
        else:
            x = layer(x)
    return x, side


class GeneratorBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection: ``(n, c, h, w)`` to the same.

    Args:
        channels: Channels.
        skip: The published code has none (a defect that is kept for comparison).
    """

    def __init__(self, channels: int, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        y: Tensor = self.layers(x)
        return x + y if self.skip else y

    def on_pixels(self, x: Tensor, side: int) -> Tensor:
        """The same, to rounding, on ``(side * side, n, c)``."""
        y, _ = _on_pixels(self.layers.children(), x, side)
        return x + y if self.skip else y


class WideConvolution(nn.Conv2d):
    """A convolution from many channels to few with a large kernel, stride 1 and padding of half the kernel.

    It is computed as its own transpose with the kernel turned, which takes half the time on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Applies the convolution."""
        turned = self.weight.flip(2, 3).transpose(0, 1).contiguous()
        return conv_transpose2d(x, turned, self.bias, padding=self.kernel_size[0] // 2)


class Halving(nn.MaxPool2d):
    """The largest of every 2x2 pixels.

    Where a CPU is only asked, vectors are compared: a tenth of the time of PyTorch's own, which goes number by number
    (its gradient is the faster one).
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, c, h, w)``, of even sides, to ``(n, c, h/2, w/2)``."""
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
            return torch.maximum(rows[..., ::2], rows[..., 1::2])
        made: Tensor = super().forward(x)
        return made


class Generator(nn.Module):
    """G: a picture to a picture in the scrambled domain; the one network that is shared.

    A 7x7 stem, two stride-2 convolutions (32, 64, 128 channels), six residual blocks, two up-convolutions, tanh.

    Args:
        channels: 1 or 3.
        skip: See :class:`GeneratorBlock`.
    """

    def __init__(self, channels: int, skip: bool = True) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Conv2d(channels, 32, 7, padding=3, bias=False), _norm(32), nn.ReLU(inplace=True)]
        for narrow, wide in ((32, 64), (64, FEATURES)):
            down += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), _norm(wide), nn.ReLU(inplace=True)]
        blocks = [GeneratorBlock(FEATURES, skip) for _ in range(6)]
        up: list[nn.Module] = []
        for wide, narrow in ((FEATURES, 64), (64, 32)):
            up += [
                nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1, bias=False),
                _norm(narrow),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*down, *blocks, *up, WideConvolution(32, channels, 7, padding=3), nn.Tanh())
        self._blocks = slice(len(down), len(down) + len(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, channels, s, s)`` in [-1, 1] to the same; ``s`` a multiple of 4."""
        y: Tensor = self.layers[: self._blocks.start](x)
        blocks = self.layers[self._blocks]
        if _takes_pixels(y, self):
            side = y.shape[-1]
            pixels = to_pixels(y)
            for block in blocks.children():
                assert isinstance(block, GeneratorBlock)
                pixels = block.on_pixels(pixels, side)
            y = from_pixels(pixels, side)
        else:
            y = blocks(y)
        y = self.layers[self._blocks.stop :](y)
        return y


class Discriminator(nn.Module):
    """D: tells scrambled pictures from generated ones, patch by patch (LSGAN; Mao et al. 2017).

    Args:
        channels: 1 or 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(32, 64, 4, stride=2, padding=1, bias=False),
            _norm(64),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(64, 128, 4, padding=1, bias=False),
            _norm(128),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(128, 1, 4, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Verdicts ``(n, 1, s/4 - 2, s/4 - 2)``: 1 for scrambled, 0 for generated."""
        y: Tensor = self.layers(x)
        return y


class Extractor(nn.Module):
    """F: four VGG blocks to features, and a decoder that gives the picture back.

    The decoder ends in tanh: the published one ends in ReLU and cannot reproduce what is below 0.

    Args:
        channels: 1 or 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        encoder: list[nn.Module] = []
        # Where the map is halved: after the second and the third block.
        for enter, leave, halve in ((channels, 32, False), (32, 64, True), (64, 128, True), (128, FEATURES, False)):
            encoder += [nn.Conv2d(enter, leave, 3, padding=1, bias=False), _norm(leave)]
            # The largest of four, then what is below 0 cut off: the same as the other way round, on a quarter.
            encoder += [Halving(), nn.ReLU()] if halve else [nn.ReLU()]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(FEATURES, 64, 4, stride=2, padding=1, bias=False),
            _norm(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 2, stride=2, bias=False),
            _norm(32),
            nn.ReLU(),
            nn.Conv2d(32, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(n, 128, s/4, s/4)``."""
        if not _takes_pixels(x, self.encoder):
            y: Tensor = self.encoder(x)
            return y
        # The first convolution has too few channels to gain.
        layers = list(self.encoder.children())
        first = nn.Sequential(*layers[:_FEW])
        return from_pixels(*_on_pixels(layers[_FEW:], to_pixels(first(x)), x.shape[-1]))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The picture, through the features and back."""
        y: Tensor = self.decoder(self(x))
        return y


class Pixels(nn.Module):
    """In place of F where there is none (``extractor: none``): the head reads the generated pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """The same pixels."""
        return x


class Classifier(nn.Module):
    """C: a perceptron with tanh on flattened features.

    Args:
        inputs: Features: 6,272 for 28 px, 8,192 for 32 px.
        classes: Number of classes.
        widths: Widths of the hidden layers.
    """

    def __init__(self, inputs: int, classes: int, widths: tuple[int, int] = (4096, 1024)) -> None:
        super().__init__()
        wide, narrow = widths
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, wide),
            nn.Tanh(),
            nn.Linear(wide, narrow),
            nn.Tanh(),
            nn.Linear(narrow, classes),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(n, classes)``."""
        y: Tensor = self.layers(features)
        return y


def feature_count(channels: int, side: int, extractor: bool = True) -> int:
    """Inputs of C for pictures of one shape.

    Raises:
        ConfigError: If the networks do not take that side.
    """
    _check_side(side)
    return FEATURES * (side // 4) ** 2 if extractor else channels * side**2


def start_from_secret(network: nn.Module, secret: Secret, name: str) -> None:
    """Sets every parameter from a secret: the paper's *key*, a start that all clients share and the server lacks.

    Matrices and kernels are uniform in +-1/sqrt(inputs), as PyTorch starts them; scales are 1, other vectors 0. The
    numbers come from the secret's key stream, so that every machine and release starts from the same.

    Args:
        network: The network, changed in place.
        secret: The common secret.
        name: What the network is, e.g. ``"C"``; another name gives unrelated weights.
    """
    with torch.no_grad():
        for path, parameter in network.named_parameters():
            if parameter.ndim <= 1:
                parameter.fill_(1.0 if path.endswith("weight") else 0.0)
                continue
            values = _drawn(secret, f"weights|{name}|{path}", parameter.numel(), parameter[0].numel())
            parameter.copy_(values.view(parameter.shape).to(parameter.device))


def _drawn(secret: Secret, purpose: str, count: int, inputs: int) -> Tensor:
    stream, values = secret.stream(purpose.encode()), np.empty(count, dtype=np.float32)
    # In pieces: a head's numbers at once would need five times their memory on the way.
    for piece in np.split(values, range(_PIECE, count, _PIECE)):
        # 24 bits are what a float32 in [0, 1) can hold exactly.
        piece[:] = stream.take(4 * len(piece)).view("<u4") >> 8
        piece /= np.float32(2**24)
        piece *= 2
        piece -= 1
        piece *= np.float32(1 / math.sqrt(inputs))
    return torch.from_numpy(values)
