"""The ``cofw`` layout: Caltech Occluded Faces in the Wild, 29 points (Burgos-Artizzu, Perona and Dollar 2013).

``<root>`` holds ``COFW_train_color.mat`` and ``COFW_test_color.mat`` as published. Splits: ``train`` (845 faces of
LFPW and 500 occluded ones) and ``test`` (507). The pictures lie inside these files. The first load writes them
as PNGs into a folder beside the file and of its name, ``COFW_test_color/0001.png``, so that every picture of
Veilmark is read from disk in one way; a changed file writes them anew. Coordinates count from 1, whole numbers
on pixel centres. Occluded points are annotated and count, as in every paper; the occlusion bits are not used.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.datasets.base import Face, FaceSet
from veilmark.faces.datasets.matlab import read_array, read_cells
from veilmark.faces.datasets.protocol import Column, Published
from veilmark.faces.datasets.source import Source
from veilmark.faces.images import write_png
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.folder import write_json

SOURCE = Source(
    "COFW (the colour version)",
    "https://data.caltech.edu/records/20099",
    "see that page; the pictures are the web's and LFPW's and stay their owners'",
)

VARIABLES: dict[str, tuple[str, str, str]] = {
    "train": ("IsTr", "phisTr", "bboxesTr"),
    "test": ("IsT", "phisT", "bboxesT"),
}
"""Pictures, points and boxes of each split."""

PUBLISHED = Published(
    normalisations={
        "inter_ocular": "inter-ocular: the outer eye corners, points 8 and 9 of 29",
        "inter_pupil": "inter-pupil: points 16 and 17 of 29",
    },
    columns=(
        Column("NME inter-ocular %", "inter_ocular"),
        Column("FR10 inter-ocular %", "inter_ocular", "fr"),
        Column("NME inter-pupil %", "inter_pupil"),
        Column("FR10 inter-pupil %", "inter_pupil", "fr"),
    ),
    crop="papers crop the given box or around the annotated points; here the annotated points' box",
)

_STAMP = "source.json"


def _to_rgb(image: NDArray[np.generic], where: str) -> NDArray[np.uint8]:
    """A picture of the file as ``(h, w, 3)``; some are gray."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise DataError(f"{where} is {image.dtype} of shape {image.shape}; expected an 8-bit picture")
    layers = image if image.ndim == 3 else image[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(layers, (*layers.shape[:2], 3)), dtype=np.uint8)


def _write_pictures(file: Path, variable: str, count: int) -> list[Path]:
    """The file's pictures as PNGs, written unless they are there."""
    folder = file.with_suffix("")
    paths = [folder / f"{number:04d}.png" for number in range(1, count + 1)]
    status = file.stat()
    state = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "pictures": count}
    stamp = folder / _STAMP
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == state:
        return paths
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be made ({error.strerror}), and the pictures of {file.name} are written there once; "
            "make the data folder writable, or copy it to one that is"
        ) from error
    written = 0
    for image in read_cells(file, variable):
        if written == count:
            raise DataError(f"{file}: {variable!r} has more pictures than the {count} faces with points")
        write_png(paths[written], _to_rgb(image, f"{file}: picture {written + 1} of {variable!r}"))
        written += 1
    if written < count:
        raise DataError(f"{file}: {variable!r} has {written} pictures for {count} faces with points")
    # Last: its presence says that all of them are whole.
    write_json(stamp, state)
    return paths


def load(root: Path, split: str) -> FaceSet:
    """One split of a ``cofw`` folder; see the module's description.

    Raises:
        ConfigError: If there is no such split.
        DataError: If the file is missing or damaged, or its pictures cannot be written; the message names it.
    """
    if split not in VARIABLES:
        raise ConfigError(f"cofw has no split {split!r}; known: {', '.join(VARIABLES)}")
    file = SOURCE.need(root / f"COFW_{split}_color.mat")
    images, points_name, boxes_name = VARIABLES[split]
    numbers, boxes = read_array(file, points_name), read_array(file, boxes_name).astype(np.float64)
    if numbers.ndim != 2 or numbers.shape[1] != 87 or boxes.shape != (len(numbers), 4):
        raise DataError(
            f"{file}: {points_name!r} is {numbers.shape} and {boxes_name!r} is {boxes.shape}; "
            "expected (n, 87) and (n, 4); is it the published file?"
        )
    points = numbers[:, :58].astype(np.float64).reshape(-1, 2, 29).transpose(0, 2, 1) - 0.5
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) - 0.5
    labelled = []
    for row, picture in enumerate(_write_pictures(file, images, len(points))):
        name = picture.relative_to(root).as_posix()
        SOURCE.check_face(picture, points[row], f"{file}, face {row + 1}")
        # No face of COFW names its person: each counts as one.
        labelled.append(Face(picture, name, points[row], person=name, region=corners[row]))
    return FaceSet("cofw", split, "cofw29", labelled, [], protocol=PUBLISHED)
