"""The reports in a real browser: nothing is fetched, nothing overflows, on a laptop and on a phone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_federation_report import a_run

from veilmark.report import html, plots
from veilmark.report.audit import write_audit_report
from veilmark.report.federation import write_comparison, write_federation_report
from veilmark.report.verdicts import REAL

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A table shown as cards keeps its head for screen readers, clipped to a pixel; it may be wider than the page.
BEYOND = """[...document.querySelectorAll('body *:not(thead *)')]
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => element.outerHTML.slice(0, 80))"""
LONG = "an-unreasonably-long-name_" * 4


def demo(run):
    rows = []
    for size in (16, 64, 128):
        names = {kind: f"{size}_{kind}.png" for kind in ("input", "hallucinated", "overlay_input")}
        for kind, name in names.items():
            side = size if kind == "input" else 128
            Image.fromarray(np.full((side, side, 3), size, np.uint8)).save(run / name)
        figures = {"trust": 0.9, "expected_error_percent": 6.1, "shift_percent": 5.9}
        rows.append({"size": size, **names, "overlay_hallucinated": names["overlay_input"], **figures})
    summary = {"title": LONG, "created": "today", "version": "0.1.0", "seconds": 3.0, "machine": LONG}
    weights = {"name": LONG, "parameters": 10**6, "megabytes": 4.0}
    faces = [{"name": LONG, "source": LONG, "rows": rows}]
    (run / "summary.json").write_text(json.dumps({**summary, "weights": weights, "faces": faces}))
    return html.write_demo_report(run)


def training(run):
    records = [{"step": i, "loss": 1 / (i + 1), "images_per_second": 90.0, "seconds": 9000.0 * i} for i in range(9)]
    records.append({"step": 8, "validation": {"16": {"nme": 6.0, "psnr": 21.0}}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "config.yaml").write_text(f"name: {LONG}\n")
    return html.write_training_report(run)


def evaluation(run):
    figures = {
        "n": 298,
        "nme": 6.9,
        "nme_median": 6.2,
        "fr8": 26.1,
        "fr10": 14.5,
        "auc10": 37.9,
        "calibration": 1.0,
    }
    landmarks = [{"size": 16, "box": "finder", "method": method, **figures} for method in (LONG, "mean shape")]
    pictures = {f"{by}{kind}": 20.0 for by in ("", "bicubic_") for kind in ("psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y")}
    record = {
        "protocol": {"data": LONG},
        "landmarks": landmarks,
        "hallucination": [{"size": 16, "n": 9, **pictures}],
    }
    (run / "metrics.json").write_text(json.dumps(record))
    plots.plot_ced({"dhln": np.array([3.0, 5.0])}, run / "ced.png")
    return html.write_evaluation_report(run)


def federation(run):
    return write_federation_report(a_run(run / "run", LONG))


def audit(run):
    """An audit with long words everywhere, two pictures, and an attack that has nothing to attack."""
    folder = run / "audit"
    (folder / "pictures").mkdir(parents=True)
    for name, wide in (("faces", 384), ("face", 192)):
        Image.fromarray(np.full((384, wide, 3), 99, np.uint8)).save(folder / f"pictures/{name}.png")
    figures = {"method": "none", "dataset": "digits", "seed": 0, "n": 9, "chance": 20.2, "positive_control": 23.3}
    figures |= {"negative_control": 11.8, "value": 100.0, "low": 99.1, "high": 100.0}
    words = {"metric": "area under the curve, by landmarks, %", "unit": "% of the eyes' distance"}
    lines = [
        {"attack": attack, "threat_model": "honest-but-curious server", "rung": rung, **words, **figures}
        for attack, rungs in {
            LONG: ["one face, one step of SGD, landmarks and all networks known", REAL],
            "b": ["leaked"],
        }.items()
        for rung in rungs
    ]
    (folder / "audit.json").write_text(json.dumps(lines))
    summary = {"created": "today", "version": "0.1.0", "run": LONG, "method": LONG, "dataset": "digits", "clients": 4}
    summary |= {"rounds": [1, 6], "seed": 0, "score": 21.8, "score_words": "NME at 16 px, %", "shared": [LONG] * 9}
    summary |= {"metrics": ["loss", LONG], "public": 100, "threat_models": {"honest-but-curious server": LONG}}
    questions = {LONG: "If messages came without names, could the server tell who sent them?", "b": LONG}
    summary |= {"questions": questions, "needs": questions, "obstacles": {LONG: LONG}, "skipped": [LONG]}
    summary |= {"pictures": {LONG: {REAL: "pictures/faces.png", "one face": "pictures/face.png"}}, "not_tried": [LONG]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return write_audit_report(folder)


def comparison(run):
    runs = [a_run(run / name, name, bytes_up=size) for name, size in (("none", 10**7), ("local", 0), (LONG, 10**6))]
    for one in (runs[0], runs[2]):
        audit(one)
    return write_comparison(runs, run)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'veilmark[browser]'"
    )
    system = Path("/usr/bin/chromium")
    executable = str(system) if system.exists() else shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is neither at /usr/bin/chromium nor on PATH: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1000, 1280])  # a phone, a tablet, half a screen, a laptop
@pytest.mark.parametrize("write", [demo, training, evaluation, federation, audit, comparison])
def test_a_report_fits_and_fetches_nothing(browser, write, width, scheme, tmp_path):
    path = write(tmp_path)
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    fetched, complaints = [], []
    page.on("request", lambda request: fetched.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    assert [url for url in fetched if not url.startswith("data:")] == [path.as_uri()]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(BEYOND) == []
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(251, 250, 247)",
            "dark": "rgb(18, 20, 23)",
        }[scheme]
    )
    page.close()


def test_a_table_stays_a_table_when_a_phone_shows_it_as_cards(browser, tmp_path):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(training(tmp_path).as_uri())
    table = page.get_by_role("table")
    assert table.get_by_role("columnheader").all_inner_texts()[:2] == ["Face size", "At step"]
    assert table.get_by_role("rowheader").all_inner_texts() == ["16 px"]
    assert page.evaluate("getComputedStyle(document.querySelector('td'), '::before').content") == '"At step"'
    page.close()


def test_one_face_is_drawn_as_large_as_one_of_two(browser, tmp_path):
    page = browser.new_page(viewport={"width": 1040, "height": 844})
    page.goto(comparison(tmp_path).as_uri())
    sizes = page.evaluate(
        "[...document.querySelectorAll('.sheets img')].map(i => [i.naturalWidth, Math.round(i.clientHeight)])"
    )
    assert len(sizes) == 4
    assert {wide for wide, _ in sizes} == {192, 384}
    assert max(height for _, height in sizes) - min(height for _, height in sizes) <= 1
    page.close()
