"""Makes pictures of parts of pages: the README's second one, and that of an audit's report.

    veilmark federate --task landmarks
    python benchmarks/report_picture.py runs/landmarks/report.html --out docs/images/landmark-federations.webp
    veilmark federate && veilmark audit runs/federate/ppidsg
    python benchmarks/report_picture.py runs/federate/ppidsg/audit/report.html --first short --until verdicts --out FILE

Needs playwright (``pip install 'veilmark[browser]'``) and Chromium, at /usr/bin/chromium or on PATH.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

WIDTH = 1040
CHROMIUM = "/usr/bin/chromium"


def main(
    page: Annotated[Path, typer.Argument(help="The page.", exists=True)],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("docs/images/landmark-federations.webp"),
    first: Annotated[str, typer.Option(help="Heading that the picture begins with, by its id.")] = "charts",
    until: Annotated[str | None, typer.Option(help="Heading before which it ends; none: the page's foot.")] = None,
) -> None:
    """Draws the page in Chromium and cuts a part out."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        top, low = (
            shown.evaluate(f"document.querySelector({part!r}).getBoundingClientRect().top + scrollY")
            for part in (f"#{first}", f"#{until}" if until else "footer")
        )
        drawn = shown.screenshot(full_page=True, clip={"x": 0, "y": top - 24, "width": WIDTH, "height": low - top})
        browser.close()
    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    picture.save(out, quality=90, method=6)
    typer.echo(f"{out}: {picture.width} x {picture.height}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(main)
