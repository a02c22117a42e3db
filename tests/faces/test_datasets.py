"""Data sets: each layout yields what its files say, and every fault is named by file and row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from published_layouts import write_annotated
from veilmark.faces.datasets import LAYOUTS, load_faces
from veilmark.faces.datasets.base import Face, FaceSet, unique_names
from veilmark.faces.synthetic import write_dataset
from veilmark.landmarks.formats import write_pts
from veilmark.run.errors import ConfigError, DataError

POINTS = np.random.default_rng(0).uniform(2, 30, (68, 2))


@pytest.fixture(scope="session")
def ytf68_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ytf68")
    write_dataset(root, "val", people=2, frames=1, unlabelled=1, first_person=272, size=96)
    write_dataset(root, "monday", people=1, frames=1, size=96)
    return root


@pytest.fixture
def ytf68_copy(ytf68_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ytf68_root, tmp_path / "data"))


def annotate(picture: Path, points: np.ndarray | None = POINTS) -> None:
    """A 32 x 32 picture, and a .pts file beside it unless ``points`` is None."""
    write_annotated(picture, np.full((32, 32, 3), 90, dtype=np.uint8), points)


def names(faces: list[Face]) -> list[str]:
    return [face.name for face in faces]


def test_an_unknown_layout_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'lfw'") as caught:
        load_faces("lfw", tmp_path, "train")
    assert "300w, aflw, celeba, cofw, folder, helen, wflw, ytf68" in str(caught.value)
    assert sorted(LAYOUTS) == ["300w", "aflw", "celeba", "cofw", "folder", "helen", "wflw", "ytf68"]


@pytest.mark.parametrize(
    ("layout", "split", "home", "terms"),
    [
        ("300w", "full", "ibug.doc.ic.ac.uk", "no commercial use"),
        ("wflw", "test", "wywu.github.io/projects/LAB/WFLW.html", "non-commercial research"),
        ("cofw", "test", "data.caltech.edu/records/20099", "see that page"),
        ("aflw", "full", "tugraz.at", "no commercial use"),
        ("celeba", "test", "mmlab.ie.cuhk.edu.hk/projects/CelebA.html", "non-commercial research"),
        ("helen", "test", "ifp.illinois.edu/~vuongle2/helen", "research"),
    ],
)
def test_a_set_that_is_not_there_says_where_it_comes_from(
    tmp_path: Path, layout: str, split: str, home: str, terms: str
) -> None:
    with pytest.raises(DataError, match="exist") as caught:
        load_faces(layout, tmp_path, split)
    for words in (str(tmp_path), home, terms, "does not download"):
        assert words in str(caught.value)


@pytest.mark.parametrize("layout", ["300w", "wflw", "cofw", "aflw", "celeba", "helen"])
def test_an_unknown_split_lists_the_known(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ConfigError, match=rf"{layout} has no split 'monday'; known: .*train"):
        load_faces(layout, tmp_path, "monday")


def test_boxes_and_people() -> None:
    face = Face(Path("a.jpg"), "a.jpg", np.array([[3.0, 9.0], [5.0, 4.0]]), person="b")
    np.testing.assert_array_equal(face.box, [3, 4, 5, 9])
    given = Face(Path("a.jpg"), "a.jpg", face.points, region=np.array([0.0, 0, 50, 60]))
    np.testing.assert_array_equal(given.box, [3, 4, 5, 9])  # points come before the set's box
    region = Face(Path("a.jpg"), "a.jpg", region=np.array([0.5, 0, 50, 60]))
    np.testing.assert_array_equal(region.box, np.array([0.5, 0, 50, 60], dtype=np.float32))
    bare = Face(Path("b.jpg"), "b.jpg", person="z")
    with pytest.raises(ValueError, match=r"b\.jpg has no landmarks"):
        _ = bare.box
    other = Face(Path("c.jpg"), "c.jpg", np.zeros((2, 2)), person="a")
    nobody = Face(Path("d.jpg"), "d.jpg", np.zeros((2, 2)))
    assert FaceSet("folder", "all", "ibug68", [face, face, other, nobody], [bare]).people == ["a", "b"]


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b", "a"], ["a#1", "b", "a#2"]),  # two faces in one picture
        ([], []),
    ],
)
def test_unique_names(pictures: list[str], expected: list[str]) -> None:
    assert unique_names(pictures) == expected


def test_a_set_in_another_scheme() -> None:
    points, visible = np.random.default_rng(0).uniform(0, 50, (98, 2)), np.arange(98) % 3 > 0
    face = Face(Path("a.jpg"), "a.jpg", points, person="b", visible=visible)
    wflw = FaceSet("wflw", "test", "wflw98", [face], [], {"pose": frozenset({"a.jpg"})})
    converted = wflw.in_scheme("ibug68")
    (turned,) = converted.labelled
    assert (converted.scheme, converted.converted_from, converted.subsets) == ("ibug68", "wflw98", wflw.subsets)
    assert turned.points is not None
    assert turned.visible is not None
    np.testing.assert_array_equal(turned.points[[36, 45, 8]], points[[60, 72, 16]])
    np.testing.assert_array_equal(turned.visible[[36, 45, 8]], visible[[60, 72, 16]])
    assert turned.person == "b"
    assert wflw.in_scheme("wflw98") is wflw
    with pytest.raises(ConfigError, match="wflw98 cannot be turned into points of cofw29"):
        wflw.in_scheme("cofw29")
    nothing = FaceSet("celeba", "test", "none", [], [face])
    assert nothing.in_scheme("ibug68") is nothing


# ytf68


def test_ytf68(ytf68_root: Path) -> None:
    faces = load_faces("ytf68", ytf68_root, "val")
    assert (faces.layout, faces.split, faces.scheme) == ("ytf68", "val", "ibug68")
    assert names(faces.labelled) == ["id272_v0_a0.jpg", "id273_v0_a0.jpg"]
    assert names(faces.unlabelled) == ["id272_v0_b1.jpg", "id273_v0_b1.jpg"]
    assert faces.people == ["id272", "id273"]
    assert {face.video for face in faces.labelled + faces.unlabelled} == {"v0"}
    assert all(face.points is None and face.person is not None for face in faces.unlabelled)
    table = (ytf68_root / "val.csv").read_text().splitlines()[1:]
    for face, row in zip(faces.labelled, table, strict=True):
        assert face.path == ytf68_root / "val" / row.split(",")[0]
        assert face.points is not None
        np.testing.assert_array_equal(face.points.ravel(), [float(v) for v in row.split(",")[1:]])


@pytest.mark.parametrize(
    ("split", "people"),
    [
        ("select", ["id272"]),  # the people that choices are made on
        ("report", ["id273"]),  # the people of published figures
        ("val", ["id272", "id273"]),  # both
        ("monday", ["id000"]),  # any name
    ],
)
def test_ytf68_splits_and_views(ytf68_root: Path, split: str, people: list[str]) -> None:
    faces = load_faces("ytf68", ytf68_root, split)
    assert faces.split == split
    assert faces.people == people
    assert {face.person for face in faces.unlabelled} <= set(people)


def test_ytf68_a_split_of_its_own_goes_before_the_view(ytf68_copy: Path) -> None:
    shutil.copytree(ytf68_copy / "monday", ytf68_copy / "report")
    shutil.copy(ytf68_copy / "monday.csv", ytf68_copy / "report.csv")
    assert load_faces("ytf68", ytf68_copy, "report").people == ["id000"]


def test_ytf68_names_without_a_person(ytf68_copy: Path) -> None:
    (ytf68_copy / "monday" / "id000_v0_a0.jpg").rename(ytf68_copy / "monday" / "holiday.jpg")
    table = ytf68_copy / "monday.csv"
    table.write_text(table.read_text().replace("id000_v0_a0.jpg", "holiday.jpg"))
    (face,) = load_faces("ytf68", ytf68_copy, "monday").labelled
    assert (face.name, face.person, face.video) == ("holiday.jpg", None, None)


def test_ytf68_an_unreadable_frame_is_left_to_the_reader_of_pixels(ytf68_copy: Path) -> None:
    (ytf68_copy / "val" / "id272_v0_a0.jpg").write_bytes(b"x")
    assert "id272_v0_a0.jpg" in {face.name for face in load_faces("ytf68", ytf68_copy, "val").labelled}


def _cell(row: int, column: int, value: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        lines = [line.split(",") for line in (root / "val.csv").read_text().splitlines()]
        lines[row][column] = value
        (root / "val.csv").write_text("\n".join(map(",".join, lines)) + "\n")

    return change


@pytest.mark.parametrize(
    ("damage", "split", "named"),
    [
        (lambda root: (root / "val.csv").unlink(), "val", ["val.csv does not exist", "splits found there: monday"]),
        (lambda root: shutil.rmtree(root / "val"), "val", ["does not exist", "monday, val"]),  # no folder
        (lambda root: (root / "val.csv").unlink(), "select", ["val.csv does not exist"]),  # a view of nothing
        (lambda root: None, "tuesday", ["tuesday.csv does not exist", "monday, val"]),
        (lambda root: shutil.rmtree(root), "val", ["val.csv does not exist", "no split was found"]),
        (lambda root: (root / "val" / "id273_v0_a0.jpg").unlink(), "val", ["val.csv, row 3", "id273_v0_a0.jpg"]),
        (_cell(0, 5, "z2"), "val", ["val.csv", "column 'x2' is missing"]),
        (_cell(2, 6, "nan"), "val", ["val.csv, row 3", "column 'y2'", "'nan'"]),
        (_cell(1, 1, "left"), "val", ["val.csv, row 2", "column 'x0'", "'left'"]),
        (_cell(2, 3, "900"), "val", ["val.csv, row 3", "id273_v0_a0.jpg", "point 1", "900", "96 x 96"]),
        (_cell(1, 2, "-97"), "val", ["val.csv, row 2", "point 0", "-97"]),
        (_cell(1, 0, "id273_v0_a0.jpg"), "val", ["val.csv, row 3", "already named"]),
        (lambda root: (root / "val.csv").write_text(""), "val", ["val.csv", "empty"]),
    ],
)
def test_ytf68_faults_are_named(
    ytf68_copy: Path, damage: Callable[[Path], object], split: str, named: list[str]
) -> None:
    damage(ytf68_copy)
    with pytest.raises(DataError) as caught:
        load_faces("ytf68", ytf68_copy, split)
    for text in [*named, str(ytf68_copy)]:
        assert text in str(caught.value)


def test_ytf68_points_a_little_outside_are_kept(ytf68_copy: Path) -> None:
    _cell(1, 1, "-20.5")(ytf68_copy)
    points = load_faces("ytf68", ytf68_copy, "val").labelled[0].points
    assert points is not None
    assert points[0, 0] == -20.5


def test_ytf68_a_view_without_a_labelled_frame_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, "val", people=1, frames=1, first_person=3, size=48)
    with pytest.raises(DataError, match=r"val\.csv: no labelled frame in split 'report'"):
        load_faces("ytf68", tmp_path, "report")


# 300w

W300 = ["afw/a.jpg", "helen/trainset/h.jpg", "helen/testset/i.jpg", "lfpw/trainset/l.png", "lfpw/testset/m.png"]


@pytest.fixture(scope="session")
def w300_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("w300")
    for name in [*W300, "ibug/b.jpg", "extra/e.JPG"]:
        annotate(root / name)
    return root


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ["afw/a.jpg", "helen/trainset/h.jpg", "lfpw/trainset/l.png"]),
        ("common", ["helen/testset/i.jpg", "lfpw/testset/m.png"]),
        ("challenge", ["ibug/b.jpg"]),
        ("full", ["helen/testset/i.jpg", "ibug/b.jpg", "lfpw/testset/m.png"]),
        ("all", sorted([*W300, "ibug/b.jpg", "extra/e.JPG"])),
    ],
)
def test_300w_splits(w300_root: Path, split: str, expected: list[str]) -> None:
    faces = load_faces("300w", w300_root, split)
    assert (faces.layout, faces.split, faces.scheme) == ("300w", split, "ibug68")
    assert sorted(names(faces.labelled)) == expected
    assert all(face.path == w300_root / face.name for face in faces.labelled)
    # Each picture is a unit of its own.
    assert faces.people == expected
    assert faces.unlabelled == []
    for face in faces.labelled:
        assert face.points is not None
        np.testing.assert_allclose(face.points, POINTS, atol=1e-6)


def test_300w_full_has_the_subsets_that_papers_print(w300_root: Path) -> None:
    full = load_faces("300w", w300_root, "full")
    assert {name: sorted(faces) for name, faces in full.subsets.items()} == {
        "common": ["helen/testset/i.jpg", "lfpw/testset/m.png"],
        "challenge": ["ibug/b.jpg"],
    }
    assert full.protocol is not None
    assert list(full.protocol.normalisations) == ["inter_ocular", "inter_pupil"]
    assert load_faces("300w", w300_root, "common").subsets == {}


@pytest.mark.parametrize("layout", ["300w", "folder"])
def test_pts_files_count_from_one(tmp_path: Path, layout: str) -> None:
    annotate(tmp_path / "a.png", None)
    rows = ["1.0 1.0", "32.0 17.5", *["16 16"] * 66]
    (tmp_path / "a.pts").write_text("version: 1\nn_points:  68\n{\n" + "\n".join(rows) + "\n}\n")
    (face,) = load_faces(layout, tmp_path, "all").labelled
    assert face.points is not None
    # The centre of the first pixel, and that of the last column.
    np.testing.assert_array_equal(face.points[:3], [[0.5, 0.5], [31.5, 17.0], [15.5, 15.5]])


def test_300w_an_unknown_split_lists_the_known(w300_root: Path) -> None:
    with pytest.raises(ConfigError, match="'test'; known: train, common, challenge, full, all"):
        load_faces("300w", w300_root, "test")


@pytest.mark.parametrize(
    ("damage", "split", "named"),
    [
        (lambda root: shutil.rmtree(root / "ibug"), "full", ["ibug does not exist", "300W comes from"]),
        (lambda root: (root / "ibug/b.jpg").unlink(), "challenge", ["b.pts has no picture", ".jpg"]),
        (lambda root: (root / "ibug/b.pts").unlink(), "challenge", ["no .pts file", "'challenge'"]),
        (lambda root: write_pts(root / "ibug/b.pts", POINTS[:5]), "challenge", ["b.pts has 5 points", "68"]),
        (lambda root: write_pts(root / "ibug/b.pts", POINTS + 100), "full", ["b.pts", "point 0", "32 x 32"]),
        (lambda root: (root / "ibug/b.pts").write_text("68 points"), "full", ["b.pts"]),
    ],
)
def test_300w_faults_are_named(
    w300_root: Path, tmp_path: Path, damage: Callable[[Path], object], split: str, named: list[str]
) -> None:
    root = Path(shutil.copytree(w300_root, tmp_path / "data"))
    damage(root)
    with pytest.raises(DataError) as caught:
        load_faces("300w", root, split)
    for text in [*named, str(root)]:
        assert text in str(caught.value)


# folder


def test_folder_with_and_without_labels(tmp_path: Path) -> None:
    annotate(tmp_path / "mine" / "ada" / "1.jpg")
    annotate(tmp_path / "mine" / "ada" / "old" / "2.jpg", None)
    annotate(tmp_path / "mine" / "bob.png")
    annotate(tmp_path / "mine" / "cy.png", None)
    annotate(tmp_path / "yours" / "d.png")
    faces = load_faces("folder", tmp_path, "mine")
    assert (faces.layout, faces.split, faces.scheme) == ("folder", "mine", "ibug68")
    assert [(face.name, face.person) for face in faces.labelled] == [("ada/1.jpg", "ada"), ("bob.png", "bob")]
    assert [(face.name, face.person) for face in faces.unlabelled] == [("ada/old/2.jpg", "ada"), ("cy.png", "cy")]
    assert faces.people == ["ada", "bob"]
    for face in faces.labelled:
        assert face.path == tmp_path / "mine" / face.name
        assert face.points is not None
        np.testing.assert_allclose(face.points, POINTS, atol=1e-6)
    everything = load_faces("folder", tmp_path, "all")
    assert names(everything.labelled) == ["mine/ada/1.jpg", "mine/bob.png", "yours/d.png"]
    assert everything.people == ["mine", "yours"]


@pytest.mark.parametrize(
    ("damage", "split", "named"),
    [
        (lambda root: None, "theirs", ["theirs does not exist", "--split all"]),
        (lambda root: (root / "mine/a.png").unlink(), "mine", ["mine: no picture"]),
        (lambda root: write_pts(root / "mine/a.pts", POINTS[:5]), "mine", ["a.pts has 5 points", "68"]),
        (lambda root: write_pts(root / "mine/a.pts", POINTS - 100), "all", ["a.pts", "far outside"]),
        (lambda root: (root / "mine/a.pts").write_text("{"), "mine", ["a.pts"]),
    ],
)
def test_folder_faults_are_named(
    tmp_path: Path, damage: Callable[[Path], object], split: str, named: list[str]
) -> None:
    annotate(tmp_path / "mine" / "a.png")
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        load_faces("folder", tmp_path, split)
    for text in [*named, str(tmp_path)]:
        assert text in str(caught.value)
