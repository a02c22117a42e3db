"""The normalised mean error of a face: distances between points over a length of the face, in percent."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from veilmark.landmarks.scheme import Scheme
from veilmark.run.errors import DataError

Normaliser = Literal["inter_ocular", "inter_pupil", "box", "given_box", "given_diagonal"]
"""The lengths that an NME may be divided by; see :func:`normalisers`."""


def _length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    # Not np.linalg.norm or np.hypot: plain products and a root round alike for every batch size.
    return np.sqrt(vectors[..., 0] * vectors[..., 0] + vectors[..., 1] * vectors[..., 1])


def refuse_first(bad: NDArray[np.bool_], values: NDArray[np.float64], name: str, remedy: str) -> None:
    """Refuses values by the first that is bad.

    Args:
        bad: ``(n,)`` or ``(n, k)``.
        values: Of the same shape, in pixels.
        name: What the values are, for the message.
        remedy: What to do about it, for the message.

    Raises:
        DataError: If any is bad; the message names its row and point.
    """
    found = np.argwhere(bad)
    if len(found):
        place = ", ".join(f"{axis} {i}" for axis, i in zip(("face row", "point"), found[0], strict=False))
        raise DataError(f"{place} (counted from 0): {name} is {values[tuple(found[0])]:g} px; {remedy}")


def normalisers(
    points: ArrayLike, scheme: Scheme, kind: Normaliser, boxes: ArrayLike | None = None
) -> NDArray[np.float64]:
    """The length that divides each face's errors.

    Args:
        points: True points, ``(n, k, 2)`` in pixels.
        scheme: Scheme of the points; names the eyes.
        kind: ``inter_ocular``: between the outer eye corners. ``inter_pupil``: between the means of the eyes'
            points. ``box``: square root of width x height of the true points' tight box, which unlike the
            other two does not collapse in profile. ``given_box``: the same of the box that the set gives for
            the face. ``given_diagonal``: the diagonal of that box.
        boxes: ``(n, 4)`` xyxy in the same pixels, the set's own boxes: needed for the last two kinds.

    Returns:
        ``(n,)`` float64 in pixels, all above 0.

    Raises:
        DataError: If a face's length is 0 or not finite; the message names its row.
        ValueError: If ``kind`` or the shape is unknown, or ``boxes`` are needed and not there.
    """
    true = np.asarray(points, dtype=np.float64)
    if true.ndim != 3 or true.shape[1:] != (len(scheme), 2):
        raise ValueError(f"points have shape {true.shape}, expected (n, {len(scheme)}, 2) for {scheme.name}")
    if kind == "inter_ocular":
        first, second = scheme.inter_ocular
        lengths = _length(true[:, second] - true[:, first])
    elif kind == "inter_pupil":
        lengths = _length(true[:, scheme.right_eye].mean(axis=1) - true[:, scheme.left_eye].mean(axis=1))
    elif kind == "box":
        extent = true.max(axis=1) - true.min(axis=1)
        lengths = np.sqrt(extent[:, 0] * extent[:, 1])
    elif kind in ("given_box", "given_diagonal"):
        sides = _sides(boxes, len(true), kind)
        lengths = np.sqrt(sides[:, 0] * sides[:, 1]) if kind == "given_box" else _length(sides)
    else:
        raise ValueError(f"unknown normaliser {kind!r}; known: {', '.join(get_args(Normaliser))}")
    remedy = "correct or leave out its true points, or choose another normaliser"
    refuse_first(~(np.isfinite(lengths) & (lengths > 0)), lengths, f"its {kind} length", remedy)
    return lengths


def _sides(boxes: ArrayLike | None, n: int, kind: str) -> NDArray[np.float64]:
    """Widths and heights of given boxes, ``(n, 2)``; an inverted box has sides of 0."""
    given = np.asarray(np.zeros((0, 4)) if boxes is None else boxes, dtype=np.float64)
    if given.shape != (n, 4):
        raise ValueError(f"{kind} needs the set's boxes, ({n}, 4), one per face; got {given.shape}")
    sides: NDArray[np.float64] = np.maximum(given[:, 2:] - given[:, :2], 0)
    return sides


def point_errors(predicted: ArrayLike, true: ArrayLike) -> NDArray[np.float64]:
    """Distances between predicted and true points, both ``(n, k, 2)`` in the same pixels.

    Returns:
        ``(n, k)`` float64 in pixels.

    Raises:
        DataError: If a coordinate is not finite; the message names the face's row and point.
        ValueError: If the shapes differ.
    """
    a, b = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 3 or a.shape[-1] != 2:
        raise ValueError(f"predicted points {a.shape} and true points {b.shape} must both be (n, k, 2)")
    errors = _length(a - b)
    refuse_first(~np.isfinite(errors), errors, "its error", "coordinates must be finite numbers")
    return errors


def visible_sums(values: NDArray[np.float64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums over each face's visible points, ``(n,)``, rounded once."""
    return np.array([math.fsum(row[seen]) for row, seen in zip(values, visible, strict=True)], dtype=np.float64)


def which_visible(visible: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The points that count, ``(n, k)``: all of them where nothing is said.

    Raises:
        DataError: If a face has no visible point; the message names its row.
        ValueError: If ``visible`` is not of this shape.
    """
    if visible is None:
        return np.ones(shape, dtype=np.bool_)
    chosen = np.asarray(visible, dtype=np.bool_)
    if chosen.shape != shape:
        raise ValueError(f"visible has shape {chosen.shape}, expected {shape}")
    empty = np.flatnonzero(~chosen.any(axis=1))
    if len(empty):
        raise DataError(f"face row {empty[0]} (counted from 0) has no visible point; leave the face out")
    return chosen


def face_nme(
    predicted: ArrayLike,
    true: ArrayLike,
    scheme: Scheme,
    kind: Normaliser = "inter_ocular",
    *,
    boxes: ArrayLike | None = None,
    visible: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Normalised mean error of each face: ``(n, k, 2)`` points twice to ``(n,)`` percent.

    Args:
        predicted: ``(n, k, 2)`` in pixels.
        true: ``(n, k, 2)`` in the same pixels.
        scheme: Scheme of the points.
        kind: The length that divides the errors; see :func:`normalisers`.
        boxes: ``(n, 4)`` the set's own boxes, for the kinds that need them.
        visible: ``(n, k)`` bool: the points over which the mean is taken; all by default.

    Raises:
        DataError: See :func:`normalisers` and :func:`point_errors`; or if a face has no visible point.
        ValueError: If shapes disagree.
    """
    errors = point_errors(predicted, true)
    chosen = which_visible(visible, errors.shape)
    means = visible_sums(errors, chosen) / chosen.sum(axis=1)
    percent: NDArray[np.float64] = 100 * means / normalisers(true, scheme, kind, boxes)
    return percent
