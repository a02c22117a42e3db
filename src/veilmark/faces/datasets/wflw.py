"""The ``wflw`` layout: Wider Facial Landmarks in the Wild, 98 points (Wu et al. 2018).

``<root>`` holds, as published, ``WFLW_images/`` and
``WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{train,test}.txt``. A line is a face: 196
coordinates, the 4 of a rectangle, 6 attributes, the picture. Splits: ``train``, ``test``, and the six subsets
of the test faces, ``pose``, ``expression``, ``illumination``, ``makeup``, ``occlusion`` and ``blur``. The set does
not state its origin; its own evaluation reads pictures with OpenCV, so whole numbers are taken as pixel centres
counted from 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from veilmark.faces.datasets.base import Face, FaceSet, unique_names
from veilmark.faces.datasets.protocol import Column, Published
from veilmark.faces.datasets.source import Source
from veilmark.run.errors import ConfigError, DataError

SOURCE = Source(
    "WFLW",
    "https://wywu.github.io/projects/LAB/WFLW.html",
    "non-commercial research; the pictures are WIDER FACE's and stay their owners'",
)

SUBSETS = ("pose", "expression", "illumination", "makeup", "occlusion", "blur")
"""The attributes of a face, in the order of the file; each names a subset of the test faces."""

SPLITS = ("train", "test", *SUBSETS)

PUBLISHED = Published(
    normalisations={"inter_ocular": "inter-ocular: the outer eye corners, points 60 and 72 of 98"},
    columns=(
        Column("NME %", "inter_ocular"),
        Column("FR10 %", "inter_ocular", "fr"),
        Column("AUC10 %", "inter_ocular", "auc"),
    ),
    crop="papers crop around the annotated points or the given rectangle; here the annotated points' box",
)

_LISTS = Path("WFLW_annotations") / "list_98pt_rect_attr_train_test"
_NUMBERS = 196 + 4 + len(SUBSETS)


def _read(table: Path) -> tuple[list[str], np.ndarray]:
    """The pictures' names and the ``(n, 206)`` numbers of a list."""
    names, rows = [], []
    for number, line in enumerate(SOURCE.need(table).read_text(encoding="utf-8").splitlines(), 1):
        cells = line.split(maxsplit=_NUMBERS)
        if not cells:
            continue
        if len(cells) != _NUMBERS + 1:
            raise DataError(f"{table}, line {number}: {len(cells)} values; expected {_NUMBERS} numbers and a picture")
        try:
            rows.append([float(cell) for cell in cells[:_NUMBERS]])
        except ValueError as error:
            raise DataError(f"{table}, line {number}: {error}; expected {_NUMBERS} numbers and a picture") from None
        names.append(cells[_NUMBERS].strip())
    if not rows:
        raise DataError(f"{table} lists no face; {SOURCE}")
    return names, np.array(rows)


def load(root: Path, split: str) -> FaceSet:
    """One split of a ``wflw`` folder; see the module's description.

    Raises:
        ConfigError: If there is no such split.
        DataError: If a list or picture is missing, or a line is broken; the message names it.
    """
    if split not in SPLITS:
        raise ConfigError(f"wflw has no split {split!r}; known: {', '.join(SPLITS)}")
    part = "train" if split == "train" else "test"
    table = root / _LISTS / f"list_98pt_rect_attr_{part}.txt"
    pictures, numbers = _read(table)
    names = unique_names(pictures)
    has = {subset: numbers[:, 200 + i] == 1 for i, subset in enumerate(SUBSETS)}
    chosen = has[split] if split in SUBSETS else np.ones(len(names), dtype=bool)
    labelled = []
    for row in np.flatnonzero(chosen):
        picture = root / "WFLW_images" / pictures[row]
        points = numbers[row, :196].reshape(98, 2) + 0.5
        SOURCE.check_face(picture, points, f"{table}, face {row + 1} ({names[row]})")
        region = numbers[row, 196:200] + 0.5
        # No face of WFLW names its person. A picture may have faces in both lists, so the list is named, too.
        labelled.append(Face(picture, names[row], points, person=f"{part}/{pictures[row]}", region=region))
    if not labelled:
        raise DataError(f"{table}: no face of split {split!r}; {SOURCE}")
    subsets = {
        subset: frozenset(names[row] for row in np.flatnonzero(rows))
        for subset, rows in has.items()
        if split == "test" and rows.any()
    }
    return FaceSet("wflw", split, "wflw98", labelled, [], subsets, PUBLISHED)
