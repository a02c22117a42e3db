import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from veilmark.faces.datasets import Face
from veilmark.run.errors import DataError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCHMARKS)
    peers = importlib.import_module("peers")
    peer_mediapipe = importlib.import_module("peer_mediapipe")


def faces(n=6, seed=0):
    """True points of ``n`` turned faces of several sizes, in pixels."""
    rng = np.random.default_rng(seed)
    shape = rng.uniform(-1, 1, (68, 2))
    shape[36], shape[45] = (-0.5, 0), (0.5, 0)
    turn, side = rng.uniform(-1, 1, n), rng.uniform(20, 90, n)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).transpose(2, 0, 1)
    return (
        side[:, None, None] * np.einsum("nij,kj->nki", rotation, shape) + rng.uniform(0, 99, (n, 1, 2)),
        rotation,
        side,
    )


PEOPLE = ["a", "a", "b", "c", "d", "d"]
HALF = np.array([0, 0, 1, 0, 1, 1])


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        (PEOPLE, HALF),  # several frames of a person stay together
        (["d", "b", "c", "a"], [1, 1, 0, 0]),  # the order is that of the sorted people, not of the faces
        (["x"], [0]),  # one person
    ],
)
def test_people_are_split_by_their_place_in_the_sorted_list(people, expected):
    assert peers.halves(people).tolist() == list(expected)


@given(st.integers(0, 99), st.floats(0.01, 0.3))
def test_a_style_that_all_faces_share_is_removed_whatever_their_turn_and_size(seed, strength):
    true, rotation, side = faces(seed=seed)
    style = np.random.default_rng(seed + 1).normal(0, strength, (68, 2))
    given_points = true + side[:, None, None] * np.einsum("nij,kj->nki", rotation, style)
    np.testing.assert_allclose(peers.remove_offsets(given_points, true, HALF), true, atol=1e-9)


def test_offsets_are_fitted_on_the_other_half():
    true, rotation, side = faces()
    style = side[:, None, None] * np.einsum("nij,kj->nki", rotation, np.full((68, 2), 0.1))
    first = HALF[:, None, None] == 0
    corrected = peers.remove_offsets(np.where(first, true + style, true), true, HALF)
    np.testing.assert_allclose(corrected, np.where(first, true + style, true - style), atol=1e-9)


def test_a_face_that_was_not_found_stays_so_and_moves_no_other():
    true, _, _ = faces()
    predicted = true + 1.0
    predicted[1] = np.nan
    others = np.arange(6) != 1
    corrected = peers.remove_offsets(predicted, true, HALF)
    assert np.isnan(corrected[1]).all()
    np.testing.assert_allclose(corrected[others], peers.remove_offsets(predicted[others], true[others], HALF[others]))


def test_a_half_without_a_found_face_is_refused():
    true, _, _ = faces()
    with pytest.raises(DataError, match="use data of more people"):
        peers.remove_offsets(np.where(HALF[:, None, None] == 0, np.nan, true), true, HALF)


def test_missed_faces_count_with_the_mean_shape_and_as_failures():
    true, _, side = faces()
    predicted = true.copy()
    predicted[2] = np.nan
    floor = true + np.stack([0.3 * side, np.zeros(6)], axis=1)[:, None]
    row = peers.score(predicted, true, PEOPLE, floor)
    assert (row["n"], row["missed"]) == (5, 1)
    assert row["nme"] == pytest.approx(0, abs=1e-9)
    assert row["nme_all"] == pytest.approx(30 / 6)
    assert (row["fr10"], row["fr10_all"]) == (0, pytest.approx(100 / 6))
    low, high = row["nme_all_interval95"]
    assert 0 <= low < row["nme_all"] < high


def test_offsets_left_in_are_shown():
    true, rotation, side = faces()
    style = side[:, None, None] * np.einsum("nij,j->ni", rotation, [0.04, 0.03])[:, None]
    row = peers.score(true + style, true, PEOPLE, true)
    assert (row["nme"], row["nme_with_offsets"]) == (pytest.approx(0, abs=1e-9), pytest.approx(5))


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (8, 152),  # the chin is one vertex
        (3, (132 + 58) / 2),  # between two vertices of the jaw
        (27, (168 + 6) / 2),  # between the eyes
        (36, 33),  # outer corner of the eye on the picture's left
        (45, 263),  # and of the other
        (67, 87),  # last point of the inner lip
    ],
)
def test_points_are_taken_from_the_named_vertices(point, expected):
    mesh = np.stack([np.arange(478.0), np.zeros(478)], axis=1)[None]
    points = peer_mediapipe.to_ibug68(mesh)
    assert points.shape == (1, 68, 2)
    assert points[0, point].tolist() == [expected, 0]


@pytest.mark.parametrize(("size", "side"), [(16, 25), (32, 49), (128, 197)])  # 2.0 / 1.3 times as much
def test_the_peer_sees_the_surroundings_at_the_scale_of_our_crop(size, side):
    face = Face(Path("a.png"), "a", points=np.array([[40.0, 50.0], [80.0, 90.0]]))
    shown, crops = peers.peer_pictures([face], [np.zeros((120, 120, 3), np.uint8)], size)
    assert shown.shape == (1, side, side, 3)
    np.testing.assert_allclose(crops[0].to_image(np.array([0.5, 0.5]) * crops[0].size), [60, 70])
    np.testing.assert_allclose(crops[0].to_image(np.zeros(2)), [20, 30])


