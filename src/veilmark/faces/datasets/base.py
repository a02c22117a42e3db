"""What every layout yields: faces with or without landmarks, and who they belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.crop import points_box
from veilmark.faces.datasets.protocol import Published
from veilmark.landmarks.conversion import conversion

NO_SCHEME = "none"
"""The scheme of a set that has landmarks in no scheme of ours, and so no labelled face."""


@dataclass(frozen=True)
class Face:
    """One face of a data set.

    Attributes:
        path: The picture.
        name: Name that is unique in the set, used in predictions and reports.
        points: ``(k, 2)`` in pixels of the picture, corner origin; None for a face without labels.
        person: Who it is, where the set says so: the unit of splits and intervals.
        video: Which video of that person, where the set says so.
        region: ``(4,)`` xyxy in pixels of the picture: the box that the set itself gives for the face.
        visible: ``(k,)`` bool where the set says which points can be seen; errors are means over those. None
            means all. The coordinates of an invisible point are the annotators' guess, and finite.
    """

    path: Path
    name: str
    points: NDArray[np.floating] | None = None
    person: str | None = None
    video: str | None = None
    region: NDArray[np.floating] | None = None
    visible: NDArray[np.bool_] | None = None

    @property
    def box(self) -> NDArray[np.float32]:
        """The box that is cropped, ``x0, y0, x1, y1``: tight around the points, visible or not, else the region.

        Raises:
            ValueError: If the face has neither.
        """
        if self.points is not None:
            return points_box(self.points)
        if self.region is None:
            raise ValueError(f"{self.name} has no landmarks and so no annotated box")
        return np.asarray(self.region, dtype=np.float32)


@dataclass(frozen=True)
class FaceSet:
    """One split of a data set.

    Attributes:
        layout: Name of the layout.
        split: Name of the split.
        scheme: Name of the landmark scheme; ``none`` for a set without any of ours.
        labelled: Faces with landmarks, in a fixed order.
        unlabelled: Faces without.
        subsets: Name of each published subset to the names of its faces.
        protocol: How papers score the set, where it is a published one.
        converted_from: The scheme of the set's own annotation, where it is another.
    """

    layout: str
    split: str
    scheme: str
    labelled: list[Face]
    unlabelled: list[Face]
    subsets: dict[str, frozenset[str]] = field(default_factory=dict)
    protocol: Published | None = None
    converted_from: str | None = None

    @property
    def people(self) -> list[str]:
        """The people of the labelled faces, sorted."""
        return sorted({face.person for face in self.labelled if face.person is not None})

    def in_scheme(self, scheme: str) -> FaceSet:
        """The set with its points in another scheme; itself where no point has to change.

        Args:
            scheme: Name of the wanted scheme.

        Raises:
            ConfigError: If the set's points cannot be turned into that scheme; the message names both.
        """
        chosen = conversion(self.scheme, scheme) if self.labelled else None
        if chosen is None:
            return self
        index = list(chosen)
        labelled = [
            replace(
                face,
                points=None if face.points is None else face.points[index],
                visible=None if face.visible is None else face.visible[index],
            )
            for face in self.labelled
        ]
        return replace(self, scheme=scheme, labelled=labelled, converted_from=self.scheme)


def unique_names(names: Sequence[str]) -> list[str]:
    """A name for each face of a list of pictures that may repeat.

    Args:
        names: The picture of each face, in the set's order.

    Returns:
        The picture's own name where it has one face; ``name#1``, ``name#2``... in the set's order otherwise.
    """
    faces = Counter(names)
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if faces[name] == 1 else f"{name}#{seen[name]}")
    return found
