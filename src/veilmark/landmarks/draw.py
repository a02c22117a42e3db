"""Landmarks drawn on a picture: contours, points, and circles as wide as the expected error."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.landmarks.result import Landmarks
from veilmark.landmarks.schemes import get_scheme

LEGIBLE_FACE = 200
"""Side in pixels that the smallest face gets by enlarging the picture, where no scale is asked for."""

LARGEST_SIDE = 4096
"""Enlarging stops before a side of the picture exceeds this many pixels."""

_OKABE_ITO = (
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermillion
)
_WHITE = (255, 255, 255)
_DARK = (20, 20, 20)
_SUBPIXEL_BITS = 5
_FAR = 1e5  # OpenCV's coordinates are 32-bit with the sub-pixel bits inside


def landmark_colours(scheme: str = "ibug68") -> dict[str, tuple[int, int, int]]:
    """The colour of each facial component, from Okabe and Ito's palette for colour-blind readers.

    Args:
        scheme: Name of the landmark scheme.

    Returns:
        Component name to RGB in 0..255. A component and its mirror (``left_eye``, ``right_eye``) share one.
    """
    colours: dict[str, tuple[int, int, int]] = {}
    families: dict[str, tuple[int, int, int]] = {}
    for component in get_scheme(scheme).components:
        family = component.removeprefix("left_").removeprefix("right_")
        colours[component] = families.setdefault(family, _OKABE_ITO[len(families) % len(_OKABE_ITO)])
    return colours


def draw_landmarks(
    image: NDArray[np.uint8],
    result: Landmarks,
    *,
    scale: int | None = None,
    errors: bool = True,
    boxes: bool = True,
) -> NDArray[np.uint8]:
    """A copy of the picture with its landmarks drawn in.

    Args:
        image: ``(h, w, 3)`` uint8 RGB; not modified.
        result: Landmarks in this picture's pixels.
        scale: Whole factor by which the copy is enlarged (bicubic). None: the smallest that makes every face
            200 px tall or wide, as far as no side of the picture exceeds 4096 px.
        errors: Whether each point gets a translucent disc whose radius is its expected error.
        boxes: Whether the face boxes are drawn.

    Returns:
        ``(h * scale, w * scale, 3)`` uint8 RGB.

    Raises:
        ValueError: If the picture is not ``(h, w, 3)`` uint8, or the scale is below 1.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} of shape {image.shape}; expected uint8 (h, w, 3)")
    # A face that was fitted far too large must not make lines wider than the picture.
    faces = np.minimum(np.ptp(result.points, axis=1).max(axis=1), max(image.shape)).astype(np.float64)
    factor = _whole_factor(image.shape, faces) if scale is None else scale
    if factor < 1:
        raise ValueError(f"scale {factor} is below 1")
    height, width = image.shape[:2]
    enlarged = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
    canvas = np.array(enlarged, dtype=np.uint8)
    for face, size in enumerate(faces * factor):
        points = result.points[face].astype(np.float64) * factor
        if errors:
            radii = result.expected_error[face].astype(np.float64) * factor
            canvas = _draw_errors(canvas, points, radii, result.scheme)
        if boxes:
            x0, y0, x1, y1 = result.boxes[face].astype(np.float64) * factor
            corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)
            _draw_path(canvas, corners, _WHITE, _thickness(size), closed=True)
        _draw_face(canvas, points, size, result.scheme)
    return canvas


def _whole_factor(shape: tuple[int, ...], faces: NDArray[np.float64]) -> int:
    if not len(faces):
        return 1
    wanted = math.ceil(LEGIBLE_FACE / max(float(faces.min()), 1.0))
    return max(1, min(wanted, LARGEST_SIDE // max(shape[:2])))


def _thickness(face_size: float) -> int:
    return max(1, round(face_size / 300))


def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Corner-origin pixels as OpenCV's fixed-point pixels, which count from the first pixel's centre."""
    fixed: NDArray[np.float64] = np.round((np.clip(points, -_FAR, _FAR) - 0.5) * 2**_SUBPIXEL_BITS)
    return fixed.astype(np.int32)


def _draw_path(
    canvas: NDArray[np.uint8],
    points: NDArray[np.float64],
    colour: tuple[int, int, int],
    thickness: int,
    *,
    closed: bool,
) -> None:
    cv2.polylines(canvas, [_fixed(points)], closed, colour, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_disc(
    canvas: NDArray[np.uint8], centre: NDArray[np.int32], radius: float, colour: tuple[int, int, int]
) -> None:
    # OpenCV's filled circles reach half a pixel too far.
    fixed_radius = round(max(0.0, min(radius, _FAR) - 0.5) * 2**_SUBPIXEL_BITS)
    x, y = (int(v) for v in centre)
    cv2.circle(canvas, (x, y), fixed_radius, colour, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_errors(
    canvas: NDArray[np.uint8], points: NDArray[np.float64], radii: NDArray[np.float64], scheme: str
) -> NDArray[np.uint8]:
    # All discs go on one layer that is blended once: where discs overlap, the picture still shines through.
    layer = canvas.copy()
    centres = _fixed(points)
    for component, colour in landmark_colours(scheme).items():
        for i in get_scheme(scheme).components[component]:
            _draw_disc(layer, centres[i], float(radii[i]), colour)
    return np.asarray(cv2.addWeighted(layer, 0.25, canvas, 0.75, 0), dtype=np.uint8)


def _draw_face(canvas: NDArray[np.uint8], points: NDArray[np.float64], size: float, scheme: str) -> None:
    definition = get_scheme(scheme)
    radius = max(2.3, size / 110)
    for component, colour in landmark_colours(scheme).items():
        members = points[list(definition.components[component])]
        _draw_path(canvas, members, colour, _thickness(size), closed=component in definition.closed)
        for centre in _fixed(members):
            # A dark rim keeps the light colours visible on light skin.
            _draw_disc(canvas, centre, radius + 0.8, _DARK)
            _draw_disc(canvas, centre, radius, colour)
