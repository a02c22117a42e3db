"""The one result type: the landmarks of the faces in one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmark.landmarks.schemes import Scheme, get_scheme


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of ``n`` faces in one picture, validated when made.

    Attributes:
        points: ``(n, k, 2)`` float32, x and y in pixels of the original image; pixel (0, 0) covers
            [0, 1) x [0, 1), so its centre is (0.5, 0.5).
        expected_error: ``(n, k)`` float32, expected distance from the true point, in the same pixels.
        trust: ``(n,)`` float32 in [0, 1]: is this a face at all, and does the fit make sense.
        boxes: ``(n, 4)`` float32, the face boxes that were used, ``x0, y0, x1, y1``.
        scheme: Name of the landmark scheme, which fixes ``k``.

    Raises:
        ValueError: If shapes disagree, a value is not finite, an error is negative, or trust leaves [0, 1].
    """

    points: NDArray[np.float32]
    expected_error: NDArray[np.float32]
    trust: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scheme: str = "ibug68"

    def __post_init__(self) -> None:
        k = len(get_scheme(self.scheme))
        for name in ("points", "expected_error", "trust", "boxes"):
            array = np.asarray(getattr(self, name), dtype=np.float32)
            object.__setattr__(self, name, array)
        n = self.points.shape[0] if self.points.ndim else 0
        expected = {"points": (n, k, 2), "expected_error": (n, k), "trust": (n,), "boxes": (n, 4)}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape} for scheme {self.scheme}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds a value that is not finite")
        if (self.expected_error < 0).any():
            raise ValueError("expected_error holds a negative distance")
        if ((self.trust < 0) | (self.trust > 1)).any():
            raise ValueError("trust must lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.trust)

    @classmethod
    def empty(cls, scheme: str = "ibug68") -> Landmarks:
        """The result for a picture without a face."""
        k = len(get_scheme(scheme))

        def none(*shape: int) -> NDArray[np.float32]:
            return np.zeros((0, *shape), dtype=np.float32)

        return cls(none(k, 2), none(k), none(), none(4), scheme)

    @property
    def definition(self) -> Scheme:
        """The scheme itself."""
        return get_scheme(self.scheme)

    def select(self, index: Any) -> Landmarks:
        """The faces chosen by a numpy index, e.g. ``result.select(result.trust > 0.5)``."""
        return Landmarks(
            self.points[index], self.expected_error[index], self.trust[index], self.boxes[index], self.scheme
        )
