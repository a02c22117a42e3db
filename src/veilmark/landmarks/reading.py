"""Files of landmarks, read: points of a data set, and anybody's predictions. Every error names file and row."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmark.landmarks.formats import PTS_OFFSET, PointsError, Record, xy_columns
from veilmark.landmarks.result import Landmarks
from veilmark.run.errors import ConfigError

Prediction = tuple[NDArray[np.float64], NDArray[np.float64] | None]
"""Points of one face ``(k, 2)``, and their expected errors ``(k,)`` if the method claims any."""


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PointsError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PointsError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if not text.strip():
        raise PointsError(f"{path}: the file is empty")
    return text


def _number(cell: str, where: str) -> float:
    try:
        # Python alone would read 1_0 as ten.
        value = float(cell) if "_" not in cell else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise PointsError(f"{where}: {cell!r} is not a finite number")
    return value


def read_pts(path: Path) -> NDArray[np.float64]:
    """The points of a ``.pts`` file, ``(k, 2)`` in own coordinates (0.5 less than in the file).

    Raises:
        PointsError: If the file is not a readable ``.pts`` file; the message names the line.
    """
    head, brace, rest = _text(path).partition("{")
    body, end, _ = rest.partition("}")
    if not brace or not end:
        raise PointsError(f"{path}: no points between {{ and }}; expected an iBUG .pts file")
    first_line = head.count("\n") + 1
    points: list[list[float]] = []
    for number, line in enumerate(body.split("\n"), first_line):
        cells = line.split()
        if cells and len(cells) != 2:
            raise PointsError(f"{path}, line {number}: {line.strip()!r} is not a point; expected x and y")
        if cells:
            points.append([_number(cell, f"{path}, line {number}") for cell in cells])
    claimed = re.search(r"n_points:\s*(\d+)", head)
    if claimed is None or int(claimed[1]) != len(points):
        stated = "no n_points" if claimed is None else f"n_points: {claimed[1]}"
        raise PointsError(f"{path}: the head states {stated}, but {len(points)} points follow")
    return np.array(points, dtype=np.float64).reshape(-1, 2) - PTS_OFFSET


def read_json(path: Path) -> list[Record]:
    """The records of a file by :func:`write_json`, or by :func:`json_lines` if its name ends in ``.jsonl``.

    Raises:
        PointsError: If the file is unreadable or misses something; the message says what.
    """
    text = _text(path)
    try:
        if path.suffix == ".jsonl":
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            entries = list(json.loads(text)["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise PointsError(f"{path}: not Veilmark's JSON of landmarks ({error})") from error
    return [_record(entry, f"{path}, image {i}") for i, entry in enumerate(entries)]


def _record(entry: dict[str, Any], where: str) -> Record:
    try:
        faces, scheme = entry["faces"], entry["scheme"]
        keys = ("points", "expected_error", "trust", "box")
        points, errors, trust, boxes = (np.array([f[key] for f in faces], dtype=np.float32) for key in keys)
        landmarks = Landmarks(points, errors, trust, boxes, scheme) if faces else Landmarks.empty(scheme)
        size = int(entry["width"]), int(entry["height"])
        return Record(str(entry["file"]), *size, landmarks, entry.get("frame"))
    except KeyError as error:
        raise PointsError(f"{where}: {error} is missing") from error
    except (ConfigError, TypeError, ValueError) as error:
        raise PointsError(f"{where}: {error}") from error


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns' names, and each filled row with its line number in the file."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise PointsError(f"{path}, row {reader.line_num}: {error}; expected comma-separated values") from error
    header = [name.strip() for name in rows.pop(0)[1]]
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise PointsError(f"{path}: column {sorted(twice)[0]!r} appears twice")
    if not rows:
        raise PointsError(f"{path}: the file has column names but no rows")
    for number, row in rows:
        if len(row) != len(header):
            raise PointsError(f"{path}, row {number}: {len(row)} columns, the first row names {len(header)}")
    return header, rows


def _values(path: Path, columns: list[str], k: int) -> Iterator[tuple[int, str, NDArray[np.float64]]]:
    """Row number, file and the numbers of the named columns, for each row."""
    header, rows = _table(path)
    missing = [name for name in ["file", *columns] if name not in header]
    if missing:
        raise PointsError(f"{path}: column {missing[0]!r} is missing ({len(missing)} in all); {k} points expected")
    if f"x{k}" in header:
        raise PointsError(f"{path}: there is a column 'x{k}', so faces have more than the {k} points expected")
    places = [header.index(name) for name in columns]
    for number, row in rows:
        file = row[header.index("file")].strip()
        if not file:
            raise PointsError(f"{path}, row {number}: column 'file' is empty")
        where = f"{path}, row {number}"
        numbers = [_number(row[i], f"{where}, column {header[i]!r}") for i in places]
        yield number, file, np.array(numbers, dtype=np.float64)


def row_numbers(path: Path) -> dict[str, int]:
    """Line number in the file of every row of a table of points, by the row's file name."""
    header, rows = _table(path)
    place = header.index("file")
    return {row[place].strip(): number for number, row in rows}


