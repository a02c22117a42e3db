"""The ``celeba`` layout: CelebA (Liu et al. 2015), for hallucination.

``<root>`` (or ``<root>/Img`` for the pictures) holds, as published, ``img_celeba/`` (in the wild) or
``img_align_celeba/`` (178 x 218, aligned); in the wild is taken where both are. ``Eval/list_eval_partition.txt``
makes the splits ``train``, ``val`` and ``test``; ``Anno/identity_CelebA.txt`` says who is who. Five points per face
(``Anno/list_landmarks_celeba.txt``, ``Anno/list_landmarks_align_celeba.txt``) are none of our schemes: the faces are
unlabelled. Each has a region: the box that 68 points would have, estimated from the five, so that both kinds of
picture are cropped alike; in the wild without that list, the box of ``Anno/list_bbox_celeba.txt`` as it is.
Coordinates are taken as whole pixels counted from 0, whole numbers on pixel centres.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.datasets.base import NO_SCHEME, Face, FaceSet
from veilmark.faces.datasets.source import Source
from veilmark.run.errors import ConfigError, DataError

SOURCE = Source(
    "CelebA",
    "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "non-commercial research under its agreement",
)

SPLITS = {"train": "0", "val": "1", "test": "2"}
"""Splits, and how the partition's file writes them."""

_SIDE = 1.64
"""Longer side of the tight box of 68 points over the diagonal of (eye distance, eyes to mouth); measured on the
labelled training frames of ``ytf68``, spread 6 %."""

_LOWER = 0.064
"""How far that box's centre lies below the middle of eyes and mouth, as a share of its side; measured alike."""


def _rows(table: Path, values: int, header: int) -> dict[str, list[str]]:
    """The cells of each picture of one of CelebA's lists, whose first ``header`` lines are not rows."""
    found = {}
    lines = SOURCE.need(table).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[header:], header + 1):
        cells = line.split()
        if cells and len(cells) != values + 1:
            raise DataError(f"{table}, line {number}: {len(cells)} values; expected a picture and {values} values")
        if cells:
            found[cells[0]] = cells[1:]
    return found


def _numbers(cells: list[str], table: Path, name: str) -> NDArray[np.float64]:
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise DataError(f"{table}: {name}: {error}; expected numbers") from None
    if not np.isfinite(values).all():
        raise DataError(f"{table}: {name}: a value is not finite; correct or leave out the row")
    return values


def region_of_five(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """The square that the tight box of 68 points would fit, from eyes, nose and mouth corners.

    Args:
        points: ``(5, 2)``: left eye, right eye, nose, left and right corner of the mouth, in pixels.

    Returns:
        ``(4,)`` xyxy in the same pixels.
    """
    eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
    side = _SIDE * float(np.hypot(np.linalg.norm(points[1] - points[0]), np.linalg.norm(mouth - eyes)))
    centre = (eyes + mouth) / 2 + np.array([0, _LOWER * side])
    return np.concatenate([centre - side / 2, centre + side / 2])


def load(root: Path, split: str) -> FaceSet:
    """One split of a ``celeba`` folder; see the module's description.

    Raises:
        ConfigError: If there is no such split.
        DataError: If a list or picture is missing, or a row is broken; the message names it.
    """
    if split not in SPLITS:
        raise ConfigError(f"celeba has no split {split!r}; known: {', '.join(SPLITS)}")
    places = [root / part / name for name in ("img_celeba", "img_align_celeba") for part in ("Img", ".")]
    folder = SOURCE.need_one(places)
    annotations = root / "Anno"
    partition = root / "Eval" / "list_eval_partition.txt"
    names = [name for name, (part,) in _rows(partition, 1, header=0).items() if part == SPLITS[split]]
    if not names:
        raise DataError(f"{partition}: no picture of split {split!r}; {SOURCE}")
    people = _rows(annotations / "identity_CelebA.txt", 1, header=0)
    wild = folder.name == "img_celeba"
    table = annotations / ("list_landmarks_celeba.txt" if wild else "list_landmarks_align_celeba.txt")
    five = not wild or table.exists()
    table = table if five else annotations / "list_bbox_celeba.txt"
    boxes = _rows(table, 10 if five else 4, header=2)
    there = {path.name for path in folder.iterdir()}
    faces = []
    for name in names:
        for listed, file in ((people, annotations / "identity_CelebA.txt"), (boxes, table)):
            if name not in listed:
                raise DataError(f"{file} does not list {name}, which {partition} does; {SOURCE}")
        if name not in there:
            raise DataError(f"{partition}: {folder / name} does not exist; {SOURCE}")
        values = _numbers(boxes[name], table, name)
        region = region_of_five(values.reshape(5, 2) + 0.5) if five else np.append(values[:2], values[:2] + values[2:])
        if not (region[2:] > region[:2]).all():
            raise DataError(f"{table}: {name}: the face has no area; leave the picture out of {partition}")
        faces.append(Face(folder / name, name, person=people[name][0], region=region))
    return FaceSet("celeba", split, NO_SCHEME, [], faces)
