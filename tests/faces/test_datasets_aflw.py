"""The ``aflw`` layout, on small releases written as MATLAB writes them, in both of its formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from published_layouts import write_aflw_new, write_aflw_old, write_picture
from veilmark.faces.datasets import aflw, load_faces
from veilmark.run.errors import DataError

PICTURES = ["0/image00002.jpg", "2/image00013.jpg", "3/image00004.jpg", "0/image00002.jpg", "3/image00066.jpg"]
ORDER = [3, 1, 5, 4, 2]  # counted from 1; the first two train


def release() -> dict[str, Any]:
    """The variables of the release, in MATLAB's shapes."""
    rng = np.random.default_rng(0)
    mask = np.ones((5, 19))
    mask[3, 4:9] = 0
    mask[4, 0] = 0
    return {
        "data": rng.uniform(2, 30, (5, 38)),
        "bbox": np.array([[3, 33, 4, 35]] * 5, dtype=np.float64),  # left, right, top, bottom
        "mask_new": mask,
        "ra": np.array([ORDER], dtype=np.float64),
        "nameList": PICTURES,
    }


@pytest.fixture(params=[write_aflw_old, write_aflw_new], ids=["version 5", "version 7.3"])
def aflw_root(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(aflw, "TRAIN_FACES", 2)
    request.param(tmp_path / "AFLWinfo_release.mat", release())
    for name in PICTURES:
        write_picture(tmp_path / "flickr" / name, np.full((40, 36, 3), 90, dtype=np.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train", [2, 0]),  # the first of the order
        ("full", [4, 3, 1]),
        ("frontal", [1]),  # every point visible
    ],
)
def test_splits(aflw_root: Path, split: str, rows: list[int]) -> None:
    faces = load_faces("aflw", aflw_root, split)
    names = ["0/image00002.jpg#1", "2/image00013.jpg", "3/image00004.jpg", "0/image00002.jpg#2", "3/image00066.jpg"]
    assert (faces.layout, faces.scheme, faces.unlabelled) == ("aflw", "aflw19", [])
    assert [face.name for face in faces.labelled] == [names[row] for row in rows]
    truth = release()
    for face, row in zip(faces.labelled, rows, strict=True):
        assert face.points is not None
        assert face.region is not None
        assert face.visible is not None
        assert face.path == aflw_root / "flickr" / PICTURES[row]
        # The release counts from 1.
        np.testing.assert_allclose(face.points[:, 0], truth["data"][row, :19] - 0.5)
        np.testing.assert_allclose(face.points[:, 1], truth["data"][row, 19:] - 0.5)
        np.testing.assert_array_equal(face.region, [2.5, 3.5, 32.5, 34.5])
        np.testing.assert_array_equal(face.visible, truth["mask_new"][row] == 1)


def test_full_has_the_subset_frontal(aflw_root: Path) -> None:
    assert load_faces("aflw", aflw_root, "full").subsets == {"frontal": {"2/image00013.jpg"}}
    assert load_faces("aflw", aflw_root, "frontal").subsets == {}


@pytest.mark.parametrize("place", aflw.PICTURES)
def test_pictures_are_found_where_archives_put_them(aflw_root: Path, place: str) -> None:
    if place != "flickr":
        (aflw_root / place).parent.mkdir(parents=True, exist_ok=True)
        (aflw_root / "flickr").rename(aflw_root / place)
    assert all(face.path.exists() for face in load_faces("aflw", aflw_root, "full").labelled)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": np.zeros((5, 42))}, ["'data' is (5, 42), expected (5, 38)"]),  # the 21 points of AFLW itself
        ({"ra": np.array([[1.0, 2, 3, 4, 4]])}, ["'ra' is not an order of the 5 faces"]),
        ({"data": np.full((5, 38), 900.0)}, ["face 5 (3/image00066.jpg)", "36 x 40"]),
        ({"nameList": [*PICTURES[:4], "3/gone.jpg"]}, ["gone.jpg does not exist", "tugraz.at"]),
    ],
)
@pytest.mark.parametrize("write", [write_aflw_old, write_aflw_new])
def test_faults_are_named(
    aflw_root: Path, write: Callable[[Path, dict[str, Any]], None], change: dict[str, Any], named: list[str]
) -> None:
    write(aflw_root / "AFLWinfo_release.mat", release() | change)
    with pytest.raises(DataError) as caught:
        load_faces("aflw", aflw_root, "full")
    for text in [*named, str(aflw_root)]:
        assert text in str(caught.value)


@pytest.mark.parametrize("write", [write_aflw_old, write_aflw_new])
def test_a_variable_that_is_missing_or_no_list_of_names_is_said(
    aflw_root: Path, write: Callable[[Path, dict[str, Any]], None]
) -> None:
    path = aflw_root / "AFLWinfo_release.mat"
    write(path, {key: value for key, value in release().items() if key != "bbox"})
    with pytest.raises(DataError, match="no variable 'bbox'"):
        load_faces("aflw", aflw_root, "full")
    write(path, release() | {"nameList": []})
    with h5py.File(path, "w") as file:
        for key, value in release().items():
            file.create_dataset(key, data=np.zeros(3) if key == "nameList" else value.T)
    with pytest.raises(DataError, match="'nameList' is no cell array"):
        load_faces("aflw", aflw_root, "full")


def test_a_split_without_faces_and_a_missing_release_are_said(aflw_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aflw, "TRAIN_FACES", 5)
    with pytest.raises(DataError, match="no face of split 'full' among 5"):
        load_faces("aflw", aflw_root, "full")
    (aflw_root / "AFLWinfo_release.mat").unlink()
    with pytest.raises(DataError, match=r"AFLWinfo_release\.mat does not exist; AFLW comes from .*no commercial use"):
        load_faces("aflw", aflw_root, "full")


def test_a_damaged_release_is_named(aflw_root: Path) -> None:
    (aflw_root / "AFLWinfo_release.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(200, b"\x01"))
    with pytest.raises(DataError, match=r"AFLWinfo_release\.mat is not a readable MATLAB file"):
        load_faces("aflw", aflw_root, "full")