def row(method, box, size, nme):
    interval = (nme - 0.2, nme + 0.3)
    return {
        "size": size, "method": method, "box": box, "n": 5, "missed": 1, "nme": nme, "nme_interval95": interval,
        "nme_median": 4.0, "fr10": 1.5, "nme_all": nme + 1, "nme_all_interval95": (nme + 0.8, nme + 1.3), "fr10_all": 2.5,
        "nme_with_offsets": nme + 2,
    }  # fmt: skip


ROWS = [
    row(method, box, size, nme)
    for method, box, nme in (
        ("MediaPipe", "own detector", 6.0),
        ("Veilmark", "found box", 5.0),
        ("Veilmark", "jittered box", 4.9),
        ("Veilmark", "annotated box", 4.5),
    )
    for size in (16, 64)
]


def test_the_table_has_a_line_a_row_by_size():
    lines = peers.table(ROWS).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert (
        lines[2] == "| 16 | MediaPipe | own detector | 5 | 1 | 6.00 (5.80 to 6.30) | 4.00 | 1.50 | 7.00 | 2.50 | 8.00 |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 16"] * 4 + ["| 64"] * 4


def test_the_chart_is_1200_px_wide_and_shows_both_colours(tmp_path):
    drawn = peers.draw(ROWS, tmp_path / "peers.png")
    with Image.open(drawn) as picture:
        assert picture.width == 1200
        colours = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    assert list(tmp_path.iterdir()) == [drawn]


def cli(*arguments):
    app = typer.Typer()
    app.command()(peers.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_print_and_draw_need_the_json_alone(tmp_path):
    stored, chart = tmp_path / "peers.json", tmp_path / "peers.png"
    stored.write_text(json.dumps({"rows": ROWS}))
    assert cli("--print", "--out", stored).stdout.strip() == peers.table(ROWS)
    assert cli("--draw", "--out", stored, "--picture", chart).exit_code == 0
    assert chart.is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--data"),  # nothing to measure
        (["--print", "--out", "missing.json"], "missing.json does not exist; measure first"),  # nothing stored
        (["--data", "nowhere"], "nowhere"),  # no data
    ],
)
def test_errors_name_what_is_missing(arguments, said, tmp_path):
    result = cli(*arguments, "--work", tmp_path)
    assert result.exit_code == 1
    assert said in result.output


@pytest.fixture
def fake_peer(monkeypatch):
    """A peer that puts the same face into every picture but the first, and counts its runs."""
    runs = []

    def run_peer(python, pictures):
        runs.append(len(pictures))
        points = np.tile(np.random.default_rng(0).uniform(0.3, 0.7, (68, 2)), (len(pictures), 1, 1))
        points[0] = np.nan
        return points, {"mediapipe": "fake", "wall_ms": 1.0, "processor_ms": 1.0}

    monkeypatch.setattr(peers, "run_peer", run_peer)
    monkeypatch.setattr(peers, "make_environment", lambda folder: folder)
    monkeypatch.setattr(peers, "SIZES", (16,))
    return runs


def test_a_comparison_from_end_to_end_then_ours_alone(synthetic_ytf68, tiny_weights, fake_peer, tmp_path):
    arguments = ["--data", synthetic_ytf68, "--weights", tiny_weights, "--work", tmp_path, "--out", tmp_path / "p.json"]
    refused = cli(*arguments, "--reuse-peer")
    assert refused.exit_code == 1
    assert "run once without --reuse-peer" in refused.output
    assert not fake_peer
    assert cli(*arguments).exit_code == 0
    first = json.loads((tmp_path / "p.json").read_text())
    assert [(row["method"], row["box"], row["n"], row["missed"]) for row in first["rows"]] == [
        ("MediaPipe", "own detector", 3, 1),
        ("Veilmark", "annotated box", 4, 0),
        ("Veilmark", "jittered box", 4, 0),
        ("Veilmark", "found box", 4, 0),
    ]
    assert fake_peer == [4, 4]  # the faces, then those whose time is taken
    assert cli(*arguments, "--reuse-peer").exit_code == 0
    assert fake_peer == [4, 4, 4]
    assert json.loads((tmp_path / "p.json").read_text())["rows"] == first["rows"]


def test_a_face_that_no_finder_finds_counts_with_the_jittered_box(
    synthetic_ytf68, tiny_weights, fake_peer, monkeypatch, tmp_path
):
    monkeypatch.setattr(peers, "HaarFinder", peers.NoFinder)
    out = tmp_path / "p.json"
    assert cli("--data", synthetic_ytf68, "--weights", tiny_weights, "--work", tmp_path, "--out", out).exit_code == 0
    rows = {row["box"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["found box"].pop("found") == 0
    assert rows["found box"] == rows["jittered box"] | {"box": "found box"}
    assert rows["annotated box"]["nme"] != rows["jittered box"]["nme"]
