import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from veilmark.report import html, plots
from veilmark.run.errors import DataError, VeilmarkError

HOSTILE = '<script>alert(1)</script>"onerror="x' + "'>&{{ 7*7 }}"
UNKNOWN = "\N{EN DASH}not measured"  # a dash to look at, words for screen readers
PICTURES = ("input", "hallucinated", "overlay_input", "overlay_hallucinated")


@pytest.fixture(autouse=True)
def coarse_charts(monkeypatch):
    """Charts of a quarter of the side, which are drawn sooner."""
    monkeypatch.setattr(plots, "_DPI", 50)


def row(size, shift=None, **more):
    names = {kind: f"faces/a_{size}_{kind}.png" for kind in PICTURES}
    return {
        "size": size,
        **names,
        "trust": 0.97,
        "expected_error_percent": 6.13,
        "shift_percent": shift,
        "psnr": None,
        "bicubic_psnr": None,
        **more,
    }


@pytest.fixture
def demo(tmp_path):
    run = tmp_path / "demo"
    (run / "faces").mkdir(parents=True)
    rows = [row(16, shift=5.94, psnr=21.34, bicubic_psnr=20.5), row(128)]
    noise = np.random.default_rng(0)
    for entry in rows:
        for kind in PICTURES:
            side = entry["size"] if kind == "input" else 128
            pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(run / entry[kind])
    summary = {
        "title": "Landmarks from 16 pixels",
        "created": "2026-01-05T12:30:00+00:00",
        "version": "0.1.0",
        "weights": {"name": "dhln-test", "parameters": 1_912_345, "megabytes": 7.65},
        "seconds": 3.21,
        "machine": "2 CPU cores",
        "faces": [{"name": "astronaut", "source": "scikit-image: astronaut()", "rows": rows}],
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture
def training(tmp_path):
    run = tmp_path / "train"
    run.mkdir()
    scores = [(1, 9.0, 18.5), (2, 6.25, 20.75), (3, 6.5, 20.5)]
    records = []
    for step, nme, psnr in scores:
        records.append(
            {
                "step": step,
                "epoch": 0,
                "loss": 2 / step,
                "images_per_second": 99.0 + step,
                "waiting_percent": 1.5,
            }
            | {"seconds": 60.0 * step}
        )
        validation = {"128": {"nme": nme - 2, "psnr": psnr + 5}, "16": {"nme": nme, "psnr": psnr}}
        records.append({"step": step, "validation": validation})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


@pytest.fixture
def evaluation(tmp_path):
    run = tmp_path / "evaluate"
    run.mkdir()
    figures = {"n": 298, "nme_median": 6.2, "fr8": 26.1, "fr10": 14.5, "auc10": 37.9}
    landmarks = [
        {"size": size, "box": box, "method": method, "nme": nme, "calibration": calibration, **figures}
        for size, box, method, nme, calibration in [
            (128, "finder", "dhln", 4.93, 1.04),
            (16, "annotated", "dhln", 6.91, 1.04),
            (16, "finder", "dhln", 7.73, 0.91),
            (16, "finder", "mean shape", 14.67, None),
        ]
    ]
    ours = {"psnr_rgb": 21.0, "ssim_rgb": 0.642, "psnr_y": 22.0, "ssim_y": 0.66}
    theirs = {
        "bicubic_psnr_rgb": 21.4,
        "bicubic_ssim_rgb": 0.58,
        "bicubic_psnr_y": 22.6,
        "bicubic_ssim_y": 0.6,
    }
    record = {
        "protocol": {"data": "ytf68/val", "sizes": [16, 128], "crop_margin": 1.3, "flip": False},
        "landmarks": landmarks,
        "hallucination": [{"size": 16, "n": 298, **ours, **theirs}],
    }
    (run / "metrics.json").write_text(json.dumps(record))
    plots.plot_nme_by_size(landmarks, run / "nme_by_size.png")
    return run


class Page(HTMLParser):
    """What a browser would make of a report: elements with their attributes, and the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self._open = [], [], False
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag in ("td", "th") or (self._open and tag == "span")
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page(path):
    return Page(path.read_text(encoding="utf-8"))


WRITERS = {
    "demo": html.write_demo_report,
    "training": html.write_training_report,
    "evaluation": html.write_evaluation_report,
}


@pytest.fixture(params=WRITERS)
def report(request):
    run = request.getfixturevalue(request.param)
    return WRITERS[request.param](run)


def test_a_report_lies_in_its_run_folder_with_nothing_half_written(report):
    assert report.name == "report.html"
    assert not [entry for entry in report.parent.iterdir() if entry.name.startswith(".")]


def test_a_report_holds_no_address_and_no_script(report):
    text = re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "data:", report.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|[\"'(]//|@import|url\(|<script|<iframe|javascript:", text)
    for tag, attributes in page(report).elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    policy = [meta["content"] for meta in page(report).all("meta") if "http-equiv" in meta]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_a_report_can_be_read_by_everybody(report):
    content = page(report)
    assert content.all("html") == [{"lang": "en"}]
    assert len(content.all("h1")) == 1
    assert content.all("img")
    assert all(image["alt"].strip() and int(image["width"]) and int(image["height"]) for image in content.all("img"))
    assert len(content.all("caption")) == len(content.all("table")) > 0
    assert {head["scope"] for head in content.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes in content.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {a["aria-labelledby"] for _, a in content.elements if "aria-labelledby" in a}
    assert labelled <= set(ids)


def test_the_demo_shows_its_figures(demo):
    content = page(html.write_demo_report(demo))
    assert content.cells[6:] == [
        *("16 px", "0.97", "6.1", "5.9", "21.3", "20.5"),
        *("128 px", "0.97", "6.1", UNKNOWN, UNKNOWN, UNKNOWN),
    ]
    for words in (
        "1.9 million parameters",
        "7.7 MB",
        "3.2\N{NO-BREAK SPACE}s",
        "5 January 2026, 12:30 UTC",
        "not evidence of anybody",
    ):
        assert words in content.text


def test_the_demo_inlines_every_picture_once_shown_and_the_input_at_true_size(demo):
    content = page(html.write_demo_report(demo))
    # Two in the opening; for each of two sizes four pictures and the thumbnail.
    assert len(content.all("img")) == 2 + 2 * 5
    thumbnails = [image for image in content.all("img") if "true size" in image["alt"]]
    assert [image["width"] for image in thumbnails] == ["16", "128"]
    assert all(image["class"] == "pixels" for image in content.all("img") if image["alt"].endswith("enlarged"))


def test_columns_without_a_value_are_left_out(demo):
    edit(demo, lambda summary: summary["faces"][0]["rows"].pop(0))
    heads = page(html.write_demo_report(demo)).cells[:3]
    assert heads == ["Face size", "Trust, 0 to 1", "Expected error, %"]
    assert "PSNR" not in (demo / "report.html").read_text()


def test_a_demo_without_a_face_says_so(demo):
    edit(demo, lambda summary: summary["faces"].clear())
    assert "No face was found" in html.write_demo_report(demo).read_text()


def edit(run, change, name="summary.json"):
    record = json.loads((run / name).read_text())
    change(record)
    (run / name).write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda summary: summary.update(title=HOSTILE, created=HOSTILE, machine=HOSTILE, version=HOSTILE),
        lambda summary: summary["weights"].update(name=HOSTILE),
        lambda summary: summary["faces"][0].update(name=HOSTILE, source=HOSTILE),
    ],
)
def test_hostile_words_of_a_demo_stay_words(demo, change):
    before = [tag for tag, _ in page(html.write_demo_report(demo)).elements]
    edit(demo, change)
    content = page(html.write_demo_report(demo))
    assert [tag for tag, _ in content.elements] == before
    assert not [a for _, a in content.elements if "onerror" in a]
    assert "&lt;script&gt;" in content.text
    assert "{{ 7*7 }}" in content.text


def test_hostile_words_of_the_other_reports_stay_words(training, evaluation):
    (training / "config.yaml").write_text(HOSTILE)
    (training / "summary.json").write_text(json.dumps({"title": HOSTILE, HOSTILE: HOSTILE}))
    edit(evaluation, lambda record: record["protocol"].update({HOSTILE: HOSTILE}), "metrics.json")
    edit(evaluation, lambda record: record["landmarks"][0].update(method=HOSTILE), "metrics.json")
    for path in (html.write_training_report(training), html.write_evaluation_report(evaluation)):
        content = page(path)
        assert not content.all("script")
        assert not [a for _, a in content.elements if "onerror" in a]
        assert content.text.count("&lt;script&gt;") >= 3


@pytest.mark.parametrize(
    ("writer", "make", "named"),
    [
        ("demo", lambda run: (run / "summary.json").unlink(), "summary.json"),
        ("demo", lambda run: (run / "summary.json").write_text("{"), "summary.json"),
        ("demo", lambda run: (run / "summary.json").write_text("[]"), "expected a JSON object"),
        ("demo", lambda run: edit(run, lambda s: s.pop("machine")), "machine"),
        (
            "demo",
            lambda run: edit(run, lambda s: s["faces"][0]["rows"][1].update(trust="high")),
            "faces.0.rows.1.trust",
        ),
        ("demo", lambda run: (run / "faces/a_16_overlay_input.png").unlink(), "a_16_overlay_input.png"),
        ("demo", lambda run: (run / "faces/a_128_input.png").write_text("no picture"), "a_128_input.png"),
        (
            "demo",
            lambda run: edit(run, lambda s: s["faces"][0]["rows"][0].update(input="../x.png")),
            "outside",
        ),
        ("training", lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl"),
        ("training", lambda run: (run / "metrics.jsonl").write_text(""), "no record"),
        ("training", lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\nx\n'), "line 2"),
        ("training", lambda run: (run / "metrics.jsonl").write_text('{"loss": 1}\n'), "step"),
        ("evaluation", lambda run: edit(run, lambda m: m.pop("protocol"), "metrics.json"), "protocol"),
        ("evaluation", lambda run: (run / "ced.png").write_bytes(b""), "ced.png"),
    ],
)
def test_a_broken_run_folder_is_named(writer, make, named, request):
    run = request.getfixturevalue(writer)
    make(run)
    with pytest.raises(DataError, match=re.escape(named)) as raised:
        WRITERS[writer](run)
    assert isinstance(raised.value, VeilmarkError)
    assert not (run / "report.html").exists()


def test_training_shows_the_last_validation_beside_the_best(training):
    content = page(html.write_training_report(training))
    assert content.cells[6:12] == ["16 px", "3", "6.50", "6.25 (2)", "20.50", "20.75 (2)"]
    assert content.cells[12] == "128 px"
    assert len(content.all("img")) == 4
    for words in ("101", "1.5 %", "3\N{NO-BREAK SPACE}min", "0.667"):
        assert words in content.text


@pytest.fixture
def joint_training(training):
    """A training of two stages, with six sheets of transfers."""
    records = [json.loads(line) for line in (training / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["stage"] = "detector"
    more = {"drift": 2.345, "common_drift": 0.456, "transfer_psnr": 18.25, "copy_psnr": 17.75}
    records.append({"step": 5, "stage": "joint", "loss": 0.5, "seconds": 120.0, "images_per_second": 30.0})
    records.append({"step": 5, "stage": "joint", "validation": {"16": {"nme": 6.4, "psnr": 20.6, **more}}})
    (training / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (training / "transfers").mkdir()
    for step in (4, 5, 6, 7, 8, 1000):
        Image.new("RGB", (48, 24), (step % 256, 9, 9)).save(training / "transfers" / f"{step:06d}.png")
    (training / "transfers" / "notes.png").write_bytes(b"no sheet")
    return training


def test_training_shows_transfers_over_time(joint_training):
    content = page(html.write_training_report(joint_training))
    # The first, the last, and two between; no other file of the folder.
    captions = re.findall(r"<figcaption>(Step [^<]*)</figcaption>", content.text)
    assert captions == ["Step 4", "Step 6", "Step 7", "Step 1,000"]
    sheets = [image for image in content.all("img") if "contact sheet" in image["alt"]]
    assert [(image["width"], image["height"]) for image in sheets] == [("48", "24")] * 4
    for words in ("A as it is given, A hallucinated, A painted in the pose of B, the real B", "no evidence"):
        assert words in content.text


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_at_most_four_sheets_of_transfers_are_shown(training, count, shown):
    (training / "transfers").mkdir()
    for step in range(count):
        Image.new("RGB", (8, 8)).save(training / "transfers" / f"{step:06d}.png")
    found = re.findall(r"<figcaption>Step ([^<]*)</figcaption>", html.write_training_report(training).read_text())
    assert len(set(found)) == len(found) == shown
    assert (shown == 0) or (found[0], found[-1]) == ("0", str(count - 1))


def test_training_tells_stages_drift_and_transfer_apart(joint_training):
    content = page(html.write_training_report(joint_training))
    assert "detector up to step 3, then joint up to step 5." in content.text
    # Each stage counts its own time: 3 minutes and 2.
    assert "5\N{NO-BREAK SPACE}min" in content.text
    assert {"18.25", "17.75", "2.35", "0.46"} <= set(content.cells)
    assert any("Drift of the landmarks" in image["alt"] for image in content.all("img"))
    assert "points that slide together would satisfy it" in content.text


def test_training_of_one_stage_says_nothing_of_transfer(training):
    text = html.write_training_report(training).read_text()
    for words in ("Stages:", "Transfers over time", "Transfer PSNR", "Drift"):
        assert words not in text


def test_training_stopped_while_writing_is_shown_to_its_last_whole_record(training):
    with (training / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert page(html.write_training_report(training)).cells[7] == "3"


def test_training_before_its_first_validation_shows_what_there_is(training):
    (training / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    content = page(html.write_training_report(training))
    assert not content.all("img")
    assert not content.all("table")
    assert "not finite" in content.text


def test_training_shows_config_and_summary_if_there(training):
    assert "<details>" not in html.write_training_report(training).read_text()
    (training / "config.yaml").write_text("seed: 7\n")
    (training / "summary.json").write_text('{"best_step": 2, "device": {"name": "cpu"}, "resumed": true}')
    text = html.write_training_report(training).read_text()
    assert "<details>" in text
    for words in ("seed: 7", "best step", "name: cpu", "yes"):
        assert words in text


def test_evaluation_quotes_the_finders_box_and_prints_the_protocol_beside_both_tables(evaluation):
    content = page(html.write_evaluation_report(evaluation))
    facts = re.sub(r"\s+", " ", content.text[: content.text.index("<main>")])
    assert "NME at 16 px, finder box</dt><dd><strong>7.73 %</strong> <small>dhln; mean shape 14.67 %" in facts
    assert "NME at 128 px, finder box</dt><dd><strong>4.93 %" in facts
    # A loss against bicubic is printed as the loss it is.
    assert "\N{MINUS SIGN}0.40 dB" in facts
    assert content.text.count("crop margin</dt><dd>1.3<") == 2
    assert content.text.count("16, 128") == 2
    # Smallest size first; the line of the mean shape has no calibration.
    assert content.cells[10:14] == ["16 px", "annotated", "dhln", "298"]
    assert UNKNOWN in content.cells


def test_evaluation_of_landmarks_or_faces_alone(evaluation):
    whole = json.loads((evaluation / "metrics.json").read_text())
    for part in ("landmarks", "hallucination"):
        (evaluation / "metrics.json").write_text(json.dumps(whole | {part: []}))
        assert len(page(html.write_evaluation_report(evaluation)).all("table")) == 1


def test_evaluation_embeds_the_charts_that_exist(evaluation):
    assert len(page(html.write_evaluation_report(evaluation)).all("img")) == 1
    plots.plot_ced({"dhln": np.array([3.0, 5.0])}, evaluation / "ced.png")
    plots.contact_sheet([(np.zeros((8, 8, 3), np.uint8), "8 px")], 1, evaluation / "faces.png")
    assert len(page(html.write_evaluation_report(evaluation)).all("img")) == 3


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (3.21, "3.2 s"),
        (59.9, "59.9 s"),
        (60, "1 min"),
        (3599, "1 h 00 min"),  # rounds up to the hour
        (4860, "1 h 21 min"),
        (float("nan"), "not finite s"),
    ],
)
def test_a_duration_is_told_in_the_unit_a_reader_would_use(training, seconds, shown):
    (training / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": seconds}) + "\n")
    text = html.write_training_report(training).read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert f"<strong>{shown}</strong>" in text


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize(
    ("ink", "ground"),
    [("ink", "page"), ("muted", "page"), ("ink", "panel"), ("muted", "panel"), ("caution-ink", "caution")],
)
@pytest.mark.parametrize("scheme", [0, 1])  # light, dark
def test_text_stands_out_by_the_accessibility_guidelines(ink, ground, scheme):
    style = (files("veilmark.report") / "templates" / "style.css").read_text()
    colours = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    low, high = sorted(luminance(colours[scheme][name]) for name in (ink, ground))
    assert (high + 0.05) / (low + 0.05) >= 4.5
