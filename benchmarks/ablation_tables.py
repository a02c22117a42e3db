"""Tables of the ablation, from its finished cells: ``python benchmarks/ablation.py --print``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from veilmark.landmarks.metrics import bootstrap_interval
from veilmark.run.seeds import rng_for

RESULTS = Path(__file__).parent / "results" / "ablation"
REPORT = 273
"""First person of ``report``; the people of ``val`` before are ``select``."""

console = Console(highlight=False, soft_wrap=True, width=200)

Key = tuple[str, str]

MUTUAL: tuple[Key, ...] = (
    ("mutual", "heatmaps"),
    ("mutual", "hallucination"),
    ("mutual", "heatmap guidance"),
    ("mutual", "detail guidance"),
    ("mutual", "transfer"),
    ("mutual", "transfer and teacher"),
)


REPAIRS: dict[str, Key] = {
    "face weight 0.3, nothing exchanged": MUTUAL[1],
    "face weight 0.3": MUTUAL[3],
    "three stages": MUTUAL[3],
    "two cosines, pairs of no weight": MUTUAL[3],
    "transfer in the last quarter": MUTUAL[3],
    "one cosine": MUTUAL[3],
    "one cosine and teacher": MUTUAL[3],
}
"""What was tried where a step did not pay, and the cell that it is held against."""


WHOLE: Key = ("repair", "one cosine and teacher")
"""The whole of SHT in the tables of few and of imprecise labels."""


class Cells:
    """The finished cells of a grid.

    Args:
        files: The JSON files.
        report_only: Whether only the people of ``report`` count, or all of ``val``.
    """

    def __init__(self, files: Sequence[Path], report_only: bool) -> None:
        self.rows: dict[Key, list[dict[str, Any]]] = {}
        for file in files:
            cell = json.loads(file.read_text(encoding="utf-8"))
            self.rows.setdefault((cell["table"], cell["name"]), []).append(cell)
        self.report_only = report_only

    def __contains__(self, key: Key) -> bool:
        return key in self.rows

    def values(self, key: Key, size: int, figure: str) -> tuple[NDArray[np.float64], list[str]] | None:
        """A figure of every face, the mean over seeds, and the face's person; None if there is none."""
        cells = self.rows.get(key, [])
        if not cells or figure not in cells[0]["sizes"][str(size)]:
            return None
        people = cells[0]["people"]
        values = np.mean([cell["sizes"][str(size)][figure] for cell in cells], axis=0)
        kept = [i for i, person in enumerate(people) if not self.report_only or int(person[2:]) >= REPORT]
        return values[kept], [people[i] for i in kept]

    def mean(self, key: Key, size: int, figure: str) -> str:
        """A mean, or nothing."""
        found = self.values(key, size, figure)
        return "" if found is None else f"{found[0].mean():.2f}"

    def failures(self, key: Key, size: int) -> str:
        """Share of faces above 10 %, mean over seeds."""
        rates = []
        for cell in self.rows.get(key, []):
            nmes = [
                nme
                for nme, person in zip(cell["sizes"][str(size)]["nme"], cell["people"], strict=True)
                if not self.report_only or int(person[2:]) >= REPORT
            ]
            rates.append(100 * np.mean(np.array(nmes) > 10))
        return f"{np.mean(rates):.2f}" if rates else ""

    def gain(self, key: Key, size: int) -> str:
        """PSNR over bicubic."""
        painted, plain = self.values(key, size, "psnr"), self.values(key, size, "bicubic")
        return "" if painted is None or plain is None else f"{(painted[0] - plain[0]).mean():+.2f}"

    def difference(self, key: Key, other: Key, size: int, figure: str) -> str:
        """Mean difference to another cell, face by face, with its 95 % interval over people."""
        a, b = self.values(key, size, figure), self.values(other, size, figure)
        if a is None or b is None:
            return ""
        moved = a[0] - b[0]
        low, high = bootstrap_interval(moved, a[1], rng_for(0, size))
        return f"{moved.mean():+.2f} ({low:+.2f} to {high:+.2f})"

    def cost(self, key: Key) -> str:
        """Minutes of training, mean over seeds."""
        cells = self.rows.get(key, [])
        return f"{np.mean([cell['seconds'] for cell in cells]) / 60:.0f}" if cells else ""

    def seeds(self, key: Key) -> str:
        """How many seeds."""
        return str(len(self.rows.get(key, []))) if key in self else "not run yet"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table."""
    console.print(f"\n{title}\n")
    console.print("| " + " | ".join(header) + " |")
    console.print("|" + " --- |" * len(header))
    for row in rows:
        console.print("| " + " | ".join(row) + " |")


def landmark_row(cells: Cells, key: Key, other: Key | None) -> list[str]:
    """NME and failures at every size, and the difference to the row before at 16 px."""
    nmes = [cells.mean(key, size, "nme") for size in (16, 32, 64, 128)]
    moved = "" if other is None else cells.difference(key, other, 16, "nme")
    return [key[1], cells.seeds(key), *nmes, cells.failures(key, 16), moved, cells.cost(key)]


LANDMARKS = ("cell", "seeds", "16 px", "32 px", "64 px", "128 px", "FR10 at 16 px", "change at 16 px", "minutes")


CONTROL = RESULTS / "control-long-transfer-gpu-s0.json"
"""A cell that a CPU has trained, trained once more on the GPU that trained others: what the device is worth."""


LONG: tuple[tuple[str, str | None], ...] = (
    ("heatmaps", None),
    ("hallucination", "heatmaps"),
    ("heatmap guidance", "hallucination"),
    ("detail guidance", "heatmap guidance"),
    ("transfer", "detail guidance"),
    ("transfer and teacher", "transfer"),
    ("10% labelled", "detail guidance"),
    ("10% and unlabelled", "10% labelled"),
    ("4 px heatmaps", "heatmaps"),
    ("4 px SHT", "4 px heatmaps"),
    ("transfer, on a GPU", "transfer"),
)
"""The cells of the long grid, each with the one that it is held against; that one's first predecessor that is there
stands in where it has not been run."""


def long_tables(cells: Cells, where: str) -> None:
    """Prints the long grid: landmarks and hallucination."""
    before = dict(LONG)
    rows = []
    for name, other in LONG:
        held: str | None = other
        while held is not None and ("long", held) not in cells:
            held = before[held]
        key, against = ("long", name), None if held is None else ("long", held)
        landmarks = landmark_row(cells, key, against)
        painted = "" if against is None else cells.difference(key, against, 16, "psnr")
        gains = [cells.gain(key, size) for size in (16, 32, 64)]
        rows.append([*landmarks[:7], held or "", landmarks[7], *gains, painted, landmarks[8]])
    header = (*LANDMARKS[:7], "held against", "change at 16 px")
    gains = tuple(f"dB over bicubic, {size} px" for size in (16, 32, 64))
    table(f"Long grid, {where}", (*header, *gains, "change at 16 px, dB", "minutes"), rows)


def print_tables(grid: Sequence[Any]) -> None:
    """Prints every table whose cells are there, on ``report`` and on ``val``, and the coverage.

    Args:
        grid: All cells, finished or not.
    """
    files = [RESULTS / f"{cell.key}.json" for cell in grid]
    done = [file for file in files if file.exists()]
    console.print(f"{len(done)} of {len(files)} cells are finished; NME in percent, intervals are 95 % over people")
    for report_only in (True, False):
        cells = Cells([*done, *(file for file in (CONTROL,) if file.exists())], report_only)
        where = "report" if report_only else "val"
        long_tables(cells, where)
        steps = [landmark_row(cells, key, MUTUAL[i - 1] if i else None) for i, key in enumerate(MUTUAL)]
        steps.append(landmark_row(cells, ("budget", "heatmaps twice"), MUTUAL[0]))
        pictures = []
        steps.append(landmark_row(cells, ("hallucination", "super-resolve, then detect"), MUTUAL[0]))
        painters = (("hallucination", "super-resolution"), *MUTUAL[1:])
        for i, key in enumerate(painters):
            gains = [cells.gain(key, size) for size in (16, 32, 64)]
            found = [cells.rows[key][0]["sizes"][str(s)].get("ssim", "") if key in cells else "" for s in (16, 32, 64)]
            moved = cells.difference(key, painters[i - 1], 16, "psnr") if i else ""
            pictures.append([key[1], *gains, *(str(v) for v in found), moved])
        for name, other in REPAIRS.items():
            key = ("repair", name)
            gains = [cells.gain(key, size) for size in (16, 32, 64)]
            found = [cells.rows[key][0]["sizes"][str(s)].get("ssim", "") if key in cells else "" for s in (16, 32, 64)]
            moved = cells.difference(key, other, 16, "psnr")
            pictures.append([f"repair: {name}", *gains, *(str(v) for v in found), moved])
            steps.append(landmark_row(cells, key, other))
        header = ("cell", *(f"dB over bicubic, {s} px" for s in (16, 32, 64)), *(f"SSIM, {s} px" for s in (16, 32, 64)))
        table(
            f"Mutual enhancement, NME, {where} (change against the row above; of heatmaps twice and of super-resolve, "
            "then detect against heatmaps; of "
            "repairs against the cell that they repair)",
            LANDMARKS,
            steps,
        )
        table(f"Hallucination, {where}", (*header, "change at 16 px, dB"), pictures)
        labels = []
        whole = ("mutual", "detail guidance")
        for share in ("100%", "25%", "10%", "5%"):
            for kind in ("labelled", "and unlabelled"):
                full = whole if kind == "labelled" else WHOLE
                key = full if share == "100%" else ("few", f"{share} {kind}")
                row = landmark_row(cells, key, whole if key != whole else None)
                labels.append([f"{share} {kind}", *row[1:]])
        table(f"Few labels, {where} (change against all labelled)", LANDMARKS, labels)
        errors = []
        for pixels in ("0", "1", "2", "4"):
            plain = MUTUAL[0] if pixels == "0" else ("jitter", f"{pixels} px heatmaps")
            rich = WHOLE if pixels == "0" else ("jitter", f"{pixels} px SHT")
            errors += [[f"{pixels} px, heatmaps only", *landmark_row(cells, plain, None)[1:]]]
            errors += [[f"{pixels} px, SHT", *landmark_row(cells, rich, plain)[1:]]]
        table(f"Imprecise labels, {where} (change of SHT against heatmaps only)", LANDMARKS, errors)
        strides = []
        for stride in ("4", "2", "1"):
            plain = ("stride", f"{stride} heatmaps")
            strides.append(landmark_row(cells, plain, None))
            strides.append(landmark_row(cells, ("stride", f"{stride} hallucinated features"), plain))
        table(f"Compression inside the network, trained at 128 px, {where}", LANDMARKS, strides)
