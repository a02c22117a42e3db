"""The ``300w`` layout: pictures with iBUG ``.pts`` files beside them.

``<root>`` holds ``afw``, ``helen``, ``ibug`` and ``lfpw`` as published (``helen`` and ``lfpw`` with
``trainset`` and ``testset``). Splits: ``train`` (afw, helen/trainset, lfpw/trainset), ``common``
(helen/testset, lfpw/testset), ``challenge`` (ibug), ``full`` (both), and ``all``: every annotated picture
under the root, however it is sorted. ``.pts`` files count from 1 and are converted on reading.
"""

from __future__ import annotations

from pathlib import Path

from veilmark.faces.datasets.base import Face, FaceSet
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

_SOURCE = (
    "300W comes from the iBUG group at Imperial College London (Sagonas et al. 2013; research use, no "
    "commercial use), which Veilmark does not download"
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
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist; {_SOURCE}")
        for points_file in sorted(folder.rglob("*.pts")):
            picture, points = picture_beside(points_file), read_pts(points_file)
            if points.shape != (68, 2):
                raise DataError(f"{points_file} has {len(points)} points; 300w has 68")
            check_points(points, *picture_size(picture), where=str(points_file))
            name = picture.relative_to(root).as_posix()
            # No picture of 300W names its person: each counts as one, so that intervals are over pictures.
            faces.append(Face(picture, name, points, person=name))
    if not faces:
        raise DataError(f"{root}: no .pts file for split {split!r}; {_SOURCE}")
    return FaceSet("300w", split, "ibug68", faces, [])
