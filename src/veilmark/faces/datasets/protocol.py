"""How a published set is scored by the papers that use it, as data that travels with its faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from veilmark.landmarks.nme import Normaliser


@dataclass(frozen=True)
class Column:
    """One column of the table that papers print.

    Attributes:
        label: Heading of the column, with its unit.
        kind: The length that divides the errors.
        figure: ``nme``: mean over faces; ``fr``: failure rate; ``auc``: area under the error curve; in percent.
        threshold: For ``fr`` and ``auc``, in percent of NME.
        visible_only: Whether points that the set marks as invisible are left out.
    """

    label: str
    kind: Normaliser
    figure: Literal["nme", "fr", "auc"] = "nme"
    threshold: float = 10.0
    visible_only: bool = False


@dataclass(frozen=True)
class Published:
    """The protocol of a set.

    Attributes:
        normalisations: The lengths that its papers divide by, each in words; the first is the usual one.
        columns: The columns of their tables.
        crop: What they crop, and what is cropped here, in words.
    """

    normalisations: dict[Normaliser, str]
    columns: tuple[Column, ...]
    crop: str

    @property
    def usual(self) -> Normaliser:
        """The first of the normalisations."""
        return next(iter(self.normalisations))
