"""What every layout yields: faces with or without landmarks, and who they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.crop import points_box


@dataclass(frozen=True)
class Face:
    """One face of a data set.

    Attributes:
        path: The picture.
        name: Name that is unique in the set, used in predictions and reports.
        points: ``(k, 2)`` in pixels of the picture, corner origin; None for a face without labels.
        person: Who it is, where the set says so: the unit of splits and intervals.
        video: Which video of that person, where the set says so.
    """

    path: Path
    name: str
    points: NDArray[np.floating] | None = None
    person: str | None = None
    video: str | None = None

    @property
    def box(self) -> NDArray[np.float32]:
        """Tight box of the annotated points, ``x0, y0, x1, y1``.

        Raises:
            ValueError: If the face has no labels.
        """
        if self.points is None:
            raise ValueError(f"{self.name} has no landmarks and so no annotated box")
        return points_box(self.points)


@dataclass(frozen=True)
class FaceSet:
    """One split of a data set.

    Attributes:
        layout: Name of the layout.
        split: Name of the split.
        scheme: Name of the landmark scheme.
        labelled: Faces with landmarks, in a fixed order.
        unlabelled: Faces without.
    """

    layout: str
    split: str
    scheme: str
    labelled: list[Face]
    unlabelled: list[Face]

    @property
    def people(self) -> list[str]:
        """The people of the labelled faces, sorted."""
        return sorted({face.person for face in self.labelled if face.person is not None})
