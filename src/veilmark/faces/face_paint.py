"""Paints a synthetic head: shaded surfaces in depth order, then the features as smooth filled outlines.

Everything is drawn on a canvas several times finer than the picture, which is averaged down at the end. All
positions are picture pixels with their origin at the top-left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.face_shape import smooth_curve
from veilmark.faces.face_traits import Array, Pose

FINER = 3
_SHIFT = 4
# The head turns about this point, between the ears.
_PIVOT = np.array((0.0, 0.35, -0.72))


class Camera:
    """Weak perspective: head coordinates to picture pixels.

    Args:
        pose: How the head is turned.
        scale: Picture pixels per unit of the head.
        centre: Where the point that the head turns about lies in the picture.
    """

    def __init__(self, pose: Pose, scale: float, centre: tuple[float, float]) -> None:
        self.rotation, self.scale, self.centre = pose.rotation, scale, np.asarray(centre)
        roll = np.radians(pose.roll)
        self._roll = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])

    def turned(self, points: Array) -> Array:
        """Head points in the viewer's axes, before roll and scale, ``(..., 3)``."""
        return np.asarray((points - _PIVOT) @ self.rotation.T, dtype=np.float64)

    def flat(self, turned: Array) -> Array:
        """Turned points in picture pixels, ``(..., 2)``."""
        return np.asarray(turned[..., :2] @ self._roll.T * self.scale + self.centre)

    def project(self, points: Array) -> Array:
        """Head points in picture pixels, ``(..., 2)``."""
        return self.flat(self.turned(points))

    def body(self, points: Array) -> Array:
        """Points of the body, which does not turn with the head, in picture pixels."""
        return np.asarray((points[..., :2] - _PIVOT[:2]) * self.scale + self.centre)


@dataclass(frozen=True)
class Surface:
    """A curved surface to paint: a grid whose rows go down and columns to the right, seen from outside.

    Attributes:
        points: Picture pixels, ``(rows, columns, 2)``.
        depth: Nearness to the viewer, ``(rows, columns)``.
        colours: RGB in 0..255, ``(rows, columns, 3)``.
        both_sides: Whether cells that face away are painted too, as on a surface that is open.
    """

    points: Array
    depth: Array
    colours: Array
    both_sides: bool = False


def _cells(grid: Array) -> Array:
    """The four corners of each cell of a grid ``(r, c, d)``, ``((r - 1) * (c - 1), 4, d)``."""
    corners = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=2)
    return np.asarray(corners.reshape(-1, 4, grid.shape[-1]))


