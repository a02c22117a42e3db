"""The files of an evaluation: figures, per-face errors, plots and the report."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from veilmark.report.html import write_evaluation_report
from veilmark.report.plots import contact_sheet, plot_ced, plot_nme_by_size
from veilmark.run.folder import write_json, write_text
from veilmark.sht.evaluation import Evaluation


def write_evaluation(result: Evaluation, folder: Path) -> Path:
    """Writes ``metrics.json``, ``faces.csv`` (the NME of every face), the plots and ``report.html``.

    Returns:
        The report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", result.metrics())
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["method", "box", "size", "face", "nme"])
    for (method, box, size), nmes in result.nmes.items():
        table.writerows([method, box, size, name, f"{nme:.4f}"] for name, nme in zip(result.names, nmes, strict=True))
    write_text(folder / "faces.csv", stream.getvalue())
    plot_nme_by_size(result.landmarks, folder / "nme_by_size.png")
    own = {f"{size} px, {box}": nmes for (method, box, size), nmes in result.nmes.items() if method != "mean shape"}
    plot_ced(own, folder / "ced.png")
    if result.examples:
        contact_sheet(result.examples, 4, folder / "faces.png")
    return write_evaluation_report(folder)
