"""What a landmark scheme is; the schemes themselves are data (see :mod:`veilmark.landmarks.published_schemes`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scheme:
    """A named set of ``k`` facial landmarks.

    Attributes:
        name: Name by which files and configs refer to the scheme.
        components: Facial component to its point indices, in drawing order. Every point is in exactly one.
        closed: Components whose contour returns to its first point.
        mirror: For each point, the index of the point that takes its place in the mirrored face, ``(k,)``.
        inter_ocular: The two outer eye corners, whose distance normalises the inter-ocular NME.
        left_eye: Points whose mean is the left pupil (the subject's right eye, on the picture's left).
        right_eye: Points whose mean is the right pupil.
    """

    name: str
    components: dict[str, tuple[int, ...]]
    closed: frozenset[str]
    mirror: tuple[int, ...]
    inter_ocular: tuple[int, int]
    left_eye: tuple[int, ...]
    right_eye: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.mirror)

    @cached_property
    def mirror_index(self) -> NDArray[np.int64]:
        """The mirror order as an index array, ``(k,)``."""
        return np.asarray(self.mirror, dtype=np.int64)

    @cached_property
    def component_of(self) -> NDArray[np.int64]:
        """For each point, the position of its component in ``components``, ``(k,)``."""
        index = np.empty(len(self), dtype=np.int64)
        for position, members in enumerate(self.components.values()):
            index[list(members)] = position
        return index

    def mirror_points(self, points: NDArray[np.floating], width: float) -> NDArray[np.floating]:
        """Points of the horizontally mirrored picture, with left and right names swapped.

        Args:
            points: ``(..., k, 2)`` in pixels, corner origin.
            width: Width of the picture in pixels.

        Returns:
            Points of the same shape and dtype.
        """
        mirrored = np.array(points[..., self.mirror_index, :])
        mirrored[..., 0] = width - mirrored[..., 0]
        return mirrored
