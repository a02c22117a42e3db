"""The ``300w`` layout: pictures with iBUG ``.pts`` files beside them.

``<root>`` holds ``afw``, ``helen``, ``ibug`` and ``lfpw`` as published (``helen`` and ``lfpw`` with
``trainset`` and ``testset``). Splits: ``train`` (afw, helen/trainset, lfpw/trainset), ``common``
(helen/testset, lfpw/testset), ``challenge`` (ibug), ``full`` (both, its two subsets), and ``all``: every annotated
picture under the root, however it is sorted. ``.pts`` files count from 1 and are converted on reading.
"""

from __future__ import annotations

from pathlib import Path

from veilmark.faces.datasets.base import Face, FaceSet
from veilmark.faces.datasets.protocol import Column, Published
from veilmark.faces.datasets.source import Source
from veilmark.faces.images import IMAGE_SUFFIXES, picture_size
from veilmark.landmarks.reading import check_points, read_pts
from veilmark.run.errors import ConfigError, DataError

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("afw", "helen/trainset", "lfpw/trainset"),
    "common": ("helen/testset", "lfpw/testset"),
    "challenge": ("ibug",),
    "full": ("helen/testset", "lfpw/testset", "ibug"),
    "all": (".",),
}

SOURCE = Source(
    "300W",
    "https://ibug.doc.ic.ac.uk/resources/facial-point-annotations/",
    "iBUG group, Imperial College London; research, no commercial use",
)

PUBLISHED = Published(
    normalisations={
        "inter_ocular": "inter-ocular: the outer eye corners, points 36 and 45 of 68",
        "inter_pupil": "inter-pupil: the means of points 36 to 41 and of 42 to 47",
    },
    columns=(
        Column("NME inter-ocular %", "inter_ocular"),
        Column("NME inter-pupil %", "inter_pupil"),
        Column("FR8 inter-ocular %", "inter_ocular", "fr", 8.0),
        Column("AUC8 inter-ocular %", "inter_ocular", "auc", 8.0),
    ),
    crop="papers crop iBUG's detector box or around the annotated points; here the annotated points' box",
)


def picture_beside(points_file: Path) -> Path:
    """The picture that a ``.pts`` file annotates: same name, a picture's ending.

    Raises:
        DataError: If there is none.
    """
    for suffix in IMAGE_SUFFIXES:
        for candidate in (points_file.with_suffix(suffix), points_file.with_suffix(suffix.upper())):
            if candidate.exists():
                return candidate
    raise DataError(f"{points_file} has no picture beside it ({', '.join(sorted(IMAGE_SUFFIXES))})")


def load(root: Path, split: str) -> FaceSet:
    """One split of a ``300w`` folder; see the module's description.

    Raises:
        ConfigError: If there is no such split.
        DataError: If a folder or picture is missing, or a ``.pts`` file is broken.
    """
    if split not in SPLITS:
        raise ConfigError(f"300w has no split {split!r}; known: {', '.join(SPLITS)}")
    faces = []
    for part in SPLITS[split]:
        folder = root / part
        SOURCE.need(folder)
        for points_file in sorted(folder.rglob("*.pts")):
            picture, points = picture_beside(points_file), read_pts(points_file)
            if points.shape != (68, 2):
                raise DataError(f"{points_file} has {len(points)} points; 300w has 68")
            check_points(points, *picture_size(picture), where=str(points_file))
            name = picture.relative_to(root).as_posix()
            # No picture of 300W names its person: each counts as one, so that intervals are over pictures.
            faces.append(Face(picture, name, points, person=name))
    if not faces:
        raise DataError(f"{root}: no .pts file for split {split!r}; {SOURCE}")
    subsets = {}
    if split == "full":
        challenge = frozenset(face.name for face in faces if face.name.startswith("ibug/"))
        subsets = {"common": frozenset(face.name for face in faces) - challenge, "challenge": challenge}
    return FaceSet("300w", split, "ibug68", faces, [], subsets, PUBLISHED)
