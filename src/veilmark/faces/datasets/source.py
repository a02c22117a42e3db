"""Where a published set comes from, and the errors that say so when a file of it is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.images import ImageError, picture_size
from veilmark.landmarks.reading import check_points
from veilmark.run.errors import DataError


@dataclass(frozen=True)
class Source:
    """A published set as an error names it.

    Attributes:
        name: What the field calls it.
        home: Address of its home page.
        terms: Who may use it, in a few words.
    """

    name: str
    home: str
    terms: str

    def __str__(self) -> str:
        return f"{self.name} comes from {self.home} ({self.terms}); Veilmark does not download it"

    def need(self, path: Path) -> Path:
        """The path, if it is there.

        Raises:
            DataError: If it is not; the message names it, the set's home page and its terms.
        """
        if not path.exists():
            raise DataError(f"{path} does not exist; {self}")
        return path

    def need_one(self, paths: list[Path]) -> Path:
        """The first of several places that is there.

        Raises:
            DataError: If none is; the message names all of them, the set's home page and its terms.
        """
        for path in paths:
            if path.exists():
                return path
        raise DataError(f"none of {', '.join(map(str, paths))} exists; {self}")

    def check_face(self, picture: Path, points: NDArray[np.floating], where: str) -> None:
        """Refuses a face whose picture is missing, or whose points cannot belong to it.

        A picture that cannot be read passes: it is skipped and listed where the pixels are read.

        Args:
            picture: The picture.
            points: ``(k, 2)`` in its pixels, corner origin.
            where: File and row of the points, for the message.

        Raises:
            DataError: If the picture is not there, or a point is not finite or far outside.
        """
        if not picture.exists():
            raise DataError(f"{where}: {picture} does not exist; {self}")
        try:
            size = picture_size(picture)
        except ImageError:
            return
        check_points(points, *size, where=where)