def read_points_csv(path: Path, k: int = 68) -> dict[str, NDArray[np.float64]]:
    """The points of a table ``file,x0,y0,...`` (the ``ytf68`` layout, own coordinates); more columns may be.

    Args:
        path: The file.
        k: Points per face.

    Returns:
        File name to ``(k, 2)`` points, in the order of the rows.

    Raises:
        PointsError: If the file is unreadable, a column is missing, a row has too few or too many, a file is
            named twice, or a value is not a finite number; the message names file, row and column. Rows are
            counted as lines of the file, from 1, the column names included.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for number, file, values in _values(path, xy_columns(k), k):
        if file in found:
            raise PointsError(f"{path}, row {number}: {file!r} is already named by a row above")
        found[file] = values.reshape(k, 2)
    return found


def check_points(points: NDArray[np.floating], width: int, height: int, where: str) -> None:
    """Refuses points that cannot belong to a picture of that size.

    Args:
        points: ``(k, 2)`` in pixels.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        where: File and row of the points, for the message.

    Raises:
        PointsError: If a point is not finite, or outside the picture by more than the picture's size.
    """
    size = np.array([width, height])
    # Written as what is allowed, so that NaN is refused.
    far = np.flatnonzero(~((points >= -size) & (points <= 2 * size)).all(axis=1))
    if far.size:
        x, y = points[far[0]]
        raise PointsError(
            f"{where}: point {far[0]} at ({x:g}, {y:g}) is far outside the {width} x {height} picture; "
            "points must be in pixels of this picture"
        )


def read_predictions(path: Path, k: int = 68) -> dict[str, Prediction]:
    """One face's prediction per picture, made by any method.

    Args:
        path: A ``.json`` or ``.jsonl`` file of ours, or a table ``file,x0,y0,...`` with or without columns
            ``e0,...`` (expected errors) and ``trust``. Of several faces in a picture the most trusted counts.
        k: Points per face.

    Returns:
        File name to points ``(k, 2)`` and expected errors ``(k,)``, None if the table has none. Pictures
        without a face are left out.

    Raises:
        PointsError: As :func:`read_points_csv` and :func:`read_json`; also for video frames, and for pictures
            named twice without ``trust``.
    """
    if path.suffix in (".json", ".jsonl"):
        return _json_predictions(path, k)
    header, _ = _table(path)
    if "frame" in header:
        raise PointsError(f"{path}: holds video frames; predictions are one face per picture")
    ranked = "trust" in header
    claims = [f"e{i}" for i in range(k)] if "e0" in header else []
    found: dict[str, Prediction] = {}
    best: dict[str, float] = {}
    for number, file, values in _values(path, [*xy_columns(k), *claims, *["trust"] * ranked], k):
        if file in found and not ranked:
            raise PointsError(f"{path}, row {number}: {file!r} is already named by a row above")
        errors = values[2 * k : 3 * k] if claims else None
        if errors is not None and (errors < 0).any():
            raise PointsError(f"{path}, row {number}: column 'e{errors.argmin()}' is negative; errors are distances")
        trust = float(values[-1]) if ranked else 0.0
        if file not in found or trust > best[file]:
            best[file] = trust
            found[file] = values[: 2 * k].reshape(k, 2), errors
    return found


def _json_predictions(path: Path, k: int) -> dict[str, Prediction]:
    found: dict[str, Prediction] = {}
    named: set[str] = set()
    for record in read_json(path):
        faces = record.landmarks
        if record.frame is not None:
            raise PointsError(f"{path}: holds video frames; predictions are one face per picture")
        if record.file in named:
            raise PointsError(f"{path}: {record.file!r} is named by two images")
        if len(faces.definition) != k:
            raise PointsError(f"{path}: {record.file!r} has scheme {faces.scheme}; {k} points expected")
        named.add(record.file)
        if len(faces):
            i = int(faces.trust.argmax())
            found[record.file] = (
                faces.points[i].astype(np.float64),
                faces.expected_error[i].astype(np.float64),
            )
    return found
