import threading

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from veilmark.report import plots


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Charts of a quarter of the side, which are drawn sooner."""
    monkeypatch.setattr(plots, "_DPI", 50)


ROWS = [
    {"size": size, "box": box, "method": method, "nme": nme}
    for size in (16, 64)
    for box in ("annotated", "finder")
    for method, nme in (("dhln", 6.0), ("mean shape", 13.0))
]
CURVES = {"16 px": np.array([2.0, 4.0, 20.0, np.nan]), "mean shape": np.array([30.0, 40.0])}
POINTS = [
    {"step": 1, "loss": 2.0, "images_per_second": 100.0},
    {"step": 2, "loss": float("nan"), "images_per_second": 101.0},
    {"step": 2, "validation": {"16": {"nme": 9.0, "psnr": 20.0}, "32": {"nme": 8.0, "psnr": None}}},
]
TILES = [(np.full((16, 16, 3), 200, np.uint8), "16 px\ngiven"), (np.zeros((64, 32), np.uint8), "grey, tall")]

DRAWINGS = [
    pytest.param(lambda path: plots.plot_nme_by_size(ROWS, path), id="nme_by_size"),
    pytest.param(lambda path: plots.plot_ced(CURVES, path), id="ced"),
    pytest.param(lambda path: plots.plot_curves(POINTS, path), id="curves"),
    pytest.param(lambda path: plots.contact_sheet(TILES, 2, path), id="contact_sheet"),
]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_drawing_is_a_png_with_ink_and_nothing_is_left_beside_it(draw, tmp_path):
    path = draw(tmp_path / "picture.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_drawing_holds_no_address_and_repeats_to_the_byte(draw, tmp_path):
    first = draw(tmp_path / "a.png").read_bytes()
    assert first == draw(tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert "Software" not in image.info


def test_threads_draw_side_by_side_without_touching_the_settings(tmp_path):
    before = dict(mpl.rcParams)
    alone = plots.plot_ced(CURVES, tmp_path / "alone.png").read_bytes()
    threads = [threading.Thread(target=plots.plot_ced, args=(CURVES, tmp_path / f"{i}.png")) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / f"{i}.png").read_bytes() == alone for i in range(2)] == [True] * 2
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.plot_nme_by_size([], path),
        lambda path: plots.plot_ced({}, path),
        lambda path: plots.plot_ced({"empty": np.array([])}, path),
        lambda path: plots.plot_curves([{"step": 1, "loss": None}], path),
        lambda path: plots.contact_sheet([], 2, path),
        lambda path: plots.contact_sheet(TILES, 0, path),
        lambda path: plots.contact_sheet([(np.zeros((4, 4, 3)), "floats")], 1, path),
    ],
)
def test_nothing_to_draw_is_an_error_and_leaves_no_file(draw, tmp_path):
    with pytest.raises(ValueError, match=r"needs|no value|takes"):
        draw(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def drawn_lines(monkeypatch, draw):
    """The label and data of every line of a chart, and the figure, without writing it."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or path)
    draw()
    axes = figures[0].axes
    return {line.get_label(): line for ax in axes for line in ax.lines}, axes


def test_the_ced_counts_faces_never_found_among_all(monkeypatch, tmp_path):
    lines, _ = drawn_lines(monkeypatch, lambda: plots.plot_ced(CURVES, tmp_path / "x.png", limit=10))
    # Two of four faces lie below 10 %: the one at 20 % and the one never found count as faces all the same.
    assert lines["16 px"].get_xdata().tolist() == [0, 2, 4, 10]
    assert lines["16 px"].get_ydata().tolist() == [0, 25, 50, 50]
    assert lines["mean shape"].get_ydata().tolist() == [0, 0]
    assert lines["mean shape"].get_color() == plots.FLOOR_COLOUR


