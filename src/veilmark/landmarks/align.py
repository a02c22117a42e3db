"""Geometry of landmarks: the similarity between two shapes, and how far a head is turned."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from veilmark.run.errors import ConfigError, DataError

# Points 17 to 67 of ibug68 on the neutral synthetic head (veilmark.faces.face_shape.Head of Identity() and
# Expression(), rounded, left and right alike): x to the picture's right, y down, z towards the viewer, and half
# a face width is 1.
_MEAN_FACE = np.array(
    [
        (-0.800, -0.215, -0.240),
        (-0.670, -0.315, -0.111),
        (-0.520, -0.360, -0.021),
        (-0.350, -0.345, 0.053),
        (-0.190, -0.305, 0.090),
        (0.190, -0.305, 0.090),
        (0.350, -0.345, 0.053),
        (0.520, -0.360, -0.021),
        (0.670, -0.315, -0.111),
        (0.800, -0.215, -0.240),
        (0.000, 0.000, 0.130),
        (0.000, 0.173, 0.219),
        (0.000, 0.347, 0.322),
        (0.000, 0.520, 0.436),
        (-0.195, 0.575, 0.243),
        (-0.098, 0.610, 0.264),
        (0.000, 0.635, 0.177),
        (0.098, 0.610, 0.264),
        (0.195, 0.575, 0.243),
        (-0.650, 0.000, -0.186),
        (-0.525, -0.094, -0.115),
        (-0.370, -0.098, -0.052),
        (-0.255, 0.022, -0.021),
        (-0.365, 0.064, -0.056),
        (-0.525, 0.066, -0.118),
        (0.255, 0.022, -0.021),
        (0.370, -0.098, -0.052),
        (0.525, -0.094, -0.115),
        (0.650, 0.000, -0.186),
        (0.525, 0.066, -0.118),
        (0.365, 0.064, -0.056),
        (-0.345, 0.915, 0.071),
        (-0.200, 0.858, 0.124),
        (-0.083, 0.835, 0.146),
        (0.000, 0.850, 0.156),
        (0.083, 0.835, 0.146),
        (0.200, 0.858, 0.124),
        (0.345, 0.915, 0.071),
        (0.200, 0.990, 0.132),
        (0.083, 1.035, 0.158),
        (0.000, 1.046, 0.164),
        (-0.083, 1.035, 0.158),
        (-0.200, 0.990, 0.132),
        (-0.297, 0.915, 0.093),
        (-0.132, 0.929, 0.153),
        (0.000, 0.930, 0.170),
        (0.132, 0.929, 0.153),
        (0.297, 0.915, 0.093),
        (0.132, 0.929, 0.153),
        (0.000, 0.930, 0.170),
        (-0.132, 0.929, 0.153),
    ]
)
_JAW = 17


def similarity(source: ArrayLike, target: ArrayLike) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """The scale, rotation and translation that bring one shape closest to another, in least squares.

    The closed form of Umeyama (1991, "Least-squares estimation of transformation parameters between two point
    patterns") in the plane, without mirroring: ``target ~ scale * source @ rotation.T + translation``.

    Args:
        source: ``(k, 2)`` points, in any unit.
        target: ``(k, 2)`` points, in any unit.

    Returns:
        The scale, 0 or more; the rotation ``(2, 2)``; the translation ``(2,)`` in units of the target. Where all
        source points lie in one place no turn can be told: scale 1, no rotation.

    Raises:
        ValueError: If the shapes are not ``(k, 2)`` twice, or a coordinate is not finite.
    """
    a, b = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or len(a) == 0:
        raise ValueError(f"source points {a.shape} and target points {b.shape} must both be (k, 2)")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("source and target points must be finite numbers")
    from_a, from_b = a - a.mean(axis=0), b - b.mean(axis=0)
    spread = float((from_a**2).sum())
    # The turn and the scale as one complex number: cos and sin, times the scale.
    along = float((from_a * from_b).sum())
    across = float((from_a[:, 0] * from_b[:, 1] - from_a[:, 1] * from_b[:, 0]).sum())
    length = float(np.hypot(along, across))
    scale = length / spread if spread > 0 else 1.0
    cos, sin = (along / length, across / length) if length > 0 else (1.0, 0.0)
    rotation = np.array([[cos, -sin], [sin, cos]])
    return scale, rotation, b.mean(axis=0) - scale * rotation @ a.mean(axis=0)


def yaw_degrees(points: ArrayLike, scheme_name: str = "ibug68") -> NDArray[np.float64]:
    """How far heads are turned to the side, from their landmarks alone.

    A mean face in space is fitted by least squares under scaled orthographic projection (the first step of
    POSIT: DeMenthon and Davis 1995, "Model-based object pose in 25 lines of code"), and the nearest rotation
    taken. The mean face is that of the neutral synthetic head, so no one's measurements are in it. The jaw is
    left out: its points slide along the visible outline as the head turns and are no fixed points in space.
    Scale, place and in-plane rotation of the points do not change the result. Faces that differ from the mean
    face give yaws that are off by some degrees: good for saying which pairs differ in pose, not for measuring
    a pose.

    Args:
        points: ``(n, k, 2)`` with y down, in any unit; ``n`` may be 0.
        scheme_name: Name of the landmark scheme.

    Returns:
        ``(n,)`` degrees between -180 and 180; above 0, the nose points to the picture's right.

    Raises:
        ConfigError: If the scheme is not ``ibug68``, the only one with a mean face in space.
        DataError: If a face's points are not finite, or lie in one place; the message names its row.
        ValueError: If the points are not ``(n, 68, 2)``.
    """
    if scheme_name != "ibug68":
        raise ConfigError(f"no yaw from landmark scheme {scheme_name!r}: only ibug68 has a mean face in space")
    flat = np.asarray(points, dtype=np.float64)
    count = _JAW + len(_MEAN_FACE)
    if flat.ndim != 3 or flat.shape[1:] != (count, 2):
        raise ValueError(f"points have shape {flat.shape}, expected (n, {count}, 2) for ibug68")
    inner = flat[:, _JAW:]
    usable = np.isfinite(inner).all(axis=(1, 2)) & (inner.max(axis=1) > inner.min(axis=1)).any(axis=1)
    if not usable.all():
        raise DataError(
            f"face row {int(np.argmin(usable))} (counted from 0) has no yaw: its points are not finite or all "
            "lie in one place; correct or leave out the face"
        )
    inner = inner - inner.mean(axis=1, keepdims=True)
    projection = np.swapaxes(inner, 1, 2) @ np.linalg.pinv(_MEAN_FACE - _MEAN_FACE.mean(axis=0)).T
    left, _, right = np.linalg.svd(projection, full_matrices=False)
    rows = left @ right
    # The third row of the rotation: the viewer's axis in the head's, untouched by a turn within the picture.
    viewer = np.cross(rows[:, 0], rows[:, 1])
    return np.asarray(np.degrees(np.arctan2(-viewer[:, 0], viewer[:, 2])))
