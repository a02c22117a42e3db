"""A face made small in its whole picture, and the box from which landmarks are to be found there."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.crop import MARGIN, overlap
from veilmark.faces.datasets import Face
from veilmark.run.seeds import rng_for
from veilmark.sht.landmarker import Landmarker

JITTER = 0.1
"""Where the finder finds no face, the annotated box is moved and resized by up to this share of its side."""

_MATCH = 0.3
"""Smallest intersection over union at which a found box is the annotated face."""


def jittered(box: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float64]:
    """The box moved and resized, each by up to 10 % of its longer side."""
    x0, y0, x1, y1 = (float(v) for v in box)
    side = max(x1 - x0, y1 - y0)
    dx, dy, grow = rng.uniform(-JITTER, JITTER, 3)
    centre = np.array([(x0 + x1) / 2 + dx * side, (y0 + y1) / 2 + dy * side])
    half = np.array([x1 - x0, y1 - y0]) / 2 * (1 + grow)
    return np.concatenate([centre - half, centre + half])


@dataclass(frozen=True)
class FoundFace:
    """A whole picture made small, and the box from which landmarks are to be found in it.

    Attributes:
        image: The small picture.
        box: The box in it.
        factor: Small pixels per original pixel, ``(x, y)``.
        found: Whether the finder found the face.
    """

    image: NDArray[np.uint8]
    box: NDArray[np.float64]
    factor: NDArray[np.float64]
    found: bool


def find_small(face: Face, image: NDArray[np.uint8], size: int, landmarker: Landmarker, number: int) -> FoundFace:
    """Makes a picture so small that the face has ``size`` px, and lets the finder look for it there."""
    side = MARGIN * float(max(face.box[2] - face.box[0], face.box[3] - face.box[1]))
    height, width = image.shape[:2]
    smaller = min(1.0, size / side)
    small_size = (max(1, round(width * smaller)), max(1, round(height * smaller)))
    small = np.asarray(cv2.resize(image, small_size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    factor = np.array([small_size[0] / width, small_size[1] / height])
    true_box = face.box.astype(np.float64) * np.tile(factor, 2)
    boxes = landmarker.finder.find(small).boxes
    overlaps = [overlap(box.astype(np.float64), true_box) for box in boxes]
    if overlaps and max(overlaps) >= _MATCH:
        return FoundFace(small, boxes[int(np.argmax(overlaps))].astype(np.float64), factor, True)
    return FoundFace(small, jittered(true_box, rng_for(0, size, number)), factor, False)
