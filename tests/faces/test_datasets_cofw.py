"""The ``cofw`` layout, on small files written as MATLAB 7.3 writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from published_layouts import write_cofw
from veilmark.faces.datasets import load_faces
from veilmark.faces.images import read_image
from veilmark.run.errors import DataError


def pictures() -> list[np.ndarray]:
    """A colour and a gray picture that no turning or mirroring maps to itself, and one more."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((30, 44, 3), (40, 36), (32, 32, 3))]


def points(n: int = 3) -> np.ndarray:
    """``(n, 87)`` as MATLAB sees them: 29 x, 29 y, 29 occlusion bits."""
    rng = np.random.default_rng(1)
    return np.concatenate([rng.uniform(1, 30, (n, 58)), rng.integers(0, 2, (n, 29))], axis=1)


BOXES = np.array([[3, 4, 20, 21], [1, 1, 30, 32], [5, 6, 22, 23]], dtype=np.float64)


@pytest.fixture
def cofw_root(tmp_path: Path) -> Path:
    write_cofw(tmp_path / "COFW_train_color.mat", "Tr", pictures()[:1], points()[:1], BOXES[:1])
    write_cofw(tmp_path / "COFW_test_color.mat", "T", pictures(), points(), BOXES)
    return tmp_path


@pytest.mark.parametrize(("split", "n"), [("train", 1), ("test", 3)])
def test_splits(cofw_root: Path, split: str, n: int) -> None:
    faces = load_faces("cofw", cofw_root, split)
    assert (faces.layout, faces.scheme, len(faces.labelled), faces.unlabelled) == ("cofw", "cofw29", n, [])
    expected = points()[:n, :58].reshape(n, 2, 29)
    for i, face in enumerate(faces.labelled):
        assert face.points is not None
        assert face.region is not None
        assert face.visible is None  # occluded points count
        # The file counts from 1.
        np.testing.assert_allclose(face.points, np.stack([expected[i, 0], expected[i, 1]], axis=1) - 0.5)
        x, y, width, height = BOXES[i]
        np.testing.assert_allclose(face.region, [x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5])
        assert face.name == f"COFW_{split}_color/{i + 1:04d}.png"


def test_pictures_are_written_upright_and_gray_becomes_rgb(cofw_root: Path) -> None:
    faces = load_faces("cofw", cofw_root, "test").labelled
    for face, image in zip(faces, pictures(), strict=True):
        np.testing.assert_array_equal(read_image(face.path), image if image.ndim == 3 else np.stack([image] * 3, 2))


def test_pictures_are_written_once_and_again_when_the_file_changes(cofw_root: Path) -> None:
    first = load_faces("cofw", cofw_root, "test").labelled[0].path
    os.utime(first, ns=(1, 1))
    load_faces("cofw", cofw_root, "test")
    assert first.stat().st_mtime_ns == 1
    changed = [255 - image for image in pictures()]
    write_cofw(cofw_root / "COFW_test_color.mat", "T", changed, points(), BOXES)
    os.utime(cofw_root / "COFW_test_color.mat", ns=(5, 5))
    load_faces("cofw", cofw_root, "test")
    np.testing.assert_array_equal(read_image(first), changed[0])


def test_a_writing_that_was_cut_short_is_done_again(cofw_root: Path) -> None:
    faces = load_faces("cofw", cofw_root, "test").labelled
    (faces[0].path.parent / "source.json").unlink()
    faces[2].path.unlink()
    assert all(face.path.exists() for face in load_faces("cofw", cofw_root, "test").labelled)


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda path: path.unlink(), ["does not exist", "data.caltech.edu"]),
        (lambda path: path.write_bytes(b"no mat"), ["not a readable MATLAB file"]),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), ["not a readable MATLAB file"]),
        (lambda path: write_cofw(path, "Tr", pictures(), points(), BOXES), ["no variable 'phisT'", "IsTr"]),
        (lambda path: write_cofw(path, "T", pictures(), points()[:, :58], BOXES), ["(3, 58)", "expected (n, 87)"]),
        (lambda path: write_cofw(path, "T", pictures()[:2], points(), BOXES), ["2 pictures for 3 faces"]),
        (
            lambda path: write_cofw(path, "T", [*pictures(), pictures()[0]], points(), BOXES),
            ["more pictures than the 3"],
        ),
        (
            lambda path: write_cofw(path, "T", [np.zeros((4, 4, 2), np.uint8)] * 3, points(), BOXES),
            ["picture 1", "(4, 4, 2)"],
        ),
        (lambda path: write_cofw(path, "T", pictures(), points() + 500, BOXES), ["face 1", "44 x 30"]),
    ],
)
def test_faults_are_named(cofw_root: Path, write: Callable[[Path], object], named: list[str]) -> None:
    path = cofw_root / "COFW_test_color.mat"
    write(path)
    with pytest.raises(DataError) as caught:
        load_faces("cofw", cofw_root, "test")
    for text in [*named, str(path)]:
        assert text in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(cofw_root: Path) -> None:
    # A file stands where the folder has to be.
    (cofw_root / "COFW_test_color").write_text("")
    with pytest.raises(DataError, match=r"COFW_test_color cannot be made .*writable"):
        load_faces("cofw", cofw_root, "test")
