"""The ``folder`` layout: a reader's own pictures, with or without landmarks.

``<root>/<split>/`` holds the pictures (``all`` means the root itself). A picture is labelled if a ``.pts``
file of the same name lies beside it. A person's pictures may lie in a folder of their own: the first folder
below the split names the person.
"""

from __future__ import annotations

from pathlib import Path

from veilmark.faces.datasets.base import Face, FaceSet
from veilmark.faces.images import list_images, picture_size
from veilmark.landmarks.reading import check_points, read_pts
from veilmark.run.errors import DataError


def load(root: Path, split: str) -> FaceSet:
    """The pictures of a folder; see the module's description.

    Raises:
        DataError: If the folder is missing or has no picture, or a ``.pts`` file is broken.
    """
    folder = root if split == "all" else root / split
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; use --split all for the pictures of {root} itself")
    labelled, unlabelled = [], []
    for picture in list_images([folder]):
        inside = picture.relative_to(folder)
        person = inside.parts[0] if len(inside.parts) > 1 else inside.stem
        points_file = picture.with_suffix(".pts")
        if not points_file.exists():
            unlabelled.append(Face(picture, inside.as_posix(), None, person))
            continue
        points = read_pts(points_file)
        if points.shape != (68, 2):
            raise DataError(f"{points_file} has {len(points)} points; expected 68 in iBUG order")
        check_points(points, *picture_size(picture), where=str(points_file))
        labelled.append(Face(picture, inside.as_posix(), points, person))
    return FaceSet("folder", split, "ibug68", labelled, unlabelled)
