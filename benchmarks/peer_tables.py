"""The table and the chart of ``peers.py``, from its stored rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from veilmark.report.plots import COLOURS, write_atomically


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, by size."""
    names = ("face px", "method", "box", "scored", "not found", "NME % (95 %)", "median", "FR10 %",
             "NME %, all faces", "FR10 %, all faces", "NME %, offsets left in")  # fmt: skip
    lines = [names, ("---",) * len(names)]
    for row in sorted(rows, key=lambda row: row["size"]):
        low, high = row["nme_interval95"]
        figures = (row[name] for name in ("nme_median", "fr10", "nme_all", "fr10_all", "nme_with_offsets"))
        lines.append((
            str(row["size"]), row["method"], row["box"], str(row["n"]), str(row["missed"]),
            f"{row['nme']:.2f} ({low:.2f} to {high:.2f})", *(f"{figure:.2f}" for figure in figures),
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draws NME against the size of the face with 95 % intervals, 1200 px wide, and returns the path of the PNG."""
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    by_box = {(row["box"], row["size"]): row for row in rows}
    sizes = sorted({row["size"] for row in rows})
    ours, peer = COLOURS[:2]
    # A label stands in points beside the curve, where the falling curves leave room.
    for box, name, colour, line, label, point, offset in (
        ("own detector", "nme_all", peer, "--", "MediaPipe, a face it misses counts with the mean shape", 0, (10, 0)),
        ("own detector", "nme", peer, "-", "MediaPipe, faces it finds", len(sizes) // 3, (4, 14)),
        ("found box", "nme", ours, "-", "Veilmark, found box (band: annotated to jittered)", 0, (6, -40)),
    ):
        values = np.array([by_box[box, size][name] for size in sizes])
        ends = np.array([by_box[box, size][f"{name}_interval95"] for size in sizes])
        axes.errorbar(sizes, values, np.abs(ends.T - values), color=colour, ls=line, marker="o", lw=2, capsize=3)
        at = (sizes[point], values[point])
        axes.annotate(label, at, offset, textcoords="offset points", color=colour, fontsize=12)
    annotated, jittered = ([by_box[f"{box} box", size]["nme"] for size in sizes] for box in ("annotated", "jittered"))
    axes.fill_between(sizes, annotated, jittered, color=ours, alpha=0.25, linewidth=0)
    axes.set_title("NME, % of the inter-ocular distance, style offsets removed", loc="left", fontsize=13)
    axes.set_xlabel(
        "side of the face crop, px\nVeilmark learnt from other people of the same source as these faces.", fontsize=12
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=12)
    axes.grid(axis="y", color="#e3e3e3")
    axes.spines[["top", "right"]].set_visible(False)
    return write_atomically(path, lambda out: figure.savefig(out, format="png", metadata={"Software": None}))
