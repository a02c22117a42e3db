"""The crop contract: how a face box becomes a square crop, and back.

A box becomes a square with the same centre whose side is ``margin`` times the box's longer side; the square
is sampled to ``size`` x ``size``. Coordinates are continuous with their origin at the top-left *corner* of
the picture: pixel (0, 0) covers [0, 1) x [0, 1) and its centre is (0.5, 0.5), in pictures and crops alike.
Every crop in Veilmark, at training, evaluation and inference, is made by :meth:`Crop.sample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.run.errors import DataError

MARGIN = 1.3
"""Margin of every published figure: side of the crop over the longer side of the box."""

REFERENCE_SIZE = 128
"""Side in pixels of the high-resolution reference crop."""

SMALLEST_BOX = 8.0
"""Faces whose box has a longer side below this many pixels are refused."""


class BoxError(DataError):
    """A face box that cannot be cropped."""


@dataclass(frozen=True)
class Crop:
    """A similarity map from picture pixels to crop pixels, with its exact inverse.

    Attributes:
        matrix: ``(2, 3)`` float64; crop = matrix[:, :2] @ picture + matrix[:, 2].
        size: Side of the crop in pixels.
    """

    matrix: NDArray[np.float64]
    size: int

    @classmethod
    def from_box(
        cls, box: NDArray[np.floating] | tuple[float, ...], margin: float = MARGIN, size: int = REFERENCE_SIZE
    ) -> Crop:
        """The contract: centred square of side ``margin`` x the longer side of ``box``.

        Args:
            box: ``x0, y0, x1, y1`` in picture pixels.
            margin: Side of the square over the longer side of the box.
            size: Side of the crop in pixels.

        Raises:
            BoxError: If the box is not finite, empty or inverted.
        """
        x0, y0, x1, y1 = (float(v) for v in box)
        side = margin * max(x1 - x0, y1 - y0)
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
            raise BoxError(f"face box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty; expected x0 < x1 and y0 < y1")
        return cls.from_square((x0 + x1) / 2, (y0 + y1) / 2, side, size=size)

    @classmethod
    def from_square(
        cls,
        centre_x: float,
        centre_y: float,
        side: float,
        *,
        angle: float = 0.0,
        mirror: bool = False,
        size: int = REFERENCE_SIZE,
    ) -> Crop:
        """A square given by centre and side, turned and mirrored (for augmentation).

        Args:
            centre_x: Centre of the square in picture pixels.
            centre_y: Centre of the square in picture pixels.
            side: Side of the square in picture pixels, above 0.
            angle: Radians by which the content appears turned, clockwise on screen.
            mirror: Whether the crop is flipped left to right after turning.
            size: Side of the crop in pixels.
        """
        scale = size / side
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]], dtype=np.float64)
        if mirror:
            linear[0] *= -1
        centre = np.array([centre_x, centre_y], dtype=np.float64)
        offset = size / 2 - linear @ centre
        return cls(np.concatenate([linear, offset[:, None]], axis=1), size)

    @property
    def scale(self) -> float:
        """Crop pixels per picture pixel."""
        return float(math.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def to_crop(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Picture points ``(..., 2)`` in crop pixels."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Crop points ``(..., 2)`` in picture pixels: the exact inverse of :meth:`to_crop`."""
        inverse = np.linalg.inv(self.matrix[:, :2])
        return (np.asarray(points, dtype=np.float64) - self.matrix[:, 2]) @ inverse.T

    def sample(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop's pixels.

        Enlarging is bicubic. Shrinking samples a whole number of times finer and averages, so that no
        detail aliases. Outside the picture the nearest edge pixel is repeated.

        Args:
            image: ``(h, w, 3)`` uint8.

        Returns:
            ``(size, size, 3)`` uint8.
        """
        part, origin, factor = self._surroundings(image)
        scale = self.scale * factor
        finer = max(1, math.ceil(1 / scale - 1e-6))
        linear = self.matrix[:, :2] * factor * finer
        shift = self.matrix[:, :2] @ origin + self.matrix[:, 2]
        # OpenCV counts from pixel centres, the contract from pixel corners: half a pixel on both sides.
        offset = shift * finer + linear @ np.array([0.5, 0.5]) - 0.5
        side = self.size * finer
        warped = cv2.warpAffine(
            part,
            np.concatenate([linear, offset[:, None]], axis=1),
            (side, side),
            flags=cv2.INTER_CUBIC if finer == 1 else cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        if finer > 1:
            warped = cv2.resize(warped, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.asarray(warped, dtype=np.uint8)

    def _surroundings(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64], int]:
        """The part of a picture that the crop can reach, averaged by a whole factor where it is far too fine.

        OpenCV's warp takes no picture of 32,767 px or more, and its time grows with the area that is sampled.

        Returns:
            The part, its left and top edge in the picture, and picture pixels per pixel of the part.
        """
        corners = self.to_image(np.array([[0, 0], [self.size, 0], [0, self.size], [self.size, self.size]]))
        extent = np.array(image.shape[1::-1])
        low = np.clip(np.floor(corners.min(axis=0)) - 3, 0, extent - 1).astype(int)
        high = np.maximum(np.clip(np.ceil(corners.max(axis=0)) + 3, 0, extent).astype(int), low + 1)
        part = image[low[1] : high[1], low[0] : high[0]]
        factor = max(1, int(1 / (4 * self.scale) + 1e-6))
        if factor > 1:
            # Whole averages need whole tiles: the last pixels are repeated.
            part = np.pad(part, ((0, -part.shape[0] % factor), (0, -part.shape[1] % factor), (0, 0)), mode="edge")
            smaller = (part.shape[1] // factor, part.shape[0] // factor)
            part = np.asarray(cv2.resize(part, smaller, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return np.ascontiguousarray(part), low.astype(np.float64), factor


def points_box(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """The tight box of landmark points: ``(..., k, 2)`` to ``(..., 4)`` xyxy."""
    low, high = points.min(axis=-2), points.max(axis=-2)
    return np.concatenate([low, high], axis=-1).astype(np.float32)


def overlap(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Intersection over union of two boxes ``x0, y0, x1, y1``, 0 to 1."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    both = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / both if both > 0 else 0.0


def check_box(box: NDArray[np.floating] | tuple[float, ...], width: int, height: int) -> None:
    """Refuses a box from which no landmarks can be had.

    Raises:
        BoxError: If its longer side is under 8 px, or its centre lies outside the picture.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    named = f"face box ({x0:.1f}, {y0:.1f}, {x1:.1f}, {y1:.1f})"
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise BoxError(f"{named} is empty; expected finite x0 < x1 and y0 < y1")
    if max(x1 - x0, y1 - y0) < SMALLEST_BOX:
        raise BoxError(
            f"{named} is under {SMALLEST_BOX:g} px: too small for landmarks; use a larger picture of the face"
        )
    if not (0 <= (x0 + x1) / 2 <= width and 0 <= (y0 + y1) / 2 <= height):
        raise BoxError(f"{named} lies outside the {width} x {height} picture; boxes are x0, y0, x1, y1 in pixels")
