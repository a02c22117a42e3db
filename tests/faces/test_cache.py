"""The cache: the same pixels and points as the pictures, decoded once, never stale."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from veilmark.faces import cache as cache_module
from veilmark.faces.cache import FaceCache, surroundings
from veilmark.faces.crop import Crop
from veilmark.faces.datasets import Face, load_faces
from veilmark.faces.images import read_image, write_image
from veilmark.faces.synthetic import write_dataset

LARGEST_KEPT = 2 * 128 / 1.3
"""Pixels of the longer side of a box beyond which the surroundings are shrunk."""


def smooth_picture(height: int, width: int) -> np.ndarray:
    row, column = np.mgrid[0:height, 0:width]
    waves = [np.sin(column / 9) + np.cos(row / 7), np.sin((column + row) / 11), np.cos((column - row) / 8)]
    return np.stack([127 + 60 * wave / np.abs(wave).max() for wave in waves], axis=2).astype(np.uint8)


def spotted_picture(height: int, width: int, points: np.ndarray) -> np.ndarray:
    """A soft bright spot at every point."""
    row, column = np.mgrid[0:height, 0:width] + 0.5
    light = sum(np.exp(-0.5 * ((column - x) ** 2 + (row - y) ** 2) / 5**2) for x, y in points)
    return np.repeat(np.clip(200 * light, 0, 255)[..., None], 3, axis=2).astype(np.uint8)


def spot_near(image: np.ndarray, point: np.ndarray, reach: int) -> np.ndarray:
    """Centre of mass of the light around a point."""
    x0, y0 = np.floor(point).astype(int) - reach
    part = image[y0 : y0 + 2 * reach, x0 : x0 + 2 * reach, 0].astype(np.float64)
    row, column = np.mgrid[0 : part.shape[0], 0 : part.shape[1]] + 0.5
    return np.array([(part * column).sum(), (part * row).sum()]) / part.sum() + [x0, y0]


@pytest.fixture
def faces(tmp_path: Path) -> list[Face]:
    """A face in the middle, one at the corner and one that leaves the picture; the second has no labels."""
    corners = np.array([[70, 50], [0, 0], [150, 100]])
    points = corners[:, None] + np.random.default_rng(0).uniform(0, 60, (3, 68, 2))
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        write_image(path, np.roll(smooth_picture(130, 200), number, axis=1))
        found.append(Face(path, path.name, None if number == 1 else points[number], person=str(number)))
    return found


BOXES = np.array([[70, 50, 130, 110], [-5, -3, 40, 52], [150, 100, 215, 158]], dtype=np.float32)


@pytest.mark.parametrize("zoom", [1.0, 0.8, 1.4])
def test_crops_of_the_cache_are_crops_of_the_pictures(faces: list[Face], tmp_path: Path, zoom: float) -> None:
    cache = FaceCache.prepare(faces, BOXES, tmp_path / "cache")
    assert len(cache) == 3
    assert cache.skipped == {}
    for number, (face, box) in enumerate(zip(faces, BOXES, strict=True)):
        cached = cache[number]
        assert cached.face is face
        # 40 px crops shrink, 128 px crops enlarge.
        for size in (40, 128):
            direct = Crop.from_box(box, margin=1.3 * zoom, size=size)
            stored = Crop.from_box(cached.box, margin=1.3 * zoom, size=size)
            difference = stored.sample(cached.image).astype(int) - direct.sample(read_image(face.path)).astype(int)
            assert np.abs(difference).max() <= 1
            if face.points is None:
                assert cached.points is None
            else:
                assert cached.points is not None
                assert cached.points.dtype == np.float32
                np.testing.assert_allclose(stored.to_crop(cached.points), direct.to_crop(face.points), atol=1e-3)


def test_real_files_of_a_data_set(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", "train", people=2, frames=1, size=96)
    labelled = load_faces("ytf68", tmp_path / "data", "train").labelled
    cache = FaceCache.prepare(labelled, np.stack([face.box for face in labelled]), tmp_path / "cache")
    for number, face in enumerate(labelled):
        direct, stored = Crop.from_box(face.box), Crop.from_box(cache[number].box)
        difference = stored.sample(cache[number].image).astype(int) - direct.sample(read_image(face.path)).astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("side", "shrunk_by"),
    [
        (100, 1),  # below the limit: as it is
        (196, 1),  # just below
        (200, 2),  # just above
        (430, 3),  # far above
    ],
)
def test_big_faces_are_shrunk_and_keep_their_points(tmp_path: Path, side: int, shrunk_by: int) -> None:
    inside = np.array([[0, 0], [side, 0.4 * side], [0.3 * side, side], [0.6 * side, 0.5 * side]])
    points = inside + np.array([53, 37])
    path = tmp_path / "big.png"
    # Odd sides, so that the last rows and columns have to be padded.
    write_image(path, spotted_picture(side + 101, side + 83, points))
    box = np.array([[53, 37, 53 + side, 37 + side]], dtype=np.float32)
    cached = FaceCache.prepare([Face(path, path.name, points)], box, tmp_path / "cache")[0]
    assert cached.points is not None
    np.testing.assert_allclose(cached.box[2:] - cached.box[:2], side / shrunk_by, atol=1e-3)
    assert side / shrunk_by <= LARGEST_KEPT
    for point in cached.points:
        np.testing.assert_allclose(spot_near(cached.image, point, 16 // shrunk_by), point, atol=0.1)


def test_only_the_surroundings_are_kept(tmp_path: Path) -> None:
    image = smooth_picture(400, 500)
    part, left, top, scale = surroundings(image, np.array([200, 150, 240, 190]))
    assert scale == 1
    # Three times the box, and no more than the pixels at its edges on top.
    assert (left, top) == (160, 110)
    np.testing.assert_array_equal(part, image[110:231, 160:281])


@pytest.mark.parametrize("box", [[-90, -80, -30, -20], [480, 10, 530, 60], [700, 700, 750, 750]])
def test_boxes_at_the_edge_or_outside_leave_something_to_crop(box: list[float]) -> None:
    part, left, top, _ = surroundings(smooth_picture(400, 500), np.array(box))
    assert min(part.shape[:2]) >= 1
    assert 0 <= left < 500
    assert 0 <= top < 400


def test_the_second_time_nothing_is_decoded(faces: list[Face], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    first = FaceCache.prepare(faces, BOXES, tmp_path / "cache", lambda: calls.append(1))
    assert len(calls) == 3

    def refuse(path: Path) -> np.ndarray:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(cache_module, "read_image", refuse)
    second = FaceCache.prepare(faces, BOXES, tmp_path / "cache", lambda: calls.append(1))
    assert len(calls) == 3
    for number in range(3):
        np.testing.assert_array_equal(first[number].image, second[number].image)
        np.testing.assert_array_equal(first[number].box, second[number].box)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("change", ["pixels", "date", "box", "order"])
def test_changed_data_makes_a_new_cache(faces: list[Face], tmp_path: Path, change: str) -> None:
    folder, boxes = tmp_path / "cache", BOXES.copy()
    FaceCache.prepare(faces, boxes, folder)
    before = {path.name for path in folder.iterdir()}
    if change == "pixels":
        write_image(faces[0].path, np.zeros((130, 200, 3), dtype=np.uint8))
    elif change == "date":
        os.utime(faces[0].path, ns=(1, 1))
    elif change == "box":
        boxes[2, 3] += 1
    else:
        faces, boxes = faces[::-1], boxes[::-1].copy()
    cache = FaceCache.prepare(faces, boxes, folder)
    assert len({path.name for path in folder.iterdir()} - before) == 2
    for number, face in enumerate(faces):
        direct = Crop.from_box(boxes[number]).sample(read_image(face.path)).astype(int)
        stored = Crop.from_box(cache[number].box).sample(cache[number].image).astype(int)
        assert np.abs(stored - direct).max() <= 1


def test_unreadable_pictures_are_skipped_and_listed(faces: list[Face], tmp_path: Path) -> None:
    whole = faces[1].path.read_bytes()
    faces[1].path.write_bytes(whole[: len(whole) // 2])
    # Both when the cache is made and when it is read again.
    for _ in range(2):
        cache = FaceCache.prepare(faces, BOXES, tmp_path / "cache")
        assert [cache[i].face.name for i in range(len(cache))] == ["0.png", "2.png"]
        assert list(cache.skipped) == [str(faces[1].path)]
        assert "truncated" in cache.skipped[str(faces[1].path)]
        direct = Crop.from_box(BOXES[2]).sample(read_image(faces[2].path)).astype(int)
        stored = Crop.from_box(cache[1].box).sample(cache[1].image).astype(int)
        assert np.abs(stored - direct).max() <= 1


def test_a_cache_that_was_cut_short_is_made_again(
    faces: list[Face], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> np.ndarray:
        if path == faces[2].path:
            raise KeyboardInterrupt
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "read_image", killed)
        with pytest.raises(KeyboardInterrupt):
            FaceCache.prepare(faces, BOXES, tmp_path / "cache")
    assert len(FaceCache.prepare(faces, BOXES, tmp_path / "cache")) == 3


def test_boxes_and_faces_must_match(faces: list[Face], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        FaceCache.prepare(faces, BOXES[:2], tmp_path / "cache")
