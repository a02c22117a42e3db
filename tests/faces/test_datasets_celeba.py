"""The ``celeba`` layout, on small files written as published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from published_layouts import CelebaRow, write_celeba_lists, write_picture
from veilmark.faces.crop import points_box
from veilmark.faces.datasets import load_faces
from veilmark.faces.datasets.celeba import region_of_five
from veilmark.faces.synthetic import render_face
from veilmark.run.errors import DataError

NAMES = [f"{number:06d}.jpg" for number in range(1, 6)]
PARTITION = [0, 0, 1, 2, 2]
PEOPLE = [2880, 17, 99, 4, 4]
FIVE = "69 109 106 113 77 142 73 152 108 154"


@pytest.fixture(params=["img_celeba", "Img/img_celeba", "img_align_celeba", "Img/img_align_celeba"])
def celeba_root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for name in NAMES:
        write_picture(tmp_path / request.param / name, np.full((20, 20, 3), 90, dtype=np.uint8))
    faces = zip(NAMES, PARTITION, PEOPLE, strict=True)
    write_celeba_lists(tmp_path, [CelebaRow(*face, FIVE) for face in faces])
    return tmp_path


@pytest.mark.parametrize(("split", "rows"), [("train", [0, 1]), ("val", [2]), ("test", [3, 4])])
def test_splits_and_people(celeba_root: Path, split: str, rows: list[int]) -> None:
    faces = load_faces("celeba", celeba_root, split)
    assert (faces.layout, faces.scheme, faces.labelled) == ("celeba", "none", [])
    assert [face.name for face in faces.unlabelled] == [NAMES[row] for row in rows]
    assert [face.person for face in faces.unlabelled] == [str(PEOPLE[row]) for row in rows]
    points = np.array([float(value) for value in FIVE.split()]).reshape(5, 2) + 0.5
    for face in faces.unlabelled:
        assert face.path.exists()
        assert face.points is None
        np.testing.assert_allclose(face.box, region_of_five(points), rtol=1e-6)


def test_the_sets_own_boxes_serve_in_the_wild_without_the_five_points(celeba_root: Path) -> None:
    (celeba_root / "Anno/list_landmarks_celeba.txt").unlink()
    faces = load_faces("celeba", celeba_root, "test").unlabelled
    wild = faces[0].path.parent.name == "img_celeba"
    assert (faces[0].region is not None and faces[0].region.tolist() == [95, 71, 321, 384]) == wild


@pytest.mark.parametrize("seed", range(4))
def test_the_region_is_about_the_box_of_68_points(seed: int) -> None:
    face = render_face(np.random.default_rng(seed), 128)
    p = face.points
    five = np.stack([p[36:42].mean(axis=0), p[42:48].mean(axis=0), p[30], p[48], p[54]])
    region, box = region_of_five(five), points_box(p)
    side = max(box[2:] - box[:2])
    assert max(region[2:] - region[:2]) == pytest.approx(side, rel=0.15)
    # Turned heads have more jaw on one side.
    np.testing.assert_allclose((region[:2] + region[2:]) / 2, (box[:2] + box[2:]) / 2, atol=0.25 * side)


def _change(file: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        (root / file).write_text(change((root / file).read_text()))

    return damage


def _each_list(change: Callable[[str], str]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        for kind in ("landmarks", "landmarks_align"):
            _change(f"Anno/list_{kind}_celeba.txt", change)(root)

    return damage


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: shutil.rmtree(root / "Eval"), ["list_eval_partition.txt does not exist", "CelebA.html"]),
        (lambda root: shutil.rmtree(root / "Anno"), ["identity_CelebA.txt does not exist", "non-commercial"]),
        (lambda root: next(root.rglob("000004.jpg")).unlink(), ["000004.jpg does not exist", "CelebA.html"]),
        (
            _change("Eval/list_eval_partition.txt", lambda text: text.replace(" 2", " 0")),
            ["no picture of split 'test'"],
        ),
        (_change("Anno/identity_CelebA.txt", lambda text: text[: text.index("000004")]), ["does not list 000004.jpg"]),
        (_change("Anno/identity_CelebA.txt", lambda text: "000001.jpg\n" + text), ["line 1", "1 values"]),
        (_each_list(lambda text: text.replace("000004.jpg  69", "000004.jpg  left")), ["000004.jpg", "'left'"]),
        (_each_list(lambda text: text.replace("000004.jpg  69", "000004.jpg  nan")), ["000004.jpg", "not finite"]),
        (_each_list(lambda text: text.replace(FIVE, " ".join(["5"] * 10))), ["000004.jpg", "no area"]),
    ],
)
def test_faults_are_named(celeba_root: Path, damage: Callable[[Path], object], named: list[str]) -> None:
    damage(celeba_root)
    with pytest.raises(DataError) as caught:
        load_faces("celeba", celeba_root, "test")
    for text in [*named, str(celeba_root)]:
        assert text in str(caught.value)
