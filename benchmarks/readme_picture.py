"""Makes the README's picture from scikit-image's photograph (NASA, public domain).

python benchmarks/readme_picture.py --out docs/images/small-faces.png
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont

from veilmark.sht.demo import run_demo

SIZES = (16, 24, 32)
TILE, GAP, LINE = 224, 8, 22
COLUMNS = (
    ("input", "what the camera saw", Image.Resampling.NEAREST),
    ("hallucinated", "the hallucinated face", Image.Resampling.BICUBIC),
    ("overlay_hallucinated", "landmarks and expected errors", Image.Resampling.LANCZOS),
)


def main(
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/images/small-faces.png"),
    weights: str = "dhln-ytf68",
) -> None:
    """Runs the demo and puts its pictures together."""
    font = ImageFont.load_default(15)
    width = len(COLUMNS) * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, len(SIZES) * (TILE + LINE + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    with tempfile.TemporaryDirectory() as folder:
        summary = run_demo(Path(folder), weights, "cpu")
        rows = {row["size"]: row for row in summary["faces"][0]["rows"]}
        for line, size in enumerate(SIZES):
            top = GAP + line * (TILE + LINE + GAP)
            for column, (key, words, kernel) in enumerate(COLUMNS):
                left = GAP + column * (TILE + GAP)
                with Image.open(Path(folder) / rows[size][key]) as tile:
                    sheet.paste(tile.resize((TILE, TILE), kernel), (left, top + LINE))
                label = f"{size} px: {words}" if column == 0 else words
                pen.text((left, top + 2), label, fill="#333", font=font)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    typer.run(main)
