"""Degradation: how a high-resolution face becomes the small one that a far camera would have seen.

Evaluation uses :func:`shrink` alone, the plain area downsample. Training adds blur, other kernels, noise and
JPEG, drawn from a generator that the caller seeds.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIZES = (16, 24, 32, 48, 64, 128)
"""Face sizes in pixels of every published table: the side of the crop after degradation."""

_KERNELS = (cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR)


def shrink(face: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The plain area downsample: every pixel is the mean of the area that it covers.

    Args:
        face: ``(s, s, 3)`` uint8.
        size: Side of the result, at most ``s``.

    Returns:
        ``(size, size, 3)`` uint8.

    Raises:
        ValueError: If the face would have to be enlarged.
    """
    if size > face.shape[0]:
        raise ValueError(f"a {face.shape[0]} px face cannot be shrunk to {size} px")
    if size == face.shape[0]:
        return face
    return np.asarray(cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def degrade(face: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random degradation: half of the faces the plain area downsample, half with blur, noise and JPEG.

    Args:
        face: ``(s, s, 3)`` uint8.
        size: Side of the result, at most ``s``.
        rng: Source of all randomness.

    Returns:
        ``(size, size, 3)`` uint8.

    Raises:
        ValueError: If the face would have to be enlarged.
    """
    plain = shrink(face, size)
    if rng.random() < 0.5:
        return plain
    factor = face.shape[0] / size
    if rng.random() < 0.5:
        sigma = float(rng.uniform(0.2, 0.7)) * factor
        face = np.asarray(cv2.GaussianBlur(face, (0, 0), sigma), dtype=np.uint8)
    if rng.random() < 0.5:
        small = shrink(face, size)
    else:
        kernel = _KERNELS[int(rng.integers(len(_KERNELS)))]
        small = np.asarray(cv2.resize(face, (size, size), interpolation=kernel), dtype=np.uint8)
    if rng.random() < 0.4:
        noise = rng.normal(0, float(rng.uniform(1, 8)), small.shape)
        small = np.clip(np.round(small + noise), 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(40, 95))
        # OpenCV takes and gives BGR; in RGB the codec would weigh red as blue.
        _, code = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        small = np.ascontiguousarray(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), dtype=np.uint8)[..., ::-1])
    return small


def draw_size(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    """A face size for training, log-uniform: as many draws from 16 to 32 px as from 64 to 128."""
    low, high = sizes
    return int(np.clip(round(float(np.exp(rng.uniform(np.log(low * 0.9), np.log(high * 1.1))))), low, high))