class Canvas:
    """A picture being painted, ``FINER`` times finer than the result.

    Args:
        size: Side of the result in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pixels = np.zeros((size * FINER, size * FINER, 3), dtype=np.float32)

    def _fixed(self, points: Array) -> NDArray[np.int32]:
        # OpenCV counts from pixel centres and takes fixed-point numbers.
        return np.round((points * FINER - 0.5) * (1 << _SHIFT)).astype(np.int32)

    def _window(self, points: Array, soft: float) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, in canvas pixels, of all that a painting of the points can touch."""
        reach, side = 3 * soft + 1, self.size * FINER
        low = np.clip(np.floor((points.min(axis=0) - reach) * FINER), 0, side)
        high = np.clip(np.ceil((points.max(axis=0) + reach) * FINER), 0, side)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def fill(
        self,
        outline: Array,
        colour: Sequence[float] | Array,
        *,
        alpha: float = 1.0,
        soft: float = 0.0,
        within: Array | None = None,
    ) -> None:
        """Fills an outline.

        Args:
            outline: ``(n, 2)``.
            colour: RGB, 0..255.
            alpha: Opacity.
            soft: Blur of the edge, in picture pixels.
            within: A second outline; nothing is painted outside it.
        """
        left, top, right, bottom = self._window(outline, soft)
        if right <= left or bottom <= top:
            return
        corner = np.array((left, top)) / FINER

        def mask(area: Array) -> NDArray[np.float32]:
            drawn = np.zeros((bottom - top, right - left), dtype=np.float32)
            cv2.fillPoly(drawn, [self._fixed(area - corner)], 1.0, shift=_SHIFT)
            return drawn

        opacity: NDArray[Any] = mask(outline)
        if soft:
            opacity = cv2.GaussianBlur(opacity, (0, 0), soft * FINER, borderType=cv2.BORDER_REPLICATE)
        if within is not None:
            opacity = opacity * mask(within)
        self._lay(opacity * alpha, np.asarray(colour, dtype=np.float32), slice(top, bottom), slice(left, right))

    def _lay(self, opacity: NDArray[Any], paint: NDArray[np.float32], rows: slice, columns: slice) -> None:
        below = self.pixels[rows, columns]
        below += opacity[..., None] * (paint - below)

    def stroke(
        self,
        line: Array,
        width: float | Array,
        colour: Sequence[float] | Array,
        *,
        alpha: float = 1.0,
        soft: float = 0.0,
    ) -> None:
        """Paints a line ``(n, 2)`` whose width in pixels may differ from point to point."""
        self.fill(ribbon(line, width), colour, alpha=alpha, soft=soft)

    def meshes(self, surfaces: Sequence[Surface], *, smooth: float) -> None:
        """Paints surfaces together, the farthest cells first.

        Args:
            surfaces: What to paint.
            smooth: Blur of the colours inside the painted area, in picture pixels.
        """
        quads = np.concatenate([_cells(surface.points) for surface in surfaces])
        nearness = np.concatenate([_cells(surface.depth[..., None]) for surface in surfaces]).mean(axis=(1, 2))
        paints = np.concatenate([_cells(surface.colours) for surface in surfaces]).mean(axis=1)
        diagonal, other = quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]
        shown = diagonal[:, 0] * other[:, 1] - diagonal[:, 1] * other[:, 0] > 0
        shown |= np.concatenate([np.full(len(_cells(s.points)), s.both_sides) for s in surfaces])
        facing = np.flatnonzero(shown)
        order = facing[np.argsort(nearness[facing])]
        # The fourth channel is the mask of what is painted.
        left, top, right, bottom = self._window(quads.reshape(-1, 2), smooth)
        layer = np.zeros((bottom - top, right - left, 4), dtype=np.float32)
        corner = np.array((left, top)) / FINER
        values = np.concatenate([paints[order], np.ones((len(order), 1))], axis=1).tolist()
        for quad, value in zip(self._fixed(quads[order] - corner), values, strict=True):
            cv2.fillConvexPoly(layer, quad, value, shift=_SHIFT)
        blurred = cv2.GaussianBlur(layer, (0, 0), smooth * FINER)
        # Dividing by the blurred mask keeps the colours of the outside from bleeding in at the silhouette.
        paint = (blurred[..., :3] / np.maximum(blurred[..., 3:], 1e-3)).astype(np.float32)
        self._lay(layer[..., 3], paint, slice(top, bottom), slice(left, right))

    def picture(self) -> NDArray[np.float32]:
        """The painting averaged down, ``(size, size, 3)``, RGB in 0..255."""
        small = cv2.resize(self.pixels, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.asarray(small, dtype=np.float32)


def ribbon(line: Array, width: float | Array) -> Array:
    """The outline of a line ``(n, 2)`` drawn with a brush of that width (one number, or one per point)."""
    tangent = np.gradient(line, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    half = np.broadcast_to(np.asarray(width, dtype=np.float64) / 2, (len(line),))[:, None]
    return np.concatenate([line + normal * half, (line - normal * half)[::-1]])


def ellipse(centre: Array, across: Array, down: Array, steps: int = 32) -> Array:
    """An ellipse spanned by two half axes, in the space (2D or 3D) of its arguments, ``(steps, d)``."""
    angle = np.linspace(0, 2 * np.pi, steps, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(angle) * across + np.sin(angle) * down)


def closed_contour(first: Array, second: Array) -> Array:
    """The outline of a feature with two corners: a smooth curve there, and a smooth curve back."""
    return np.concatenate([smooth_curve(first)[:-1], smooth_curve(second)[:-1]])


def normals(turned: Array) -> Array:
    """Unit normals, pointing outwards, of a surface laid out as a :class:`Surface` is, ``(r, c, 3)``."""
    normal = np.cross(np.gradient(turned, axis=1), np.gradient(turned, axis=0))
    return np.asarray(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9))
