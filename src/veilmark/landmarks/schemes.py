"""Landmark schemes: what each point of a set is called, mirrors to, and is drawn with.

A scheme is data. Code that needs the eyes, the mirror order or the outline of a mouth asks the scheme and
never writes an index of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from veilmark.run.errors import ConfigError


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


def _ibug68() -> Scheme:
    mirror = list(range(68))

    def swap(left: list[int], right: list[int]) -> None:
        for a, b in zip(left, right, strict=True):
            mirror[a], mirror[b] = b, a

    swap(list(range(0, 8)), list(range(16, 8, -1)))
    swap(list(range(17, 22)), list(range(26, 21, -1)))
    swap([31, 32], [35, 34])
    swap([36, 37, 38, 39, 40, 41], [45, 44, 43, 42, 47, 46])
    swap([48, 49, 50, 58, 59], [54, 53, 52, 56, 55])
    swap([60, 61, 67], [64, 63, 65])
    return Scheme(
        name="ibug68",
        components={
            "jaw": tuple(range(0, 17)),
            "left_brow": tuple(range(17, 22)),
            "right_brow": tuple(range(22, 27)),
            "nose_bridge": tuple(range(27, 31)),
            "nose_base": tuple(range(31, 36)),
            "left_eye": tuple(range(36, 42)),
            "right_eye": tuple(range(42, 48)),
            "outer_lip": tuple(range(48, 60)),
            "inner_lip": tuple(range(60, 68)),
        },
        closed=frozenset({"left_eye", "right_eye", "outer_lip", "inner_lip"}),
        mirror=tuple(mirror),
        inter_ocular=(36, 45),
        left_eye=tuple(range(36, 42)),
        right_eye=tuple(range(42, 48)),
    )


SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (_ibug68(),)}


def get_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ConfigError: If there is none; the message lists the names.
    """
    if name not in SCHEMES:
        raise ConfigError(f"unknown landmark scheme {name!r}; known: {', '.join(sorted(SCHEMES))}")
    return SCHEMES[name]
