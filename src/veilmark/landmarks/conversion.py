"""Points of one landmark scheme as points of another, where every point of the other is among them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veilmark.run.errors import ConfigError

CONVERSIONS: dict[tuple[str, str], tuple[int, ...]] = {
    # Every second point of the jaw, the upper edge of each brow, and each eye without the middles of its lids.
    ("wflw98", "ibug68"): (
        *range(0, 33, 2),
        *range(33, 38),
        *range(42, 47),
        *range(51, 60),
        *(60, 61, 63, 64, 65, 67),
        *(68, 69, 71, 72, 73, 75),
        *range(76, 96),
    ),
}
"""For a scheme and another, the index in the first of every point of the second."""


def conversion(source: str, target: str) -> tuple[int, ...] | None:
    """The points of ``source`` that are those of ``target``, in its order; None where the schemes are one.

    Raises:
        ConfigError: If the scheme cannot be had from the other; the message names both.
    """
    if source == target:
        return None
    if (source, target) not in CONVERSIONS:
        known = ", ".join(f"{a} to {b}" for a, b in CONVERSIONS)
        raise ConfigError(
            f"points of {source} cannot be turned into points of {target} (known: {known}); "
            f"use a network of scheme {source}, or data annotated in {target}"
        )
    return CONVERSIONS[source, target]


def convert_points(points: NDArray[np.floating], source: str, target: str) -> NDArray[np.floating]:
    """Points of one scheme in another.

    Args:
        points: ``(..., k, 2)`` in any unit.
        source: Name of the points' scheme.
        target: Name of the wanted scheme.

    Returns:
        ``(..., m, 2)`` of the same dtype.

    Raises:
        ConfigError: If there is no such conversion; the message names both schemes.
    """
    chosen = conversion(source, target)
    return points if chosen is None else points[..., list(chosen), :]
