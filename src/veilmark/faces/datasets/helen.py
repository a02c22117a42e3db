"""The ``helen`` layout: the Helen release of Le et al. 2012, for hallucination.

``<root>`` holds ``annotation/*.txt`` (the picture's name, then 194 lines ``x , y``), ``trainnames.txt``,
``testnames.txt`` and the pictures as they are unpacked (``train_1/`` to ``train_4/`` and ``test/``); they are found
by name in any folder below the root. Splits: ``train`` (2,000) and ``test`` (330). The 194 points are none of our
schemes: the faces are unlabelled, and the region is the tight box of the points. The set does not state its
origin; half a pixel plays no part in a region. Helen's pictures with 68 points are part of ``300w``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.crop import points_box
from veilmark.faces.datasets.base import NO_SCHEME, Face, FaceSet
from veilmark.faces.datasets.source import Source
from veilmark.faces.images import IMAGE_SUFFIXES
from veilmark.run.errors import ConfigError, DataError

SOURCE = Source(
    "Helen",
    "http://www.ifp.illinois.edu/~vuongle2/helen/",
    "research; the pictures are from Flickr and stay their owners'",
)

SPLITS = {"train": "trainnames.txt", "test": "testnames.txt"}
"""Splits, and the file that lists each."""

POINTS = 194


def _read(file: Path) -> tuple[str, NDArray[np.float64]]:
    """The picture's name and the ``(194, 2)`` points of one file of ``annotation/``."""
    name, *lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()] or [""]
    try:
        points = np.array([[float(cell) for cell in line.split(",")] for line in lines])
    except ValueError as error:
        raise DataError(f"{file}: {error}; expected a name and {POINTS} lines 'x , y'") from None
    if points.shape != (POINTS, 2) or not np.isfinite(points).all():
        raise DataError(f"{file}: expected a name and {POINTS} lines 'x , y'; found {len(lines)} lines")
    return name, points


def load(root: Path, split: str) -> FaceSet:
    """One split of a ``helen`` folder; see the module's description.

    Raises:
        ConfigError: If there is no such split.
        DataError: If a list, annotation or picture is missing or broken; the message names it.
    """
    if split not in SPLITS:
        raise ConfigError(f"helen has no split {split!r}; known: {', '.join(SPLITS)}")
    listed = SOURCE.need(root / SPLITS[split])
    names = listed.read_text(encoding="utf-8").split()
    if not names:
        raise DataError(f"{listed} lists no picture; {SOURCE}")
    annotation = SOURCE.need(root / "annotation")
    points = dict(_read(file) for file in sorted(annotation.glob("*.txt")))
    pictures = {path.stem: path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES}
    faces = []
    for name in names:
        if name not in points:
            raise DataError(f"{annotation} has no file for {name}, which {listed} names; {SOURCE}")
        if name not in pictures:
            raise DataError(f"{listed}: no picture {name}.jpg in any folder below {root}; {SOURCE}")
        region = points_box(points[name] + 0.5)
        # No picture of Helen names its person: each counts as one.
        faces.append(Face(pictures[name], f"{name}{pictures[name].suffix}", person=name, region=region))
    return FaceSet("helen", split, NO_SCHEME, [], faces)
