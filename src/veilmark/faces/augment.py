"""Augmentation of training faces: other crops of the same face, other light, other things in front."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from veilmark.faces.crop import MARGIN, Crop


class Augmentation(BaseModel):
    """How strongly training faces vary. Angles in degrees, lengths as a share of the crop's side.

    Attributes:
        rotation: Standard deviation of the turn.
        zoom: Standard deviation of the logarithm of the side.
        shift: Standard deviation of the displacement of the box.
        mirror: Whether faces are mirrored half of the time.
        colour: Strength of the changes of light and colour, 0 for none.
        cover: Share of the faces that get something in front of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    rotation: float = Field(7.0, ge=0, le=90)
    zoom: float = Field(0.08, ge=0, le=0.5)
    shift: float = Field(0.03, ge=0, le=0.5)
    mirror: bool = True
    colour: float = Field(0.6, ge=0, le=2)
    cover: float = Field(0.1, ge=0, le=1)


def draw_crop(
    box: NDArray[np.floating], size: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Crop, bool]:
    """A random crop around a face box, and whether it is mirrored.

    Args:
        box: ``x0, y0, x1, y1`` in picture pixels.
        size: Side of the crop in pixels.
        augmentation: Strengths.
        rng: Source of all randomness.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    side = MARGIN * max(x1 - x0, y1 - y0)
    angle, zoom, dx, dy = rng.standard_normal(4)
    mirror = bool(augmentation.mirror and rng.random() < 0.5)
    crop = Crop.from_square(
        (x0 + x1) / 2 + side * augmentation.shift * float(dx),
        (y0 + y1) / 2 + side * augmentation.shift * float(dy),
        side * math.exp(augmentation.zoom * float(np.clip(zoom, -2.5, 2.5))),
        angle=math.radians(augmentation.rotation * float(np.clip(angle, -3, 3))),
        mirror=mirror,
        size=size,
    )
    return crop, mirror


def recolour(face: NDArray[np.uint8], strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Other light: gain and bias per channel, gamma, saturation. ``(s, s, 3)`` uint8 to the same."""
    if strength == 0:
        return face
    gain = np.exp(strength * (0.15 * rng.standard_normal() + 0.06 * rng.standard_normal(3)))
    bias = strength * 12 * rng.standard_normal()
    gamma = math.exp(strength * 0.15 * float(rng.standard_normal()))
    levels = (np.arange(256) / 255.0) ** gamma * 255
    table = np.clip(levels[:, None] * gain + bias, 0, 255).astype(np.uint8)
    changed = np.asarray(cv2.LUT(face, table[None]), dtype=np.uint8)
    draw = rng.random()
    if draw < 0.25 * strength:
        gray = cv2.cvtColor(changed, cv2.COLOR_RGB2GRAY)[..., None]
        keep = float(rng.uniform(0, 0.8)) if draw > 0.08 * strength else 0.0
        changed = (keep * changed + (1 - keep) * gray).astype(np.uint8)
    return changed


def cover(face: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Something in front: a rectangle of one colour or of noise over up to a fifth of the face."""
    side = face.shape[0]
    height, width = (int(side * v) for v in rng.uniform(0.15, 0.45, 2))
    top, left = int(rng.integers(0, side - height)), int(rng.integers(0, side - width))
    colour = rng.integers(0, 256, 3)
    patch = np.broadcast_to(colour, (height, width, 3)).astype(np.float64)
    if rng.random() < 0.5:
        patch = patch + rng.normal(0, 40, (height, width, 3))
    covered = face.copy()
    covered[top : top + height, left : left + width] = np.clip(patch, 0, 255).astype(np.uint8)
    return covered
