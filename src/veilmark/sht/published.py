"""The table that papers print for a published set: the split and its subsets, in the columns of its protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.datasets import FaceSet
from veilmark.faces.datasets.protocol import Column
from veilmark.landmarks.metrics import area_under_ced, failure_rate
from veilmark.landmarks.nme import face_nme
from veilmark.landmarks.scheme import Scheme


@dataclass(frozen=True)
class Answers:
    """Predicted and true points of ``n`` faces, in pixels of their pictures.

    Attributes:
        names: Name of each face.
        predicted: ``(n, k, 2)``.
        true: ``(n, k, 2)``.
        regions: ``(n, 4)`` the boxes that the set gives, where it gives them.
        visible: ``(n, k)`` bool, where the set says which points can be seen.
    """

    names: list[str]
    predicted: NDArray[np.floating]
    true: NDArray[np.floating]
    regions: NDArray[np.floating] | None = None
    visible: NDArray[np.bool_] | None = None


def _figure(column: Column, nmes: NDArray[np.float64]) -> float:
    """One cell of the table, in percent."""
    values = nmes.tolist()
    if column.figure == "fr":
        return failure_rate(values, column.threshold)
    if column.figure == "auc":
        return area_under_ced(values, column.threshold)
    return math.fsum(values) / len(values)


def published_rows(faces: FaceSet, answers: Answers, scheme: Scheme) -> list[dict[str, Any]]:
    """The rows of the table: the whole split first, then its subsets.

    Args:
        faces: The set, with its protocol; a set without one has no rows.
        answers: The points. Faces that could not be read are not among them and count nowhere.
        scheme: Scheme of the points.

    Returns:
        For each row ``subset`` (the split's or the subset's name), ``n`` faces, and the columns' labels, in
        percent. A subset of which no face could be read has no row.

    Raises:
        DataError: If a face has no length to divide by; the message names its row.
    """
    protocol = faces.protocol
    if protocol is None or not answers.names:
        return []
    nmes = {
        (kind, seen): face_nme(
            answers.predicted,
            answers.true,
            scheme,
            kind,
            boxes=answers.regions,
            visible=answers.visible if seen else None,
        )
        for kind, seen in {(column.kind, column.visible_only) for column in protocol.columns}
    }
    rows = []
    for subset, members in {faces.split: frozenset(answers.names), **faces.subsets}.items():
        inside = np.array([name in members for name in answers.names])
        if inside.any():
            cells = {c.label: _figure(c, nmes[c.kind, c.visible_only][inside]) for c in protocol.columns}
            rows.append({"subset": subset, "n": int(inside.sum()), **cells})
    return rows
