"""Warps of face crops: one shape's picture moved onto another shape, and randomly warped copies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay

_TURN = math.radians(8)
_ZOOM = 0.08
_SHIFT = 0.03
_SQUEEZE = 0.2
_WAVES = 4
_WAVE_SLOPE = 0.07
"""Limits of a warped copy: radians, logarithm of the scale, shares of the side, and the steepest change per wave."""


def _pixel_centres(height: int, width: int) -> NDArray[np.float64]:
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y], axis=-1)


def _sampled(image: NDArray[np.uint8], places: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The picture's colours at ``(h, w, 2)`` corner-origin places; OpenCV counts from pixel centres."""
    maps = np.ascontiguousarray(places - 0.5, dtype=np.float32)
    sampled = cv2.remap(image, maps, np.empty(0), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, dtype=np.uint8)


def piecewise_affine(image: NDArray[np.uint8], source_points: ArrayLike, target_points: ArrayLike) -> NDArray[np.uint8]:
    """Moves a picture's pixels so that its landmarks land on others.

    The target points, the corners and the middles of the edges are triangulated (Delaunay); each triangle is
    filled from its place in the source by the affine map between the two. Corners and middles of edges stay
    where they are. Where a triangle of the source is turned over, as on the far side of a turned head, the
    picture folds. Target points in the same place count as one.

    Args:
        image: ``(h, w, 3)`` uint8.
        source_points: ``(k, 2)`` landmarks of the picture in its pixels, corner origin; ``k`` may be 0.
        target_points: ``(k, 2)`` where they are to land, in the same pixels.

    Returns:
        ``(h, w, 3)`` uint8; the picture itself, bit by bit, where the points are the same.

    Raises:
        ValueError: If the points are not ``(k, 2)`` twice, or a coordinate is not finite.
    """
    source, target = (np.asarray(points, dtype=np.float64) for points in (source_points, target_points))
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(f"source points {source.shape} and target points {target.shape} must both be (k, 2)")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("source and target points must be finite numbers")
    height, width = image.shape[:2]
    x, y = np.meshgrid([0, width / 2, width], [0, height / 2, height])
    border = np.delete(np.stack([x.ravel(), y.ravel()], axis=1), 4, axis=0)
    mesh = Delaunay(np.concatenate([border, target]))
    # Displacements, not places, are interpolated: they are exactly 0 where nothing moves.
    displacement = np.concatenate([np.zeros_like(border), source - target])
    centres = _pixel_centres(height, width)
    return _sampled(image, centres + LinearNDInterpolator(mesh, displacement)(centres))


@dataclass(frozen=True)
class Move:
    """A smooth, invertible warp of a picture: a similarity, a sideways squeeze and a few long waves.

    Lengths are shares of ``side``. It is written from the copy back to the source, because pixels are fetched.

    Attributes:
        side: Side of the picture in pixels.
        linear: ``(2, 2)`` rotation and scale about the centre, from the copy to the source.
        shift: ``(2,)`` the centre's displacement.
        squeeze: How far the middle moves to the side while the left and right edges stay, as the middle of a
            face does when it turns; under 0.5 in size, or it would fold.
        waves: ``(m, 2)`` cycles over the side of each wave, down and across the picture.
        phases: ``(m,)`` radians.
        amplitudes: ``(m, 2)`` displacements.
    """

    side: int
    linear: NDArray[np.float64]
    shift: NDArray[np.float64]
    squeeze: float
    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    amplitudes: NDArray[np.float64]

    @classmethod
    def draw(cls, side: int, rng: np.random.Generator) -> Move:
        """A random move: turned by up to 8 degrees, scaled by up to 8 %, squeezed and waved.

        Args:
            side: Side of the picture in pixels.
            rng: Source of all randomness.
        """
        angle, zoom = rng.uniform(-_TURN, _TURN), math.exp(rng.uniform(-_ZOOM, _ZOOM))
        linear = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        waves = rng.uniform(-1.2, 1.2, (_WAVES, 2))
        steepness = 2 * math.pi * np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), 0.3)
        directions = rng.normal(size=(_WAVES, 2))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return cls(
            side=side,
            linear=linear,
            shift=rng.uniform(-_SHIFT, _SHIFT, 2),
            squeeze=float(rng.uniform(-_SQUEEZE, _SQUEEZE)),
            waves=waves,
            phases=rng.uniform(0, 2 * math.pi, _WAVES),
            amplitudes=_WAVE_SLOPE / steepness * directions,
        )

    def _bend(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """The part that is no similarity: displacements of ``(..., 2)`` places about the centre, in shares."""
        bent = np.sin(2 * math.pi * places @ self.waves.T + self.phases) @ self.amplitudes
        across = np.clip(2 * places[..., 0], -1, 1)
        bent[..., 0] += self.squeeze / 2 * (1 - across**2)
        return np.asarray(bent)

    def to_source(self, points: ArrayLike) -> NDArray[np.float64]:
        """Where points ``(..., 2)`` of the copy come from, in pixels of the source, corner origin."""
        places = np.asarray(points, dtype=np.float64) / self.side - 0.5
        return ((places + self._bend(places)) @ self.linear.T + self.shift + 0.5) * self.side

    def to_copy(self, points: ArrayLike) -> NDArray[np.float64]:
        """Where points ``(..., 2)`` of the source go, in pixels of the copy: the inverse of :meth:`to_source`."""
        straight = (np.asarray(points, dtype=np.float64) / self.side - 0.5 - self.shift) @ np.linalg.inv(self.linear).T
        places = straight
        # The bend is less steep than 0.7, so each round leaves less than 0.7 of the error: 1e-10 after 64.
        for _ in range(64):
            places = straight - self._bend(places)
        return (places + 0.5) * self.side

    def warp(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The warped copy of a picture ``(side, side, 3)`` uint8; outside it the nearest edge pixel is repeated."""
        return _sampled(image, self.to_source(_pixel_centres(self.side, self.side)))


def warp_copy(
    image: NDArray[np.uint8], points: ArrayLike | None, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float64] | None, Move]:
    """A randomly warped copy of a face crop: the second of a pair, where a set does not say who is who.

    Args:
        image: ``(side, side, 3)`` uint8.
        points: ``(k, 2)`` landmarks in pixels of the crop, corner origin, or None.
        rng: Source of all randomness.

    Returns:
        The copy, its landmarks (None if there were none), and the move that made it.

    Raises:
        ValueError: If the picture is not square.
    """
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"a crop to be warped must be square, not {image.shape[1]} x {image.shape[0]}")
    move = Move.draw(image.shape[0], rng)
    return move.warp(image), None if points is None else move.to_copy(points), move
