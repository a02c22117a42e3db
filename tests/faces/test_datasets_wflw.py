"""The ``wflw`` layout, on small files written as published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from published_layouts import WFLW_LISTS, wflw_line, write_picture, write_wflw_list
from veilmark.faces.datasets import load_faces
from veilmark.run.errors import DataError

# Picture, and the six attributes: pose, expression, illumination, make-up, occlusion, blur.
TEST = [
    ("37--Soccer/a.jpg", (1, 0, 0, 0, 0, 1)),
    ("37--Soccer/b.jpg", (0, 0, 0, 0, 0, 0)),
    ("37--Soccer/a.jpg", (0, 1, 0, 0, 1, 0)),
    ("0--Parade/c.jpg", (1, 0, 1, 1, 0, 0)),
]
TRAIN = [("0--Parade/d.jpg", (1, 1, 1, 1, 1, 1)), ("37--Soccer/a.jpg", (0, 0, 0, 0, 0, 0))]


def face_points(row: int) -> np.ndarray:
    return np.random.default_rng(row).uniform(3, 40, (98, 2)).round(6)


def line(row: int, picture: str, attributes: tuple[int, ...]) -> str:
    return wflw_line(picture, face_points(row), attributes, (2, 3, 41, 42))


@pytest.fixture(scope="session")
def wflw_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wflw")
    for part, faces in (("train", TRAIN), ("test", TEST)):
        write_wflw_list(root, part, [line(row, *face) for row, face in enumerate(faces)])
        for picture, _ in faces:
            write_picture(root / "WFLW_images" / picture, np.full((48, 44, 3), 90, dtype=np.uint8))
    return root


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", [0, 1]),
        ("test", [0, 1, 2, 3]),
        ("pose", [0, 3]),
        ("expression", [2]),
        ("illumination", [3]),
        ("makeup", [3]),
        ("occlusion", [2]),
        ("blur", [0]),
    ],
)
def test_splits(wflw_root: Path, split: str, rows: list[int]) -> None:
    faces = load_faces("wflw", wflw_root, split)
    listed = TRAIN if split == "train" else TEST
    assert (faces.layout, faces.split, faces.scheme, faces.unlabelled) == ("wflw", split, "wflw98", [])
    assert [face.path for face in faces.labelled] == [wflw_root / "WFLW_images" / listed[row][0] for row in rows]
    for face, row in zip(faces.labelled, rows, strict=True):
        assert face.points is not None
        assert face.region is not None
        # Pixel centres counted from 0.
        np.testing.assert_allclose(face.points, face_points(row) + 0.5)
        np.testing.assert_array_equal(face.region, [2.5, 3.5, 41.5, 42.5])


def test_several_faces_of_a_picture_have_names_of_their_own(wflw_root: Path) -> None:
    names = [face.name for face in load_faces("wflw", wflw_root, "test").labelled]
    assert names == ["37--Soccer/a.jpg#1", "37--Soccer/b.jpg", "37--Soccer/a.jpg#2", "0--Parade/c.jpg"]
    # The same face has the same name in a subset.
    assert [face.name for face in load_faces("wflw", wflw_root, "occlusion").labelled] == ["37--Soccer/a.jpg#2"]


def test_a_picture_in_both_lists_is_no_person_in_both(wflw_root: Path) -> None:
    train, test = (load_faces("wflw", wflw_root, split) for split in ("train", "test"))
    assert not set(train.people) & set(test.people)
    assert test.people == ["test/0--Parade/c.jpg", "test/37--Soccer/a.jpg", "test/37--Soccer/b.jpg"]


def test_the_test_faces_have_their_subsets(wflw_root: Path) -> None:
    subsets = load_faces("wflw", wflw_root, "test").subsets
    assert list(subsets) == ["pose", "expression", "illumination", "makeup", "occlusion", "blur"]
    assert subsets["pose"] == {"37--Soccer/a.jpg#1", "0--Parade/c.jpg"}
    assert load_faces("wflw", wflw_root, "train").subsets == {}
    assert load_faces("wflw", wflw_root, "pose").subsets == {}


def _in_test(change: Callable[[str], str]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        path = root / WFLW_LISTS / "list_98pt_rect_attr_test.txt"
        path.write_text(change(path.read_text()))

    return damage


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            lambda root: (root / WFLW_LISTS / "list_98pt_rect_attr_test.txt").unlink(),
            ["_test.txt does not exist", "wywu"],
        ),
        (lambda root: (root / "WFLW_images/37--Soccer/b.jpg").unlink(), ["face 2", "b.jpg does not exist", "wywu"]),
        (_in_test(lambda text: ""), ["lists no face", "wywu"]),
        (_in_test(lambda text: text.replace("\n", "\n1 2 3\n", 1)), ["line 2: 3 values", "206 numbers"]),
        (_in_test(lambda text: "left" + text[text.index(" ") :]), ["line 1", "'left'"]),
        (_in_test(lambda text: "900" + text[text.index(" ") :]), ["face 1", "point 0", "44 x 48"]),
        (_in_test(lambda text: "nan" + text[text.index(" ") :]), ["face 1", "point 0"]),
    ],
)
def test_faults_are_named(wflw_root: Path, tmp_path: Path, damage: Callable[[Path], object], named: list[str]) -> None:
    root = Path(shutil.copytree(wflw_root, tmp_path / "data"))
    damage(root)
    with pytest.raises(DataError) as caught:
        load_faces("wflw", root, "test")
    for text in [*named, str(root)]:
        assert text in str(caught.value)


def test_a_subset_without_a_face_is_said(wflw_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(wflw_root, tmp_path / "data"))
    (root / WFLW_LISTS / "list_98pt_rect_attr_test.txt").write_text(line(0, *TEST[1]))
    assert load_faces("wflw", root, "test").subsets == {}
    with pytest.raises(DataError, match="no face of split 'blur'"):
        load_faces("wflw", root, "blur")


def test_an_unreadable_picture_is_left_to_the_reader_of_pixels(wflw_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(wflw_root, tmp_path / "data"))
    (root / "WFLW_images/37--Soccer/b.jpg").write_bytes(b"x")
    assert len(load_faces("wflw", root, "test").labelled) == 4
