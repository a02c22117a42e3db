"""The ``ytf68`` layout: video frames of known people with 68 points.

``<root>/<split>.csv`` holds ``file,x0,y0,...,x67,y67`` in pixels of the frame, counted from the top-left
pixel's corner; the frames lie in ``<root>/<split>/``, named ``id<person>_v<video>_<a|b><frame>.jpg``. Frames
that the table does not list have no labels. Any split name works. Where the folder has a split ``val`` with
the published people, two views of it have names: ``select`` (up to person 272: checkpoints, calibration,
choices) and ``report`` (from person 273: published figures).
"""

from __future__ import annotations

import re
from pathlib import Path

from veilmark.faces.datasets.base import Face, FaceSet
from veilmark.faces.images import IMAGE_SUFFIXES, ImageError, picture_size
from veilmark.landmarks.reading import check_points, read_points_csv, row_numbers
from veilmark.run.errors import DataError

_NAME = re.compile(r"(?P<person>id\d+)_(?P<video>v\d+)_[ab]\d+")

VIEWS = {"select": range(0, 273), "report": range(273, 1_000_000)}
"""Named views of the split ``val``, by the number of the person."""

_SOURCE = (
    "the layout is <root>/<split>.csv beside <root>/<split>/; the frames come from YouTube Faces "
    "(Wolf, Hassner and Maoz 2011; research use), which Veilmark does not download"
)


def _identify(stem: str) -> tuple[str | None, str | None]:
    match = _NAME.fullmatch(stem)
    return (match["person"], match["video"]) if match else (None, None)


def load(root: Path, split: str) -> FaceSet:
    """One split of a ``ytf68`` folder; see the module's description.

    Raises:
        DataError: If the table or the folder is missing, a listed frame does not exist, or a value is broken.
    """
    source, view = split, None
    if split in VIEWS and not (root / f"{split}.csv").exists():
        source, view = "val", VIEWS[split]
    table, folder = root / f"{source}.csv", root / source
    for path in (table, folder):
        if not path.exists():
            found = sorted(p.stem for p in root.glob("*.csv")) if root.is_dir() else []
            splits = f"splits found there: {', '.join(found)}" if found else "no split was found there"
            raise DataError(f"{path} does not exist; {splits}; {_SOURCE}")
    points = read_points_csv(table, k=68)
    frames = {p.name: p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}
    labelled: list[Face] = []
    unlabelled: list[Face] = []
    rows = row_numbers(table)
    for name, xy in points.items():
        where = f"{table}, row {rows[name]} ({name})"
        if name not in frames:
            raise DataError(f"{where}: {folder / name} does not exist; remove the row or add the frame")
        try:
            size = picture_size(frames[name])
        except ImageError:
            # An unreadable frame is skipped and listed where the pixels are read.
            continue
        check_points(xy, *size, where=where)
    for name, path in frames.items():
        person, video = _identify(path.stem)
        if view is not None and (person is None or int(person[2:]) not in view):
            continue
        xy_or_none = points.get(name)
        face = Face(path, name, xy_or_none, person, video)
        (unlabelled if xy_or_none is None else labelled).append(face)
    if not labelled:
        raise DataError(f"{table}: no labelled frame in split {split!r}; {_SOURCE}")
    return FaceSet("ytf68", split, "ibug68", labelled, unlabelled)
