"""Steady landmarks on video: the One-Euro filter, and jitter to judge it by.

The filter is that of Casiez, Roussel and Vogel (CHI 2012): a low-pass filter whose cutoff rises with speed,
so that a still face does not tremble and a moving one is not left behind.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


class OneEuroFilter:
    """Smooths the points of one face, frame after frame.

    Each point has one speed, the length of its velocity, and so one cutoff for x and y: the result does not
    depend on how the picture is turned.
    """

    def __init__(self, min_cutoff: float = 1.0, beta: float = 0.05, derivative_cutoff: float = 1.0) -> None:
        """Starts without a past.

        Args:
            min_cutoff: Cutoff in Hz of a point at rest, above 0; lower is steadier.
            beta: Rise of the cutoff in Hz per px/s of speed, 0 or more; higher lags less.
            derivative_cutoff: Cutoff in Hz of the speed estimate, above 0.

        Raises:
            ValueError: If a value is out of its range.
        """
        if not (min_cutoff > 0 and beta >= 0 and derivative_cutoff > 0):
            raise ValueError(
                f"min_cutoff {min_cutoff:g}, beta {beta:g}, derivative_cutoff {derivative_cutoff:g}: "
                "cutoffs must be above 0 Hz and beta 0 or more"
            )
        self.min_cutoff = min_cutoff
        self.beta = beta
        self.derivative_cutoff = derivative_cutoff
        self._seconds = -math.inf
        self._points: NDArray[np.float64] | None = None
        self._velocity: NDArray[np.float64] | None = None

    def update(self, points: ArrayLike, seconds: float) -> NDArray[np.float64]:
        """The smoothed points of the next frame.

        Args:
            points: ``(..., 2)`` in pixels, of the same shape in every frame.
            seconds: Time of the frame, later than that of the frame before.

        Returns:
            Smoothed points of the same shape; the first frame's are returned as they came.

        Raises:
            ValueError: If the time does not advance, or the shape changes.
        """
        new = np.array(points, dtype=np.float64)
        if not seconds > self._seconds:
            raise ValueError(f"frame at {seconds:g} s follows one at {self._seconds:g} s; times must increase")
        if self._points is None or self._velocity is None:
            self._points, self._velocity = new, np.zeros_like(new)
        else:
            if new.shape != self._points.shape:
                raise ValueError(f"points have shape {new.shape}, in the frame before {self._points.shape}")
            step = seconds - self._seconds
            velocity = (new - self._points) / step
            weight = _weight(np.float64(self.derivative_cutoff), step)
            self._velocity = self._velocity + weight * (velocity - self._velocity)
            speed = np.linalg.norm(self._velocity, axis=-1, keepdims=True)
            weight = _weight(self.min_cutoff + self.beta * speed, step)
            self._points = self._points + weight * (new - self._points)
        self._seconds = seconds
        return self._points.copy()


def _weight(cutoff: NDArray[np.float64] | np.float64, step: float) -> NDArray[np.float64] | np.float64:
    """Share of the new value in an exponential filter with that cutoff in Hz, after ``step`` seconds."""
    turn = 2 * math.pi * cutoff * step
    return turn / (turn + 1)


def jitter(track: ArrayLike) -> float:
    """Mean length of the points' second differences over time, in pixels per frame squared.

    A face at rest or in steady motion has none.

    Args:
        track: ``(t, k, 2)`` points of one face in pixels, in t frames at equal steps, t at least 3.

    Raises:
        ValueError: If there are fewer than three frames.
    """
    points = np.asarray(track, dtype=np.float64)
    if points.ndim != 3 or points.shape[0] < 3:
        raise ValueError(f"a track of shape {points.shape} has no jitter; expected (t, k, 2) with t of 3 or more")
    return float(np.linalg.norm(np.diff(points, n=2, axis=0), axis=-1).mean())
