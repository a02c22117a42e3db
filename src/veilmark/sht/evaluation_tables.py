"""An evaluation as tables for a terminal."""

from __future__ import annotations

from rich.table import Table

from veilmark.sht.evaluation import Evaluation


def evaluation_tables(result: Evaluation) -> list[Table]:
    """What an evaluation found: landmarks, the table that papers print, hallucination; each where there is any."""
    tables: list[Table] = []
    table = Table("face px", "box", "method", "n", "NME %", "95 %", "median", "FR10 %", "AUC10 %", "calibration")
    for row in result.landmarks:
        low, high = row.get("nme_interval95", (None, None))
        interval = "" if low is None else f"{low:.2f} to {high:.2f}"
        claim = "" if row["calibration"] is None else f"{row['calibration']:.2f}"
        figures = (f"{row[name]:.2f}" for name in ("nme_median", "fr10", "auc10"))
        table.add_row(
            str(row["size"]), row["box"], row["method"], str(row["n"]), f"{row['nme']:.2f}", interval, *figures, claim
        )
    if result.landmarks:
        tables.append(table)
    if result.published:
        labels = [label for label in result.published[0] if label not in ("subset", "n")]
        size = max(row["size"] for row in result.landmarks)
        printed = Table("subset", "n", *labels, title=f"as papers print it, at {size} px")
        for row in result.published:
            printed.add_row(row["subset"], str(row["n"]), *(f"{row[label]:.2f}" for label in labels))
        tables.append(printed)
    if result.hallucination:
        images = Table("face px", "PSNR RGB", "bicubic", "gain dB", "SSIM RGB", "bicubic", "PSNR Y", "bicubic")
        for row in result.hallucination:
            gain = row["psnr_rgb"] - row["bicubic_psnr_rgb"]
            pictures = (row["psnr_rgb"], row["bicubic_psnr_rgb"], gain)
            images.add_row(
                str(row["size"]),
                *(f"{v:.2f}" for v in pictures),
                f"{row['ssim_rgb']:.3f}",
                f"{row['bicubic_ssim_rgb']:.3f}",
                f"{row['psnr_y']:.2f}",
                f"{row['bicubic_psnr_y']:.2f}",
            )
        tables.append(images)
    return tables
