"""Synthetic faces: reproducible, labelled where they are painted, and readable as a data set."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from veilmark.faces import synthetic
from veilmark.faces.face_paint import Canvas
from veilmark.faces.synthetic import (
    Expression,
    Identity,
    Pose,
    SyntheticFace,
    draw_identity,
    render_face,
    write_dataset,
)
from veilmark.landmarks.schemes import get_scheme

SCHEME = get_scheme("ibug68")
PLAIN = Identity(hair_style="shaved", iris=(40.0, 30.0, 20.0))


def render(seed: int = 0, size: int = 200, **given: object) -> SyntheticFace:
    arguments = {"identity": PLAIN, "pose": Pose(), "expression": Expression(), "scene": 5} | given
    return render_face(np.random.default_rng(seed), size, **arguments)  # type: ignore[arg-type]


def inside(face: SyntheticFace, outline: np.ndarray) -> np.ndarray:
    """The pixels whose centres lie in an outline, ``(n, 3)``."""
    mask = np.zeros(face.image.shape[:2], dtype=np.uint8)
    cv2.fillPoly(mask, [np.round((outline - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return face.image[mask > 0].astype(np.float64)


def at(face: SyntheticFace, point: np.ndarray) -> np.ndarray:
    """The mean colour of the 3 x 3 pixels around a point."""
    x, y = np.floor(point).astype(int)
    return face.image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0)


def test_the_same_seed_gives_the_same_face_and_another_seed_another() -> None:
    first, again, other = (render_face(np.random.default_rng(seed), 96) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.points, again.points)
    assert np.abs(first.points - other.points).max() > 1
    assert np.abs(first.image.astype(float) - other.image).mean() > 5


@pytest.mark.parametrize("seed", range(6))
def test_a_face_fits_its_picture_and_its_labels_agree(seed: int) -> None:
    face = render_face(np.random.default_rng(seed), 120)
    assert face.image.shape == (120, 120, 3)
    assert face.image.dtype == np.uint8
    assert face.points.shape == (68, 2)
    assert face.points.dtype == np.float32
    assert (face.points > 0).all()
    assert (face.points < 120).all()
    assert -45 <= face.yaw <= 45
    np.testing.assert_array_equal(face.box, [*face.points.min(axis=0), *face.points.max(axis=0)])
    assert 0.3 < (face.box[2] - face.box[0]) / 120 < 0.6


def test_points_scale_with_the_size_of_the_picture() -> None:
    small, large = render(size=100), render(size=300)
    np.testing.assert_allclose(large.points, small.points * 3, atol=1e-3)


def test_a_frontal_face_is_its_own_mirror_image() -> None:
    face = render()
    axis = face.points[SCHEME.components["nose_bridge"], 0].mean()
    mirrored = SCHEME.mirror_points(face.points, width=2 * axis)
    np.testing.assert_allclose(mirrored, face.points, atol=0.05)


def test_opposite_yaws_mirror_each_other() -> None:
    left, right = render(pose=Pose(yaw=-30)), render(pose=Pose(yaw=30))
    centre = (left.points[27, 0] + right.points[27, 0]) / 2
    np.testing.assert_allclose(SCHEME.mirror_points(left.points, 2 * centre), right.points, atol=0.3)


@pytest.mark.parametrize(
    ("pose", "axis", "sign"),
    [
        (Pose(yaw=30), 0, 1),  # the nose goes right
        (Pose(yaw=-30), 0, -1),  # the nose goes left
        (Pose(pitch=15), 1, -1),  # looking up, the nose goes up
        (Pose(pitch=-15), 1, 1),  # looking down, the nose goes down
    ],
)
def test_the_nose_follows_the_pose(pose: Pose, axis: int, sign: int) -> None:
    def nose(face: SyntheticFace) -> float:
        return float((face.points[30] - face.points[[36, 45]].mean(axis=0))[axis])

    assert sign * (nose(render(pose=pose)) - nose(render())) > 3


def test_roll_tilts_the_eyes_clockwise() -> None:
    points = render(pose=Pose(roll=15)).points
    across = points[45] - points[36]
    assert np.degrees(np.arctan2(across[1], across[0])) == pytest.approx(15, abs=0.5)


@pytest.mark.parametrize("yaw", [-35.0, 0.0, 35.0])
@pytest.mark.parametrize("eye", ["left_eye", "right_eye"])
def test_the_eye_points_hold_white_and_a_dark_iris(yaw: float, eye: str) -> None:
    face = render(size=300, pose=Pose(yaw=yaw))
    contour = face.points[list(SCHEME.components[eye])]
    down = np.array([0, np.ptp(contour[:, 1])])
    pixels = inside(face, contour).mean(axis=1)
    skin = at(face, contour.mean(axis=0) + 2.2 * down).mean()
    assert pixels.min() < 60
    assert pixels.max() > skin + 10
    # The white is there, and below the lower lid it is not.
    moved = inside(face, contour + 1.3 * down).mean(axis=1)
    assert np.ptp(moved) < 0.7 * np.ptp(pixels)


@pytest.mark.parametrize("yaw", [-35.0, 0.0, 35.0])
def test_the_lip_points_hold_red_and_the_skin_around_them_does_not(yaw: float) -> None:
    face = render(size=300, pose=Pose(yaw=yaw))
    outer = face.points[list(SCHEME.components["outer_lip"])]

    def redness(pixels: np.ndarray) -> float:
        return float((pixels[:, 0] / pixels[:, 1]).mean())

    def scaled(factor: float) -> np.ndarray:
        return outer.mean(axis=0) + (outer - outer.mean(axis=0)) * factor

    lips = redness(inside(face, scaled(0.9)))
    rim = [at(face, point) for point in scaled(1.3)]
    assert lips > 1.25 * redness(np.asarray(rim))


def test_an_open_mouth_is_dark_inside() -> None:
    closed, wide = render(size=300), render(size=300, expression=Expression(mouth_open=0.9))
    assert closed.points[66, 1] == pytest.approx(closed.points[62, 1], abs=0.5)
    assert wide.points[66, 1] > wide.points[62, 1] + 12
    below_the_teeth = 0.45 * wide.points[62] + 0.55 * wide.points[66]
    assert at(wide, below_the_teeth).mean() < at(closed, closed.points[57]).mean() - 30


def test_a_blink_closes_the_eyes() -> None:
    opened, shut = render(), render(expression=Expression(blink=1.0))
    for eye in (slice(36, 42), slice(42, 48)):
        assert np.ptp(shut.points[eye, 1]) < 0.7 * np.ptp(opened.points[eye, 1])


def test_the_brow_points_are_on_hair() -> None:
    face = render(size=300)
    for first in (17, 22):
        for point in face.points[first + 1 : first + 4]:
            assert at(face, point).mean() < at(face, point - (0, 10)).mean() - 50


@pytest.mark.parametrize(
    ("pose", "indices", "outwards"),
    [
        (Pose(), (12, 13), 1),  # frontal, below the ear
        (Pose(), (3, 4), -1),  # the same on the left
        (Pose(yaw=25), (12, 13, 14, 15), 1),  # turned right: the far side is the right one
        (Pose(yaw=45, pitch=12), (12, 13, 14, 15), 1),  # and looking up
        (Pose(yaw=45, pitch=-12), (12, 13, 14, 15), 1),  # and looking down
        (Pose(yaw=-45), (1, 2, 3, 4), -1),  # turned left
    ],
)
def test_jaw_points_of_the_far_side_lie_on_the_outline(
    monkeypatch: pytest.MonkeyPatch, pose: Pose, indices: tuple[int, ...], outwards: int
) -> None:
    def green(canvas: Canvas, rng: np.random.Generator) -> None:
        canvas.pixels[:] = (0, 255, 0)

    monkeypatch.setattr(synthetic, "paint_background", green)
    face = render(size=300, pose=pose)
    person = face.image[..., 1].astype(int) < face.image[..., 0].astype(int) + 60
    for index in indices:
        x, y = face.points[index]
        columns = np.flatnonzero(person[int(y)])
        outline = columns.max() + 1 if outwards > 0 else columns.min()
        assert outline == pytest.approx(x, abs=1.6), index


def test_people_differ_and_stay_themselves() -> None:
    first, second = draw_identity(np.random.default_rng(1)), draw_identity(np.random.default_rng(2))
    assert first != second
    assert first == draw_identity(np.random.default_rng(1))
    shapes = [render(identity=who).points for who in (first, second)]
    assert np.abs(shapes[0] - shapes[1]).max() > 2


def test_a_scene_repeats_the_background() -> None:
    corners = [render(seed, scene=8).image[:20, :20].astype(float) for seed in (0, 1)]
    assert np.abs(corners[0] - corners[1]).mean() < 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: render(size=20), "size is 20.*at least 48"),  # too small to paint
        (lambda: replace(PLAIN, hair_style="mullet"), "unknown hair_style 'mullet'; known: .*bob"),
    ],
)
def test_errors_name_the_value(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("whole_pixels", [False, True])
def test_a_data_set_has_the_layout_and_its_labels(tmp_path: Path, whole_pixels: bool) -> None:
    options = {"people": 2, "frames": 2, "unlabelled": 1, "size": 64, "whole_pixels": whole_pixels}
    table = write_dataset(tmp_path, "val", first_person=7, **options)  # type: ignore[arg-type]
    assert table == tmp_path / "val.csv"
    with table.open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == ["file", *(f"{axis}{i}" for i in range(68) for axis in "xy")]
    names = [f"id{person:03d}_v0_a{frame}.jpg" for person in (7, 8) for frame in (0, 1)]
    assert [row[0] for row in rows[1:]] == names
    assert sorted(path.name for path in (tmp_path / "val").iterdir()) == sorted(
        [*names, "id007_v0_b2.jpg", "id008_v0_b2.jpg"]
    )
    for row in rows[1:]:
        with Image.open(tmp_path / "val" / row[0]) as picture:
            assert picture.size == (64, 64)
            assert picture.format == "JPEG"
        values = np.array(row[1:], dtype=np.float64)
        assert ((values >= 0) & (values <= 64)).all()
        assert all(("." in text) != whole_pixels for text in row[1:])


def test_a_data_set_is_reproducible_and_its_people_depend_on_their_number_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", "train", people=2, frames=1, size=64)
    write_dataset(tmp_path / "two", "val", people=1, frames=1, first_person=1, size=64)
    one, two = ((tmp_path / path).read_bytes() for path in ("one/train/id001_v0_a0.jpg", "two/val/id001_v0_a0.jpg"))
    assert one == two
    assert one != (tmp_path / "one/train/id000_v0_a0.jpg").read_bytes()
