"""Files of landmarks, written (they are read in :mod:`veilmark.landmarks.reading`).

JSON, CSV and COCO hold Veilmark's own coordinates: pixels whose origin is the picture's top-left corner, so
that the first pixel's centre is (0.5, 0.5). ``.pts`` files count from 1 and put whole numbers on pixel
centres; they are converted in both directions. Files are written to a temporary name and renamed.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from veilmark.landmarks.result import Landmarks
from veilmark.landmarks.schemes import Scheme
from veilmark.run.errors import DataError

COORDINATES = "pixels of the original image, origin at the top-left corner, first pixel's centre at (0.5, 0.5)"

PTS_OFFSET = 0.5
"""``.pts`` minus own coordinates: there, 1.0 is the centre of the first pixel."""


class PointsError(DataError):
    """A file of points that is missing, malformed or inconsistent."""


@dataclass(frozen=True)
class Record:
    """The landmarks of one picture or video frame.

    Attributes:
        file: Name of the picture or video.
        width: Width in pixels.
        height: Height in pixels.
        landmarks: The faces found in it, none included.
        frame: Number of the frame from 0, None for a picture.
    """

    file: str
    width: int
    height: int
    landmarks: Landmarks
    frame: int | None = None


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(array: NDArray[np.float32]) -> Any:
    """Nested lists that print as the shortest decimals which read back as the same float32."""
    return array.astype(str).astype(np.float64).tolist()


def _entry(record: Record) -> dict[str, Any]:
    faces = record.landmarks
    columns = (_plain(a) for a in (faces.points, faces.expected_error, faces.trust, faces.boxes))
    keys = ("points", "expected_error", "trust", "box")
    entry: dict[str, Any] = {"file": record.file, "width": record.width, "height": record.height}
    if record.frame is not None:
        entry["frame"] = record.frame
    entry["scheme"] = faces.scheme
    return entry | {"faces": [dict(zip(keys, face, strict=True)) for face in zip(*columns, strict=True)]}


def write_json(path: Path, records: Sequence[Record]) -> None:
    """Writes ``{"coordinates", "images": [{"file", "width", "height", "scheme", "faces"}]}``.

    A face has ``points`` (k pairs), ``expected_error`` (k), ``trust`` and ``box`` (x0, y0, x1, y1). A video
    frame's image has ``frame`` too.
    """
    with _replacing(path) as stream:
        json.dump({"coordinates": COORDINATES, "images": [_entry(record) for record in records]}, stream)


@contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Record], None]]:
    """Opens a file for video: one line per frame, each an image of :func:`write_json` with ``coordinates``.

    Yields:
        The function that writes one record. The file takes its name when the block ends without an error.
    """
    with _replacing(path) as stream:

        def write(record: Record) -> None:
            stream.write(json.dumps({"coordinates": COORDINATES} | _entry(record)) + "\n")

        yield write


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Writes a row per face: ``file,face,trust,box_x0,box_y0,box_x1,box_y1,x0,y0,...,e0,...``.

    A column ``frame`` follows ``file`` if any record has a frame. Pictures without a face have no row.

    Raises:
        ValueError: If the records have different schemes.
    """
    schemes = {record.landmarks.scheme: len(record.landmarks.definition) for record in records}
    if len(schemes) > 1:
        raise ValueError(f"one CSV cannot hold several schemes: {', '.join(schemes)}")
    k = next(iter(schemes.values()), 68)
    video = any(record.frame is not None for record in records)
    boxes = ["box_x0", "box_y0", "box_x1", "box_y1"]
    errors = [f"e{i}" for i in range(k)]
    with _replacing(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", *["frame"] * video, "face", "trust", *boxes, *xy_columns(k), *errors])
        for record in records:
            faces = record.landmarks
            start = [record.file, *[record.frame] * video]
            for i in range(len(faces)):
                numbers = (faces.trust[i : i + 1], faces.boxes[i], faces.points[i], faces.expected_error[i])
                table.writerow([*start, i, *(v for part in numbers for v in _plain(part.ravel()))])


def write_pts(path: Path, points: ArrayLike) -> None:
    """Writes ``(k, 2)`` points of one face, own coordinates, as a 1-based ``.pts`` file (iBUG version 1)."""
    rows = np.asarray(points, dtype=np.float64) + PTS_OFFSET
    with _replacing(path) as stream:
        stream.write(f"version: 1\nn_points: {len(rows)}\n{{\n")
        stream.writelines(f"{x:.6f} {y:.6f}\n" for x, y in rows)
        stream.write("}\n")


def write_pts_folder(folder: Path, records: Sequence[Record]) -> None:
    """Writes one ``.pts`` file per face: ``<stem>.pts``, then ``<stem>_1.pts``; folders in names are kept.

    A video frame's stem is ``<stem>_frame<number>``.

    Raises:
        PointsError: If two faces would get the same file (``a.jpg`` beside ``a.png``); none is written then.
    """
    faces: dict[Path, tuple[str, NDArray[np.float32]]] = {}
    for record in records:
        name = PurePath(record.file)
        inside = name if not name.is_absolute() and ".." not in name.parts else PurePath(name.name)
        stem = inside.stem if record.frame is None else f"{inside.stem}_frame{record.frame:06d}"
        for i, points in enumerate(record.landmarks.points):
            path = folder / inside.with_name(f"{stem}_{i}.pts" if i else f"{stem}.pts")
            if path in faces:
                raise PointsError(
                    f"{path}: both {faces[path][0]} and {record.file} would be written here; "
                    "rename one of them, or choose another format"
                )
            faces[path] = record.file, points
    for path, (_, points) in faces.items():
        write_pts(path, points)


def write_coco(path: Path, records: Sequence[Record]) -> None:
    """Writes COCO keypoints: a category per scheme, keypoints named ``jaw_0``..., the contours as skeleton.

    An annotation has ``score`` (trust), ``bbox`` (x, y, w, h) and, beyond COCO, ``expected_error``.
    """
    categories: dict[str, dict[str, Any]] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        faces = record.landmarks
        category = categories.setdefault(faces.scheme, _coco_category(faces.definition, len(categories) + 1))
        image = {
            "id": len(images) + 1,
            "file_name": record.file,
            "width": record.width,
            "height": record.height,
        }
        images.append(image if record.frame is None else image | {"frame": record.frame})
        for face in _entry(record)["faces"]:
            x0, y0, x1, y1 = face["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category["id"],
                    "keypoints": [value for x, y in face["points"] for value in (x, y, 2)],
                    "num_keypoints": len(face["points"]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": face["trust"],
                    "expected_error": face["expected_error"],
                }
            )
    with _replacing(path) as stream:
        json.dump(
            {
                "info": {"description": COORDINATES},
                "images": images,
                "annotations": annotations,
                "categories": list(categories.values()),
            },
            stream,
        )


def _coco_category(scheme: Scheme, number: int) -> dict[str, Any]:
    names = [""] * len(scheme)
    skeleton: list[list[int]] = []
    for component, members in scheme.components.items():
        for position, i in enumerate(members):
            names[i] = f"{component}_{position}"
        # COCO's skeleton counts keypoints from 1.
        ends = members[1:] + members[:1] if component in scheme.closed else members[1:]
        skeleton += [[a + 1, b + 1] for a, b in zip(members, ends, strict=False)]
    return {"id": number, "name": f"face_{scheme.name}", "keypoints": names, "skeleton": skeleton}


FORMATS: dict[str, Callable[[Path, Sequence[Record]], None]] = {
    "json": write_json,
    "csv": write_csv,
    "pts": write_pts_folder,
    "coco": write_coco,
}
"""Writers by the name of their format; each takes a file and records, ``pts`` a folder."""


def xy_columns(k: int) -> list[str]:
    """Column names of ``k`` points: ``x0, y0, x1, y1, ...``."""
    return [f"{axis}{i}" for i in range(k) for axis in "xy"]


def write_points_csv(path: Path, points: Mapping[str, NDArray[np.floating]]) -> None:
    """Writes what ``read_points_csv`` reads: file name to ``(k, 2)`` points, at least one.

    Raises:
        ValueError: If there is no file, or the numbers of points differ.
    """
    sizes = {len(array) for array in points.values()}
    if len(sizes) != 1:
        raise ValueError(f"points of {sorted(sizes)} landmarks; expected one or more files, all of the same number")
    with _replacing(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["file", *xy_columns(sizes.pop())])
        for file, array in points.items():
            table.writerow([file, *(repr(float(value)).removesuffix(".0") for value in array.ravel())])
