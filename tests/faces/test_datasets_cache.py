"""What the cache keeps of faces of the larger sets: big boxes, regions, and how much they were shrunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from veilmark.faces.cache import FaceCache
from veilmark.faces.datasets import Face
from veilmark.faces.images import write_image


def big_face(folder: Path, side: int) -> Face:
    path = folder / f"{side}.png"
    row, column = np.mgrid[0 : side + 40, 0 : side + 60]
    waves = 127 + 60 * np.sin(column / 9) + 60 * np.cos(row / 7)
    write_image(path, np.repeat(np.clip(waves, 0, 255)[:, :, None], 3, axis=2).astype(np.uint8))
    points = np.array([[20, 10], [20 + side, 10 + side], [20 + side / 2, 10 + side / 3]], dtype=np.float64)
    return Face(path, path.name, points)


@pytest.mark.parametrize(
    ("side", "size", "shrunk_by"),
    [
        (196, 128, 1),  # just small enough for crops of 128 px
        (300, 128, 2),
        (300, 256, 1),  # crops of 256 px need more
        (393, 256, 1),
        (430, 256, 2),
    ],
)
def test_larger_crops_keep_larger_pictures(tmp_path: Path, side: int, size: int, shrunk_by: int) -> None:
    face = big_face(tmp_path, side)
    (cached,) = list(FaceCache.prepare([face], face.box[None], tmp_path / "cache", size=size))
    assert cached.scale == 1 / shrunk_by
    assert max(cached.box[2:] - cached.box[:2]) == pytest.approx(side / shrunk_by)
    assert cached.points is not None
    assert np.ptp(cached.points[:, 0]) / cached.scale == pytest.approx(side)


def test_each_size_has_a_cache_of_its_own_and_the_usual_one_its_old_name(tmp_path: Path) -> None:
    face = big_face(tmp_path, 300)
    for arguments in ({}, {"size": 128}):
        FaceCache.prepare([face], face.box[None], tmp_path / "cache", **arguments)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1
    assert FaceCache.prepare([face], face.box[None], tmp_path / "cache", size=256)[0].scale == 1
    assert FaceCache.prepare([face], face.box[None], tmp_path / "cache")[0].scale == 0.5
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2


def test_a_face_without_points_is_kept_by_its_region(tmp_path: Path) -> None:
    labelled = big_face(tmp_path, 100)
    face = Face(labelled.path, "a", region=np.array([30.0, 20, 90, 70]))
    (cached,) = list(FaceCache.prepare([face], face.box[None], tmp_path / "cache"))
    assert cached.points is None
    np.testing.assert_allclose(cached.box[2:] - cached.box[:2], [60, 50])


def test_a_cache_without_a_readable_picture_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    face = Face(tmp_path / "a.png", "a", np.array([[1.0, 2], [30, 40]]))
    cache = FaceCache.prepare([face], face.box[None], tmp_path / "cache")
    assert len(cache) == 0
    assert list(cache.skipped) == [str(face.path)]
