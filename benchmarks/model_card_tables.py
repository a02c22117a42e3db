"""Prints the tables of the model card and the README from the committed results.

python benchmarks/model_card_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

RESULTS = Path(__file__).parent / "results"


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def _rows(metrics: dict[str, Any], method: str, box: str) -> dict[int, dict[str, Any]]:
    rows = metrics["landmarks"] + metrics["mean_shape"]
    return {row["size"]: row for row in rows if (row["method"], row["box"]) == (method, box)}


def _table(*columns: str) -> None:
    typer.echo("| " + " | ".join(columns) + " |")


def _ruled(*columns: str) -> None:
    _table(*columns)
    _table(*("---" for _ in columns))


def _with_interval(row: dict[str, Any]) -> str:
    low, high = row["nme_interval95"]
    return f"{row['nme']:.2f} ({low:.2f} to {high:.2f})"


def landmarks(metrics: dict[str, Any]) -> None:
    """NME and its company, by size and box."""
    data = metrics["protocol"]
    typer.echo(f"\n{data['data']}: {data['faces']} faces of {data['people']} people, {data['date']}\n")
    _ruled("face px", "box", "NME % (95 %)", "median", "FR10 %", "AUC10 %", "calibration")
    for box in ("finder", "annotated"):
        for size, row in _rows(metrics, "dhln", box).items():
            figures = (f"{row[name]:.2f}" for name in ("nme_median", "fr10", "auc10", "calibration"))
            _table(str(size), box, _with_interval(row), *figures)
    mean = next(iter(_rows(metrics, "mean shape", "annotated").values()))
    _table("any", "annotated, mean shape", _with_interval(mean), f"{mean['nme_median']:.2f}", f"{mean['fr10']:.2f}",
           f"{mean['auc10']:.2f}", "")  # fmt: skip


def floor(metrics: dict[str, Any], hourglass: dict[str, Any]) -> None:
    """The first weights of DHLN beside the plain hourglass, both trained for the same time."""
    typer.echo(
        f"\nplain two-stack hourglass: {hourglass['parameters'] / 1e6:.2f} M parameters, "
        f"{hourglass['seconds'] / 60:.0f} minutes, {hourglass['epochs']} epochs\n"
    )
    _ruled("face px", "DHLN, first weights, NME %", "FR10 %", "plain hourglass, NME %", "FR10 %")
    ours = _rows(metrics, "dhln", "annotated")
    for row in hourglass["landmarks"]:
        own = ours[row["size"]]
        _table(str(row["size"]), *(f"{v:.2f}" for v in (own["nme"], own["fr10"], row["nme"], row["fr10"])))


def pictures(metrics: dict[str, Any]) -> None:
    """PSNR and SSIM beside bicubic enlarging."""
    typer.echo("")
    _ruled("face px", "PSNR RGB", "bicubic", "gain dB", "SSIM RGB", "bicubic", "PSNR Y", "bicubic")
    for row in metrics["hallucination"]:
        gain = row["psnr_rgb"] - row["bicubic_psnr_rgb"]
        _table(
            str(row["size"]), f"{row['psnr_rgb']:.2f}", f"{row['bicubic_psnr_rgb']:.2f}", f"{gain:.2f}",
            f"{row['ssim_rgb']:.3f}", f"{row['bicubic_ssim_rgb']:.3f}", f"{row['psnr_y']:.2f}",
            f"{row['bicubic_psnr_y']:.2f}",
        )  # fmt: skip


def against_first(metrics: dict[str, Any], first: dict[str, Any]) -> None:
    """The packaged weights beside those of the first release."""
    typer.echo(f"\n{metrics['protocol']['data']}, annotated box: the first weights, and the packaged ones\n")
    _ruled("face px", "NME %, first", "packaged", "FR10 %, first", "packaged", "dB over bicubic, first", "packaged")
    before, now = (_rows(m, "dhln", "annotated") for m in (first, metrics))
    gains = [
        {row["size"]: f"{row['psnr_rgb'] - row['bicubic_psnr_rgb']:+.2f}" for row in m["hallucination"]}
        for m in (first, metrics)
    ]
    for size in now:
        figures = (f"{rows[size][name]:.2f}" for name in ("nme", "fr10") for rows in (before, now))
        _table(str(size), *figures, *(gain.get(size, "") for gain in gains))


def main() -> None:
    """Prints every table."""
    report = _read("dhln-ytf68-report.json")
    for metrics in (report, _read("dhln-ytf68-val.json")):
        landmarks(metrics)
        pictures(metrics)
    for split, metrics in (("report", report), ("val", _read("dhln-ytf68-val.json"))):
        against_first(metrics, _read(f"first-weights-{split}.json"))
    floor(_read("first-weights-report.json"), _read("plain-hourglass-report.json"))


if __name__ == "__main__":
    main()
