"""Policies of picture transforms, as ATS writes them (Gao et al. 2021, arXiv 2011.12505, section 4).

A transform is an operation and a level from 0 to 9, e.g. ``translate_x:9``; operations without strengths are named
alone, e.g. ``invert``. A policy is a short list of transforms that are applied one after another. Operations, ranges
and the library of 50 are those of AutoAugment (Cubuk et al. 2019) as ATS uses them: each level is a step of ten between
two ends, and operations that have a direction draw it anew for every picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

LEVELS = 10
"""Strengths of an operation, 0 to 9; 0 changes nothing."""

Policy = tuple[str, ...]
"""Names of transforms, in the order in which they are applied."""


@dataclass(frozen=True)
class Operation:
    """What can be done to a picture.

    Attributes:
        apply: Picture and magnitude to a picture of the same size and mode.
        least: Magnitude of level 0.
        most: Magnitude of level 9.
        signed: Whether the magnitude's sign is drawn for every picture.
        strength: Whether it has levels at all.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    least: float = 0.0
    most: float = 0.0
    signed: bool = False
    strength: bool = True

    def magnitude(self, level: int) -> float:
        """Magnitude of a level, without a sign."""
        return self.least + (self.most - self.least) * level / (LEVELS - 1)


def _affine(picture: Image.Image, data: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, data, resample, fillcolor=0)


def _shear_x(picture: Image.Image, share: float) -> Image.Image:
    return _affine(picture, (1, share, 0, 0, 1, 0), Image.Resampling.BICUBIC)


def _shear_y(picture: Image.Image, share: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, share, 1, 0), Image.Resampling.BICUBIC)


def _translate_x(picture: Image.Image, share: float) -> Image.Image:
    return _affine(picture, (1, 0, share * picture.width, 0, 1, 0), Image.Resampling.NEAREST)


def _translate_y(picture: Image.Image, share: float) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, share * picture.height), Image.Resampling.NEAREST)


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    gray = 128 if picture.mode == "L" else (128, 128, 128)
    return picture.rotate(degrees, fillcolor=gray)


_SHIFT = 150 / 331
"""AutoAugment's largest shift, 150 of 331 pixels, as a share of the side."""

OPERATIONS: dict[str, Operation] = {
    "shear_x": Operation(_shear_x, 0, 0.3, signed=True),
    "shear_y": Operation(_shear_y, 0, 0.3, signed=True),
    "translate_x": Operation(_translate_x, 0, _SHIFT, signed=True),
    "translate_y": Operation(_translate_y, 0, _SHIFT, signed=True),
    "rotate": Operation(_rotate, 0, 30),
    "color": Operation(lambda p, m: ImageEnhance.Color(p).enhance(1 + m), 0, 0.5, signed=True),
    "contrast": Operation(lambda p, m: ImageEnhance.Contrast(p).enhance(1 + m), 0, 0.5, signed=True),
    "sharpness": Operation(lambda p, m: ImageEnhance.Sharpness(p).enhance(1 + m), 0, 0.5, signed=True),
    "brightness": Operation(lambda p, m: ImageEnhance.Brightness(p).enhance(1 + m), 0, 0.5, signed=True),
    "posterize": Operation(lambda p, m: ImageOps.posterize(p, round(m)), 8, 4),
    "solarize": Operation(lambda p, m: ImageOps.solarize(p, round(m)), 256, 0),
    "autocontrast": Operation(lambda p, _: ImageOps.autocontrast(p), strength=False),
    "equalize": Operation(lambda p, _: ImageOps.equalize(p), strength=False),
    "invert": Operation(lambda p, _: ImageOps.invert(p), strength=False),
}
"""Every operation: shears and shifts as shares of the side, degrees, factors 1 +- m, bits kept, threshold of bytes."""

LIBRARY: Policy = (
    *("invert", "contrast:6", "rotate:2", "translate_x:9", "sharpness:1"),
    *("sharpness:3", "shear_y:2", "translate_y:2", "autocontrast", "equalize"),
    *("shear_y:5", "posterize:5", "color:3", "brightness:5", "sharpness:9"),
    *("brightness:9", "equalize", "equalize", "contrast:7", "sharpness:5"),
    *("color:5", "translate_x:5", "equalize", "autocontrast", "translate_y:3"),
    *("sharpness:6", "brightness:6", "color:8", "solarize:0", "invert"),
    *("equalize", "autocontrast", "equalize", "equalize", "color:5"),
    *("equalize", "autocontrast", "solarize:4", "brightness:3", "color:0"),
    *("solarize:1", "autocontrast", "translate_y:3", "translate_y:3", "autocontrast"),
    *("solarize:1", "equalize", "invert", "translate_y:3", "autocontrast"),
)
"""ATS's library of 50, by the numbers that its policies are written in: 3-1-7 is entries 3, 1 and 7."""


def as_policy(transforms: Sequence[str | int]) -> Policy:
    """A policy by names.

    Args:
        transforms: Names, or numbers in :data:`LIBRARY`.

    Raises:
        ValueError: If there is no such transform; the message says which there are.
    """
    return tuple(_named(transform) for transform in transforms)


def _named(transform: str | int) -> str:
    if isinstance(transform, int):
        if not 0 <= transform < len(LIBRARY):
            raise ValueError(f"{transform} is no number of ATS's library; they go from 0 to {len(LIBRARY) - 1}")
        return LIBRARY[transform]
    name, colon, level = transform.partition(":")
    if name not in OPERATIONS:
        raise ValueError(f"{transform!r} is no transform; operations: {', '.join(OPERATIONS)}")
    if OPERATIONS[name].strength and level not in map(str, range(LEVELS)):
        raise ValueError(f"{transform!r} needs a level from 0 to {LEVELS - 1}, e.g. '{name}:5'")
    if not OPERATIONS[name].strength and colon:
        raise ValueError(f"{transform!r}: {name} has no level; write '{name}'")
    return transform


def transformed(picture: Tensor, policy: Policy, rng: np.random.Generator) -> Tensor:
    """A picture after a policy; the same for the same picture, policy and numbers drawn.

    What a shift or a shear uncovers becomes black, what a rotation uncovers becomes gray (128).

    Args:
        picture: ``(1 or 3, h, w)`` uint8.
        policy: Names of transforms, from :func:`as_policy`.
        rng: Where directions come from.

    Returns:
        ``(1 or 3, h, w)`` uint8.
    """
    values = picture.numpy()
    image = Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))
    for transform in policy:
        name, _, level = transform.partition(":")
        operation = OPERATIONS[name]
        magnitude = operation.magnitude(int(level)) if operation.strength else 0.0
        if operation.signed and rng.integers(2):
            magnitude = -magnitude
        image = operation.apply(image, magnitude)
    out = np.array(image)
    return torch.from_numpy(out[None] if out.ndim == 2 else np.ascontiguousarray(out.transpose(2, 0, 1)))