def test_nme_lines_are_sorted_by_size_and_differ_in_more_than_colour(monkeypatch, tmp_path):
    rows = list(reversed(ROWS))
    lines, _ = drawn_lines(monkeypatch, lambda: plots.plot_nme_by_size(rows, tmp_path / "x.png"))
    assert {tuple(line.get_xdata()) for line in lines.values()} == {(16, 64)}
    assert lines["dhln, annotated box"].get_linestyle() == "--"
    assert lines["dhln, finder box"].get_linestyle() == "-"
    assert lines["mean shape, finder box"].get_color() == plots.FLOOR_COLOUR
    styles = {(line.get_linestyle(), line.get_marker()) for line in lines.values()}
    assert len(styles) == len(lines)


def test_a_step_logged_again_after_a_resume_is_drawn_once(monkeypatch, tmp_path):
    points = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}]
    lines, _ = drawn_lines(monkeypatch, lambda: plots.plot_curves(points, tmp_path / "x.png"))
    assert lines["loss"].get_xydata().tolist() == [[1, 3], [2, 2]]


@pytest.mark.parametrize(
    ("panels", "titles"),
    [
        (("loss",), ["Training loss"]),
        (("nme", "psnr"), ["Validation NME, %, by face size", "Validation PSNR, dB, by face size"]),
    ],
)
def test_panels_asked_for_are_the_panels_drawn(panels, titles, monkeypatch, tmp_path):
    _, axes = drawn_lines(monkeypatch, lambda: plots.plot_curves(POINTS, tmp_path / "x.png", panels))
    assert [ax.get_title(loc="left") for ax in axes] == titles


STAGES = [
    {"step": 4, "stage": "detector", "loss": 3.0},
    {"step": 8, "stage": "detector", "loss": 2.0},
    {"step": 12, "stage": "joint", "loss": 5.0},
    {
        "step": 12,
        "stage": "joint",
        "validation": {"16": {"nme": 9.0, "drift": 2.0, "common_drift": 0.5}, "64": {"nme": 8}},
    },
    {"step": 16, "stage": "joint", "validation": {"16": {"nme": 9.0, "drift": 3.0, "common_drift": 0.75}}},
]


def test_drift_is_one_line_for_all_of_it_and_one_for_what_is_common(monkeypatch, tmp_path):
    lines, axes = drawn_lines(monkeypatch, lambda: plots.plot_curves(STAGES, tmp_path / "x.png", ["drift"]))
    assert lines["drift"].get_xydata().tolist() == [[12, 2], [16, 3]]
    assert lines["common drift"].get_xydata().tolist() == [[12, 0.5], [16, 0.75]]
    assert axes[0].get_ylim()[0] == 0
    with pytest.raises(plots.NothingLogged):
        plots.plot_curves(POINTS, tmp_path / "x.png", ["drift"])


def test_a_dashed_line_marks_where_a_stage_ends(monkeypatch, tmp_path):
    """Between two stages only; a run of one stage, or without the word, has none."""
    assert plots.stage_ends(STAGES) == {"detector": 8, "joint": 16}

    def marks(points):
        _, axes = drawn_lines(monkeypatch, lambda: plots.plot_curves(points, tmp_path / "x.png", ["loss"]))
        return [line.get_xdata()[0] for line in axes[0].get_lines() if line.get_linestyle() == "--"]

    assert marks(STAGES) == [8]
    assert marks(STAGES[:2]) == marks(POINTS) == []


def test_a_small_tile_is_enlarged_without_smoothing(tmp_path):
    chess = np.indices((2, 2)).sum(axis=0).astype(np.uint8) % 2 * 255
    path = plots.contact_sheet([(np.dstack([chess] * 3), "")], 1, tmp_path / "sheet.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert set(np.unique(pixels)) == {0, 255}
    # Two of the four enlarged pixels, 64 x 64 each, are black.
    assert (pixels == 0).sum() == 2 * 64 * 64


def test_a_wide_caption_is_never_cut(tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    with Image.open(plots.contact_sheet([(image, "w" * 60)], 1, tmp_path / "sheet.png")) as sheet:
        edge = np.asarray(sheet.convert("L"))[:, -8:]
        assert (edge == 255).all()
        assert sheet.width > 60 * 8


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")

    def half(stream):
        stream.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        plots.write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
