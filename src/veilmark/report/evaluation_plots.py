"""The charts of an evaluation, drawn from the files that it left in its folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.images import read_image
from veilmark.report.plots import contact_sheet, plot_ced, plot_nme_by_size

FLOOR = "mean shape"
"""The method that every chart of errors leaves to the tables: it would flatten the others."""


def read_faces_csv(path: Path) -> dict[str, NDArray[np.float64]]:
    """NME of every face in percent, by ``"<size> px, <box> box"``.

    Of many sizes the smallest, the middle and the largest are kept: more curves cannot be told apart.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] != FLOOR]
    sizes = sorted({int(row["size"]) for row in rows})
    shown = {sizes[0], sizes[(len(sizes) - 1) // 2], sizes[-1]} if sizes else set()
    curves: dict[str, list[float]] = {}
    for row in rows:
        if int(row["size"]) in shown:
            curves.setdefault(f"{row['size']} px, {row['box']} box", []).append(float(row["nme"]))
    return {label: np.asarray(nmes) for label, nmes in curves.items()}


def draw_evaluation(run: Path) -> None:
    """Draws ``nme_by_size.png``, ``ced.png`` and ``faces.png`` from what lies in the folder.

    Args:
        run: Folder with ``metrics.json``, and, where the evaluation wrote them, ``faces.csv`` and ``examples/``.
    """
    rows = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["landmarks"]
    if len({row["size"] for row in rows}) > 1:
        plot_nme_by_size(rows, run / "nme_by_size.png")
    if (run / "faces.csv").exists():
        curves = read_faces_csv(run / "faces.csv")
        if curves:
            plot_ced(curves, run / "ced.png")
    captions_file = run / "examples" / "captions.json"
    if captions_file.exists():
        captions = json.loads(captions_file.read_text(encoding="utf-8"))
        tiles = [(read_image(captions_file.parent / name), caption) for name, caption in sorted(captions.items())]
        if tiles:
            contact_sheet(tiles, 4, run / "faces.png")
