"""The tables that papers print: rows, columns, and what ``veilmark evaluate`` makes of a published layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from veilmark.cli import main
from veilmark.faces.crop import points_box
from veilmark.faces.datasets import Face, FaceSet, aflw, cofw, load_faces, w300, wflw
from veilmark.faces.images import write_png
from veilmark.faces.synthetic import render_face
from veilmark.landmarks.conversion import conversion
from veilmark.landmarks.formats import write_pts
from veilmark.landmarks.schemes import SCHEMES, get_scheme
from veilmark.run.errors import ConfigError, DataError
from veilmark.sht.dhln import DHLN
from veilmark.sht.evaluation import evaluate, evaluate_predictions
from veilmark.sht.landmarker import Landmarker
from veilmark.sht.protocol import ReferenceFaces, prepare_faces, scored_faces
from veilmark.sht.published import Answers, published_rows

TINY = {"size": 32, "structure_widths": (16, 32, 32), "detail_widths": (16, 32)}


def answers(scheme: str, percents: list[float]) -> Answers:
    """Faces 100 px between the outer eye corners and in a given box of 60 x 80 px, every point off by some px."""
    definition = get_scheme(scheme)
    n, k = len(percents), len(definition)
    true = np.tile(np.linspace(0, 50, 2 * k).reshape(k, 2), (n, 1, 1))
    for points, x in ((definition.left_eye, 10), (definition.right_eye, 60)):
        true[:, list(points)] = (x, 30)  # pupils 50 px apart
    first, second = definition.inter_ocular
    true[:, first], true[:, second] = (0, 0), (60, 80)
    off = np.asarray(percents)[:, None, None] * np.array([0.6, -0.8])
    boxes = np.tile([10.0, 10, 70, 90], (n, 1))
    return Answers([f"f{i}" for i in range(n)], true + off, true, boxes)


def face_set(layout: str, split: str, scheme: str, protocol, subsets) -> FaceSet:
    return FaceSet(layout, split, scheme, [], [], {k: frozenset(v) for k, v in subsets.items()}, protocol)


def test_the_table_of_wflw() -> None:
    faces = face_set("wflw", "test", "wflw98", wflw.PUBLISHED, {"pose": ["f0", "f3"], "blur": ["f1"]})
    rows = published_rows(faces, answers("wflw98", [2, 4, 9, 25]), get_scheme("wflw98"))
    assert [list(row) for row in rows] == [["subset", "n", "NME %", "FR10 %", "AUC10 %"]] * 3
    assert [(row["subset"], row["n"]) for row in rows] == [("test", 4), ("pose", 2), ("blur", 1)]
    cells = [[row[label] for label in ("NME %", "FR10 %", "AUC10 %")] for row in rows]
    np.testing.assert_allclose(cells, [[10, 25, 37.5], [13.5, 50, 40], [4, 0, 60]])


def test_the_table_of_cofw() -> None:
    faces = face_set("cofw", "test", "cofw29", cofw.PUBLISHED, {})
    (row,) = published_rows(faces, answers("cofw29", [2, 4, 6]), get_scheme("cofw29"))
    # Pupils are half as far apart as the outer corners, so one face fails.
    assert row == pytest.approx(
        {
            "subset": "test",
            "n": 3,
            "NME inter-ocular %": 4,
            "FR10 inter-ocular %": 0,
            "NME inter-pupil %": 8,
            "FR10 inter-pupil %": 100 / 3,
        }
    )


def test_the_table_of_300w() -> None:
    faces = face_set("300w", "full", "ibug68", w300.PUBLISHED, {"common": ["f0", "f1"], "challenge": ["f2"]})
    given = answers("ibug68", [2, 4, 9])
    rows = published_rows(faces, given, get_scheme("ibug68"))
    assert [(row["subset"], row["n"]) for row in rows] == [("full", 3), ("common", 2), ("challenge", 1)]
    assert [row["NME inter-ocular %"] for row in rows] == pytest.approx([5, 3, 9])
    pupils = np.linalg.norm(given.true[0, 42:48].mean(axis=0) - given.true[0, 36:42].mean(axis=0))
    assert [row["NME inter-pupil %"] for row in rows] == pytest.approx([500 / pupils, 300 / pupils, 900 / pupils])
    assert [row["FR8 inter-ocular %"] for row in rows] == pytest.approx([100 / 3, 0, 100])
    assert [row["AUC8 inter-ocular %"] for row in rows] == pytest.approx([(75 + 50) / 3, 62.5, 0])


def test_the_table_of_aflw_counts_every_point_where_papers_do() -> None:
    faces = face_set("aflw", "full", "aflw19", aflw.PUBLISHED, {"frontal": ["f0"]})
    given = answers("aflw19", [2, 4])
    given.predicted[1, 5] += 190  # an invisible point, far off
    visible = np.ones((2, 19), dtype=bool)
    visible[1, 5] = False
    with_mask = Answers(given.names, given.predicted, given.true, given.regions, visible)
    full, frontal = published_rows(faces, with_mask, get_scheme("aflw19"))
    box, far = 4800**0.5, np.hypot(190 + 2.4, 190 - 3.2)
    assert frontal["NME box %"] == pytest.approx(200 / box)
    assert frontal["NME diagonal %"] == pytest.approx(2)  # 60 x 80 px: 100 px across
    assert full["NME diagonal %"] == pytest.approx((2 + (18 * 4 + far) / 19) / 2)
    assert full["NME box, visible points %"] == pytest.approx(100 * (2 + 4) / 2 / box)
    assert full["FR7 box %"] == 50
    assert full["AUC7 box %"] == pytest.approx(100 * (1 - 200 / box / 7) / 2)


def test_what_could_not_be_read_counts_nowhere() -> None:
    faces = face_set("wflw", "test", "wflw98", wflw.PUBLISHED, {"pose": ["f0", "gone"], "blur": ["gone"]})
    rows = published_rows(faces, answers("wflw98", [2, 4]), get_scheme("wflw98"))
    assert [(row["subset"], row["n"]) for row in rows] == [("test", 2), ("pose", 1)]
    plain = FaceSet("ytf68", "val", "ibug68", [], [])
    assert published_rows(plain, answers("ibug68", [2]), get_scheme("ibug68")) == []


@pytest.mark.parametrize("protocol", [wflw.PUBLISHED, cofw.PUBLISHED, aflw.PUBLISHED, w300.PUBLISHED])
def test_every_column_is_explained_and_has_a_heading_of_its_own(protocol) -> None:
    assert {column.kind for column in protocol.columns} <= set(protocol.normalisations)
    assert len({column.label for column in protocol.columns}) == len(protocol.columns)
    for column in protocol.columns:
        if column.figure != "nme":
            assert column.label.startswith(f"{column.figure.upper()}{column.threshold:g} ")


# Whole evaluations, on rendered faces


def network(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    DHLN(**TINY, **changes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def weights68(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("weights68"))


@pytest.fixture(scope="session")
def weights98(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("weights98"), scheme="wflw98")


def points_98(points: np.ndarray) -> np.ndarray:
    """98 points with the 68 among them, the others somewhere in the face."""
    full = np.tile(points.mean(axis=0), (98, 1))
    full[list(conversion("wflw98", "ibug68"))] = points
    return full


@pytest.fixture(scope="session")
def wflw_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wflw")
    lists = root / "WFLW_annotations/list_98pt_rect_attr_train_test"
    lists.mkdir(parents=True)
    (root / "WFLW_images").mkdir()
    lines = []
    for i in range(4):
        face = render_face(np.random.default_rng(i), 72)
        write_png(root / "WFLW_images" / f"{i}.png", face.image)
        numbers = [*(points_98(face.points) - 0.5).ravel(), *points_box(face.points)]
        attributes = [int(i in (0, 1)), 0, 0, 0, 0, int(i == 3)]
        lines.append(" ".join(f"{value:.6f}" for value in numbers) + f" {' '.join(map(str, attributes))} {i}.png\n")
    (lists / "list_98pt_rect_attr_test.txt").write_text("".join(lines))
    return root


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs ``veilmark evaluate ...`` in this process; gives the exit code and what a person would read."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["veilmark", "evaluate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, " ".join((out + err).split())

    return run


def test_evaluate_prints_the_table_of_a_published_layout(verb, wflw_root, weights98, tmp_path) -> None:
    common = ("--data", wflw_root, "--layout", "wflw", "--split", "test", "--cache", tmp_path / "cache")
    code, text = verb(*common, "--weights", weights98, "--out", tmp_path / "out", "--no-finder-rows")
    assert code == 0, text
    assert "as papers print it, at 32 px" in text
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    # One size, the network's own.
    assert {row["size"] for row in metrics["landmarks"]} == {32}
    table = metrics["published"]
    assert [(row["subset"], row["n"]) for row in table] == [("test", 4), ("pose", 2), ("blur", 1)]
    (row,) = metrics["landmarks"]
    assert table[0]["NME %"] == pytest.approx(row["nme"])
    assert table[0]["FR10 %"] == pytest.approx(row["fr10"])
    assert table[0]["AUC10 %"] == pytest.approx(row["auc10"])
    assert "60 and 72" in metrics["protocol"]["normalisation"]
    assert "points" not in metrics["protocol"]
    code, text = verb(*common, "--weights", weights98, "--out", tmp_path / "small", "--sizes", "16,32")
    assert code == 0, text
    metrics = json.loads((tmp_path / "small/metrics.json").read_text())
    assert {(row["box"], row["size"]) for row in metrics["landmarks"]} == {
        (box, size) for box in ("annotated", "finder") for size in (16, 32)
    }
    assert metrics["published"] == table


def test_a_network_of_68_points_is_scored_on_the_68_among_98(verb, wflw_root, weights68, tmp_path) -> None:
    common = ("--data", wflw_root, "--layout", "wflw", "--split", "test", "--cache", tmp_path / "cache")
    code, text = verb(*common, "--weights", weights68, "--out", tmp_path / "out", "--no-finder-rows")
    assert code == 0, text
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["protocol"]["points"].startswith("the 98 points of wflw98 turned into the 68 of ibug68")
    assert metrics["published"][0]["n"] == 4
    # The same as scoring the same points as a set of 68.
    converted = load_faces("wflw", wflw_root, "test").in_scheme("ibug68")
    landmarker = Landmarker(weights68, "none", device="cpu")
    cache = prepare_faces(scored_faces(converted), tmp_path / "cache", "test", 32)
    direct = evaluate(converted, cache, landmarker, "w", [32], finder_rows=False)
    assert direct.published == metrics["published"]


def test_a_network_whose_points_cannot_be_had_is_refused(verb, wflw_root, tmp_path) -> None:
    weights = network(tmp_path / "weights", scheme="cofw29")
    code, text = verb("--data", wflw_root, "--layout", "wflw", "--split", "test", "--weights", weights)
    assert code == 1
    assert "points of wflw98 cannot be turned into points of cofw29" in text


def test_unconverted_faces_are_a_defect(wflw_root, weights68, tmp_path) -> None:
    faces = load_faces("wflw", wflw_root, "test")
    cache = prepare_faces(faces.labelled, tmp_path, "test")
    with pytest.raises(ValueError, match="in_scheme first"):
        evaluate(faces, cache, Landmarker(weights68, "none", device="cpu"), "w", [32])


def test_predictions_of_a_published_set_get_its_table(verb, wflw_root, weights68, tmp_path) -> None:
    faces = load_faces("wflw", wflw_root, "test").labelled
    header = ",".join(["file", *(f"{axis}{i}" for i in range(98) for axis in "xy")])
    rows = []
    for face in faces:
        assert face.points is not None
        off = 0.05 * np.linalg.norm(face.points[72] - face.points[60])
        rows.append(",".join([face.name, *(f"{value:.8f}" for value in (face.points + np.array([off, 0])).ravel())]))
    (tmp_path / "mine.csv").write_text("\n".join([header, *rows]) + "\n")
    code, text = verb("--data", wflw_root, "--layout", "wflw", "--split", "test", "--weights", weights68,
                      "--predictions", tmp_path / "mine.csv", "--out", tmp_path / "out")  # fmt: skip
    assert code == 0, text
    table = json.loads((tmp_path / "out/metrics.json").read_text())["published"]
    assert [row["NME %"] for row in table] == pytest.approx([5, 5, 5], abs=1e-4)


@pytest.fixture(scope="session")
def helen_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("helen")
    for folder in ("annotation", "test"):
        (root / folder).mkdir()
    for i in range(3):
        face = render_face(np.random.default_rng(i), 72)
        write_png(root / "test" / f"p{i}.png", face.image)
        outline = np.resize(face.points, (194, 2))
        lines = "\n".join(f"{x:.3f} , {y:.3f}" for x, y in outline)
        (root / "annotation" / f"{i}.txt").write_text(f"p{i}\n{lines}\n")
    (root / "testnames.txt").write_text("p0\np1\np2\n")
    return root


def test_a_set_without_landmarks_is_scored_by_its_pictures(verb, helen_root, weights68, tmp_path) -> None:
    common = ("--data", helen_root, "--layout", "helen", "--split", "test", "--cache", tmp_path / "cache")
    code, text = verb(*common, "--weights", weights68, "--out", tmp_path / "out")
    assert code == 0, text
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["landmarks"], metrics["published"]) == ([], [])
    assert [(row["size"], row["n"]) for row in metrics["hallucination"]] == [(16, 3), (24, 3)]
    wanted = {f"{whose}{name}" for whose in ("", "bicubic_") for name in ("psnr_rgb", "psnr_y", "ssim_rgb", "ssim_y")}
    assert wanted <= set(metrics["hallucination"][0])
    assert metrics["protocol"]["faces"] == 3
    assert "normalisation" not in metrics["protocol"]
    assert "PSNR Y" in text
    assert (tmp_path / "out/report.html").exists()
    code, text = verb(*common, "--weights", weights68, "--out", tmp_path / "none", "--sizes", "32")
    assert code == 1
    assert "helen/test has no landmarks" in text
    assert "choose sizes below 32" in text
    code, text = verb(*common, "--weights", network(tmp_path / "plain", detail=False), "--out", tmp_path / "none")
    assert code == 1
    assert "hallucinate no faces" in text


def test_hallucination_alone_has_the_figures_of_the_labelled_evaluation(weights68, tmp_path) -> None:
    for i in range(2):
        face = render_face(np.random.default_rng(i), 72)
        (tmp_path / "all").mkdir(exist_ok=True)
        write_png(tmp_path / "all" / f"{i}.png", face.image)
        write_pts(tmp_path / "all" / f"{i}.pts", face.points)
    labelled = load_faces("folder", tmp_path, "all")
    bare = [Face(f.path, f.name, person=f.person, region=f.box) for f in labelled.labelled]
    unlabelled = FaceSet("helen", "test", "none", [], bare)
    landmarker = Landmarker(weights68, "none", device="cpu")
    rows = []
    for faces in (labelled, unlabelled):
        cache = prepare_faces(scored_faces(faces), tmp_path / "cache", "faces", 32)
        rows.append(evaluate(faces, cache, landmarker, "w", [16], finder_rows=False).hallucination)
    assert rows[0] == rows[1]


def test_a_set_with_nothing_to_score_is_said(tmp_path) -> None:
    bare = FaceSet("folder", "mine", "ibug68", [], [Face(tmp_path / "a.jpg", "a.jpg")])
    with pytest.raises(DataError, match="folder/mine has no face with landmarks or a box"):
        scored_faces(bare)


def test_predictions_for_a_set_without_landmarks_are_refused(helen_root, weights68, tmp_path) -> None:
    with pytest.raises(DataError, match="helen/test has no face with landmarks"):
        evaluate_predictions(
            load_faces("helen", helen_root, "test"), tmp_path / "p.csv", Landmarker(weights68, "none"), 32
        )


def test_sizes_go_up_to_the_networks(helen_root, weights68, tmp_path) -> None:
    faces = load_faces("helen", helen_root, "test")
    cache = prepare_faces(scored_faces(faces), tmp_path, "test", 32)
    with pytest.raises(ConfigError, match="--sizes 64: these weights hallucinate 32 px faces at most"):
        evaluate(faces, cache, Landmarker(weights68, "none", device="cpu"), "w", [64])


def test_lengths_are_in_pixels_of_the_picture_however_far_a_face_was_shrunk(tmp_path) -> None:
    face = render_face(np.random.default_rng(0), 640)
    write_png(tmp_path / "a.png", face.image)
    box = np.array([100.0, 100, 400, 500])
    visible = np.arange(68) % 2 == 0
    listed = [Face(tmp_path / "a.png", "a", face.points, region=box, visible=visible)]
    cache = prepare_faces(listed, tmp_path / "cache", "a")
    assert cache[0].scale < 1
    reference = ReferenceFaces.from_cache(cache, 128, "given_box")
    side = 1.3 * max(listed[0].box[2:] - listed[0].box[:2])
    assert reference.scales[0] == pytest.approx(side, rel=1e-4)
    assert reference.regions is not None
    assert reference.visible is not None
    np.testing.assert_array_equal(reference.regions, [box])
    np.testing.assert_array_equal(reference.visible, [visible])
    assert reference.kind == "given_box"


def test_every_scheme_has_a_network(tmp_path) -> None:
    for name in SCHEMES:
        model = DHLN(**TINY, scheme=name)
        assert model(torch.rand(1, 3, 16, 16)).points.shape == (1, len(get_scheme(name)), 2)
