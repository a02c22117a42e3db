"""The ``aflw`` layout: Annotated Facial Landmarks in the Wild with 19 points.

The pictures are AFLW's (Koestinger et al. 2011); points, boxes and splits are the release of Zhu et al. 2016
that papers use. ``<root>`` holds ``AFLWinfo_release.mat`` and the pictures, in ``flickr/`` (also found as
``data/flickr``, ``aflw/data/flickr`` or ``images``). Splits: ``train`` (the first 20,000 faces of the release's
order ``ra``), ``full`` (the other 4,386) and ``frontal`` (those of them with every point visible). Coordinates
count from 1, whole numbers on pixel centres. The release has a guess for every invisible point: the errors of
Veilmark leave them out (``Face.visible``), the published tables count them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from veilmark.faces.datasets.base import Face, FaceSet, unique_names
from veilmark.faces.datasets.matlab import read_array, read_strings
from veilmark.faces.datasets.protocol import Column, Published
from veilmark.faces.datasets.source import Source
from veilmark.run.errors import ConfigError, DataError

SOURCE = Source(
    "AFLW",
    "https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/aflw/, its 19 points from "
    "http://mmlab.ie.cuhk.edu.hk/projects/compositional.html",
    "academic research on request, no commercial use",
)

SPLITS = ("train", "full", "frontal")

TRAIN_FACES = 20_000
"""Faces of the release's order that train; the others test."""

PICTURES = ("flickr", "data/flickr", "aflw/data/flickr", "images")
"""Where the pictures may lie; the names in the release begin with ``0/``, ``2/`` or ``3/``."""

PUBLISHED = Published(
    normalisations={
        "given_box": "box: square root of width x height of the release's face box",
        "given_diagonal": "diagonal of the release's face box",
    },
    columns=(
        Column("NME box %", "given_box"),
        Column("NME diagonal %", "given_diagonal"),
        Column("FR7 box %", "given_box", "fr", 7.0),
        Column("AUC7 box %", "given_box", "auc", 7.0),
        Column("NME box, visible points %", "given_box", visible_only=True),
    ),
    crop="papers crop the release's face box; here the annotated points' box",
)


def load(root: Path, split: str) -> FaceSet:
    """One split of an ``aflw`` folder; see the module's description.

    Raises:
        ConfigError: If there is no such split.
        DataError: If the release or a picture is missing or damaged; the message names it.
    """
    if split not in SPLITS:
        raise ConfigError(f"aflw has no split {split!r}; known: {', '.join(SPLITS)}")
    release = SOURCE.need(root / "AFLWinfo_release.mat")
    folder = SOURCE.need_one([root / place for place in PICTURES])
    arrays = {name: read_array(release, name) for name in ("data", "bbox", "mask_new", "ra")}
    pictures = read_strings(release, "nameList")
    n = len(pictures)
    expected = {"data": (n, 38), "bbox": (n, 4), "mask_new": (n, 19)}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise DataError(f"{release}: {name!r} is {arrays[name].shape}, expected {shape}; is it the published file?")
    order = arrays["ra"].ravel().astype(np.int64) - 1
    if sorted(order.tolist()) != list(range(n)):
        raise DataError(f"{release}: 'ra' is not an order of the {n} faces; is it the published file?")
    points = arrays["data"].astype(np.float64).reshape(n, 2, 19).transpose(0, 2, 1) - 0.5
    # The release has left, right, top, bottom.
    regions = arrays["bbox"].astype(np.float64)[:, [0, 2, 1, 3]] - 0.5
    visible = arrays["mask_new"].astype(bool)
    names = unique_names(pictures)
    frontal = np.asarray(visible.all(axis=1))
    rows = order[:TRAIN_FACES] if split == "train" else order[TRAIN_FACES:]
    if split == "frontal":
        rows = rows[frontal[rows]]
    # A face of which no point can be seen has no error that could be stated.
    rows = rows[np.asarray(visible.any(axis=1))[rows]]
    labelled = []
    for row in rows:
        picture = folder / pictures[row]
        SOURCE.check_face(picture, points[row], f"{release}, face {row + 1} ({names[row]})")
        # The release names no person: each face counts as one.
        face = Face(picture, names[row], points[row], names[row], region=regions[row], visible=visible[row])
        labelled.append(face)
    if not labelled:
        raise DataError(f"{release}: no face of split {split!r} among {n}; {SOURCE}")
    subsets = {"frontal": frozenset(names[row] for row in rows if frontal[row])} if split == "full" else {}
    return FaceSet("aflw", split, "aflw19", labelled, [], subsets, PUBLISHED)
