"""The cache of prepared faces: the surroundings of every face, decoded once, mapped into memory after.

One file of raw pixels and one table per set. Its name is a digest of what went in (names, sizes and dates of
the pictures, boxes, this format), so that changed data makes a new cache and a broken one is never reused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.crop import MARGIN, REFERENCE_SIZE
from veilmark.faces.datasets.base import Face
from veilmark.faces.images import ImageError, read_image

_FORMAT = 1

SURROUNDINGS = 3.0
"""Side of the kept square over the longer side of the box: room for every augmented crop."""


def _largest(size: int) -> float:
    """Boxes of more pixels are shrunk by a whole factor, so that they keep at least half as many.

    Args:
        size: Side of the largest crop that the cache is for.
    """
    return 2 * size / MARGIN


@dataclass(frozen=True)
class CachedFace:
    """A face's surroundings. Coordinates are pixels of ``image``, corner origin.

    Attributes:
        image: ``(h, w, 3)`` uint8 RGB.
        box: ``(4,)`` float32 xyxy.
        points: ``(k, 2)`` float32, or None.
        face: The entry of the data set.
        scale: Pixels of ``image`` per pixel of the picture, at most 1.
    """

    image: NDArray[np.uint8]
    box: NDArray[np.float32]
    points: NDArray[np.float32] | None
    face: Face
    scale: float = 1.0


def surroundings(
    image: NDArray[np.uint8], box: NDArray[np.floating], size: int = REFERENCE_SIZE
) -> tuple[NDArray[np.uint8], float, float, float]:
    """Cuts a face's surroundings out of its picture.

    Args:
        image: ``(h, w, 3)`` uint8 RGB.
        box: ``(4,)`` xyxy in its pixels.
        size: Side of the largest crop that is wanted, in pixels: what is kept is at least that fine, where the
            picture is.

    Returns:
        The pixels, the left and top edge in the picture, and pixels kept per picture pixel.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in box)
    reach = SURROUNDINGS * max(x1 - x0, y1 - y0) / 2
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    left, top = int(np.clip(cx - reach, 0, width - 1)), int(np.clip(cy - reach, 0, height - 1))
    right, bottom = (
        int(np.clip(cx + reach + 1, left + 1, width)),
        int(np.clip(cy + reach + 1, top + 1, height)),
    )
    part = image[top:bottom, left:right]
    scale = min(1.0, _largest(size) / max(x1 - x0, y1 - y0))
    if scale < 1:
        # The same factor on both axes, exactly: sides are rounded up and padded by their last pixels.
        finer = int(np.ceil(1 / scale))
        pad_y, pad_x = -part.shape[0] % finer, -part.shape[1] % finer
        part = np.pad(part, ((0, pad_y), (0, pad_x), (0, 0)), mode="edge")
        small = (part.shape[1] // finer, part.shape[0] // finer)
        part, scale = (
            np.asarray(cv2.resize(part, small, interpolation=cv2.INTER_AREA), dtype=np.uint8),
            1 / finer,
        )
    return np.ascontiguousarray(part), float(left), float(top), scale


def _digest(faces: Sequence[Face], boxes: NDArray[np.float32], size: int) -> str:
    # At the usual size this is the digest of the caches that were made before there were others.
    parts = hashlib.sha256(f"{_FORMAT} {SURROUNDINGS} {_largest(size)}".encode())
    for face in faces:
        try:
            status = face.path.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            # Reading it later will say what is wrong with it.
            state = "unreadable"
        parts.update(f"{face.path.resolve()} {state}".encode())
    parts.update(boxes.tobytes())
    return parts.hexdigest()[:20]


def _whole(pixels: Path, table: Path) -> bool:
    """Whether both files are there, and the pixels as long as the table says."""
    if not table.exists() or not pixels.exists():
        return False
    return bool(json.loads(table.read_text(encoding="utf-8")).get("bytes") == pixels.stat().st_size)


class FaceCache:
    """Prepared faces in memory; index it like a list of :class:`CachedFace`.

    Attributes:
        skipped: Pictures that could not be read, with the reason.
    """

    def __init__(self, faces: Sequence[Face], pixels: NDArray[np.uint8], table: list[dict[str, float]]) -> None:
        self._faces, self._pixels, self._table = faces, pixels, table
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> CachedFace:
        row = self._table[index]
        face = self._faces[int(row["face"])]
        start, height, width = int(row["start"]), int(row["height"]), int(row["width"])
        image = self._pixels[start : start + 3 * height * width].reshape(height, width, 3)
        edge = np.array([row["left"], row["top"]])
        box = ((np.array([row[key] for key in ("x0", "y0", "x1", "y1")]) - np.tile(edge, 2)) * row["scale"]).astype(
            np.float32
        )
        points = None if face.points is None else ((face.points - edge) * row["scale"]).astype(np.float32)
        return CachedFace(image, box, points, face, float(row["scale"]))

    @classmethod
    def prepare(
        cls,
        faces: Sequence[Face],
        boxes: NDArray[np.float32],
        folder: Path,
        advance: Callable[[], object] = lambda: None,
        size: int = REFERENCE_SIZE,
    ) -> FaceCache:
        """Reads the cache of these faces, making it first if it is not there.

        Args:
            faces: The faces.
            boxes: ``(n, 4)`` their boxes in picture pixels.
            folder: Where caches lie.
            advance: Called after each picture that was decoded.
            size: Side of the largest crop that will be taken, in pixels; larger ones keep larger pictures.
        """
        name = f"faces-{_digest(faces, boxes, size)}"
        pixels_path, table_path = folder / f"{name}.bin", folder / f"{name}.json"
        if not _whole(pixels_path, table_path):
            cls._write(faces, boxes, pixels_path, table_path, advance, size)
        stored = json.loads(table_path.read_text(encoding="utf-8"))
        # Mapped, not loaded: the caches of the larger sets exceed the memory of most machines.
        pixels = np.memmap(pixels_path, np.uint8, "r") if stored["bytes"] else np.zeros(0, dtype=np.uint8)
        cache = cls(faces, pixels.view(np.ndarray), stored["faces"])
        cache.skipped = stored["skipped"]
        return cache

    @staticmethod
    def _write(
        faces: Sequence[Face],
        boxes: NDArray[np.float32],
        pixels: Path,
        table: Path,
        advance: Callable[[], object],
        size: int,
    ) -> None:
        pixels.parent.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, float]] = []
        skipped: dict[str, str] = {}
        start = 0
        half_written = pixels.with_name(f".{pixels.name}.{os.getpid()}.tmp")
        with half_written.open("wb") as file:
            for number, (face, box) in enumerate(zip(faces, boxes, strict=True)):
                try:
                    part, left, top, scale = surroundings(read_image(face.path), box, size)
                except ImageError as error:
                    skipped[str(face.path)] = str(error)
                    continue
                finally:
                    advance()
                x0, y0, x1, y1 = (float(v) for v in box)
                where = {"face": number, "start": start, "height": part.shape[0], "width": part.shape[1]}
                rows.append(where | {"left": left, "top": top, "scale": scale, "x0": x0, "y0": y0, "x1": x1, "y1": y1})
                file.write(part.tobytes())
                start += part.nbytes
        os.replace(half_written, pixels)
        # The table goes last: its presence says that the pixels are whole.
        half_written.write_text(json.dumps({"faces": rows, "skipped": skipped, "bytes": start}), encoding="utf-8")
        os.replace(half_written, table)
