"""The ``helen`` layout, on small files written as published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from published_layouts import write_helen
from veilmark.faces.datasets import load_faces
from veilmark.run.errors import DataError

PICTURES = {"232194_1": "train_1", "1629243_1": "train_3", "2960256451_1": "test", "30844800_1": "test"}


def points(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).uniform(20, 60, (194, 2)).round(2)


@pytest.fixture
def helen_root(tmp_path: Path) -> Path:
    blank = np.full((80, 90, 3), 90, dtype=np.uint8)
    write_helen(tmp_path, {name: (folder, blank, points(name)) for name, folder in PICTURES.items()})
    return tmp_path


@pytest.mark.parametrize(
    ("split", "names"),
    [("train", ["232194_1", "1629243_1"]), ("test", ["2960256451_1", "30844800_1"])],
)
def test_splits(helen_root: Path, split: str, names: list[str]) -> None:
    faces = load_faces("helen", helen_root, split)
    assert (faces.layout, faces.scheme, faces.labelled) == ("helen", "none", [])
    assert [face.path for face in faces.unlabelled] == [helen_root / PICTURES[name] / f"{name}.jpg" for name in names]
    assert [face.name for face in faces.unlabelled] == [f"{name}.jpg" for name in names]
    for face, name in zip(faces.unlabelled, names, strict=True):
        assert face.points is None
        low, high = points(name).min(axis=0) + 0.5, points(name).max(axis=0) + 0.5
        np.testing.assert_allclose(face.box, [*low, *high], rtol=1e-6)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: (root / "testnames.txt").unlink(), ["testnames.txt does not exist", "vuongle2/helen"]),
        (lambda root: shutil.rmtree(root / "annotation"), ["annotation does not exist", "vuongle2/helen"]),
        (lambda root: (root / "testnames.txt").write_text("\n"), ["lists no picture"]),
        (lambda root: (root / "annotation/3.txt").unlink(), ["no file for 2960256451_1", "vuongle2/helen"]),
        (lambda root: (root / "test/30844800_1.jpg").unlink(), ["no picture 30844800_1.jpg", "vuongle2/helen"]),
        (lambda root: (root / "annotation/4.txt").write_text("30844800_1\n1 , 2\n"), ["4.txt", "194 lines"]),
        (lambda root: (root / "annotation/4.txt").write_text("30844800_1\n1 , left\n"), ["4.txt", "' left'"]),
        (lambda root: (root / "annotation/4.txt").write_text(""), ["4.txt", "194 lines"]),
        (lambda root: (root / "annotation/4.txt").write_text("x\n" + "1 , nan\n" * 194), ["4.txt", "194 lines"]),
    ],
)
def test_faults_are_named(helen_root: Path, damage: Callable[[Path], object], named: list[str]) -> None:
    damage(helen_root)
    with pytest.raises(DataError) as caught:
        load_faces("helen", helen_root, "test")
    for text in [*named, str(helen_root)]:
        assert text in str(caught.value)
