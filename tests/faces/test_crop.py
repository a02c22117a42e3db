"""The crop contract: exact inverses, half-pixel bookkeeping, and errors that name the box."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.faces.crop import BoxError, Crop, check_box, overlap, points_box

coordinates = st.floats(-500, 500)
lengths = st.floats(1, 800)
sizes = st.integers(1, 256)


def blob(width: int, height: int, x: float, y: float, sigma: float) -> np.ndarray:
    """A smooth bright spot on black whose centre of mass is (x, y), corner origin."""
    column, row = np.arange(width) + 0.5, np.arange(height) + 0.5
    value = 250 * np.exp(-0.5 * ((column[None] - x) ** 2 + (row[:, None] - y) ** 2) / sigma**2)
    return np.repeat(np.round(value)[..., None], 3, axis=2).astype(np.uint8)


def centre_of_mass(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(np.float64)
    row, column = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]] + 0.5
    return np.array([(weight * column).sum(), (weight * row).sum()]) / weight.sum()


@given(
    coordinates,
    coordinates,
    lengths,
    st.floats(-math.pi, math.pi),
    st.booleans(),
    sizes,
    coordinates,
    coordinates,
)
def test_to_image_undoes_to_crop(
    cx: float, cy: float, side: float, angle: float, mirror: bool, size: int, x: float, y: float
) -> None:
    crop = Crop.from_square(cx, cy, side, angle=angle, mirror=mirror, size=size)
    points = np.array([[x, y], [cx, cy]])
    np.testing.assert_allclose(crop.to_image(crop.to_crop(points)), points, atol=1e-6)


@given(coordinates, coordinates, lengths, lengths, st.floats(0.5, 3), sizes)
def test_from_box_is_centred_and_as_large_as_the_margin_says(
    x0: float, y0: float, width: float, height: float, margin: float, size: int
) -> None:
    crop = Crop.from_box((x0, y0, x0 + width, y0 + height), margin, size)
    centre = crop.to_crop(np.array([x0 + width / 2, y0 + height / 2]))
    np.testing.assert_allclose(centre, [size / 2, size / 2], atol=1e-6)
    assert crop.scale == pytest.approx(size / (margin * max(width, height)), rel=1e-6)


@given(st.floats(-math.pi, math.pi), st.booleans(), st.integers(16, 200))
def test_turning_and_mirroring_keep_the_scale(angle: float, mirror: bool, size: int) -> None:
    crop = Crop.from_square(40, 30, 50, angle=angle, mirror=mirror, size=size)
    assert crop.scale == pytest.approx(size / 50)
    assert np.sign(np.linalg.det(crop.matrix[:, :2])) == (-1 if mirror else 1)


@pytest.mark.parametrize(
    ("mirror", "at", "expected"),
    [
        (False, (32 + 10, 32), (42, 32)),  # upright: right stays right
        (True, (32 + 10, 32), (22, 32)),  # mirrored: right becomes left
        (False, (32, 32 - 10), (32, 22)),  # up stays up
    ],
)
def test_directions(mirror: bool, at: tuple[float, float], expected: tuple[float, float]) -> None:
    crop = Crop.from_square(32, 32, 64, mirror=mirror, size=64)
    np.testing.assert_allclose(crop.to_crop(np.array(at)), expected, atol=1e-9)


def test_a_positive_angle_turns_the_content_clockwise() -> None:
    crop = Crop.from_square(32, 32, 64, angle=math.pi / 2, size=64)
    np.testing.assert_allclose(crop.to_crop(np.array([32.0, 22.0])), [42, 32], atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(-6, 6), st.integers(-6, 6), st.integers(0, 31), st.integers(0, 31), st.booleans())
def test_whole_offsets_at_scale_one_copy_pixels(dx: int, dy: int, row: int, column: int, mirror: bool) -> None:
    image = np.random.default_rng(row).integers(0, 60, (32, 32, 3), dtype=np.uint8)
    image[row, column] = (255, 200, 150)
    crop = Crop.from_square(16 + dx, 16 + dy, 32, mirror=mirror, size=32)
    # Row and column of the crop, looked up in the picture, the nearest edge pixel beyond its borders.
    rows, columns = (np.clip(np.arange(32) + shift, 0, 31) for shift in (dy, dx))
    expected = image[rows][:, columns]
    np.testing.assert_array_equal(crop.sample(image), expected[:, ::-1] if mirror else expected)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.4])
@pytest.mark.parametrize(
    ("side", "size"),
    [
        (300, 64),  # shrinking by a broken factor
        (256, 64),  # shrinking by a whole factor
        (300, 16),  # shrinking a lot
        (130, 128),  # shrinking by next to nothing
        (100, 100),  # neither
        (40, 128),  # enlarging
        (60.5, 256),  # enlarging a side that is no whole number
    ],
)
def test_pixels_land_where_points_do(side: float, size: int, angle: float, mirror: bool) -> None:
    truth = np.array([161.3, 148.6])
    image = blob(320, 300, *truth, sigma=max(2.0, side / 14))
    crop = Crop.from_square(158.2, 151.7, side, angle=angle, mirror=mirror, size=size)
    found = centre_of_mass(crop.sample(image))
    # The crop ends nearly 7 sigmas (or more) from the blob, so nothing of it is cut off.
    np.testing.assert_allclose(found, crop.to_crop(truth), atol=0.05)


@pytest.mark.parametrize(("side", "size"), [(200, 50), (50, 200)])  # shrinking, enlarging
def test_the_edge_repeats_outside_the_picture(side: float, size: int) -> None:
    image = np.full((20, 20, 3), 40, dtype=np.uint8)
    image[:, 10:] = 200
    sampled = Crop.from_square(10, 60, side, size=size).sample(image)
    assert sampled.shape == (size, size, 3)
    assert (sampled[:, 0] == 40).all()
    assert (sampled[:, -1] == 200).all()


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 20),  # no width
        (10, 10, 20, 10),  # no height
        (20, 10, 10, 20),  # inverted
        (math.nan, 10, 20, 20),  # not a number
        (10, 10, math.inf, 20),  # endless
    ],
)
def test_from_box_and_check_box_name_an_empty_box(box: tuple[float, ...]) -> None:
    with pytest.raises(BoxError, match=r"face box \(.*\) is empty"):
        Crop.from_box(box)
    with pytest.raises(BoxError, match=r"face box \(.*\) is empty"):
        check_box(box, 100, 100)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 17.9, 17.9), r"face box \(10\.0, 10\.0, 17\.9, 17\.9\) is under 8 px"),  # too small
        ((110, 10, 140, 40), r"face box \(110\.0, .*\) lies outside the 100 x 80 picture"),  # to the right
        ((10, 70, 40, 100), r"face box \(10\.0, 70\.0, .*\) lies outside the 100 x 80"),  # below
        ((-30, 10, -10, 30), r"face box \(-30\.0, .*\) lies outside"),  # to the left
    ],
)
def test_check_box_refuses(box: tuple[float, ...], message: str) -> None:
    with pytest.raises(BoxError, match=message):
        check_box(box, 100, 80)


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 18, 12),  # the longer side counts, and 8 is enough
        (-30, -30, 40, 40),  # partly outside, but its centre is inside
        (0, 0, 100, 80),  # the whole picture
    ],
)
def test_check_box_accepts(box: tuple[float, ...]) -> None:
    check_box(box, 100, 80)


def test_points_box_is_tight() -> None:
    points = np.array([[[3.0, 8.0], [1.0, 9.0]], [[5.0, 5.0], [6.0, 4.0]]])
    np.testing.assert_array_equal(points_box(points), [[1, 8, 3, 9], [5, 4, 6, 5]])


@pytest.mark.parametrize(("width", "height"), [(40_000, 8), (8, 40_000)])
def test_a_very_long_picture_can_be_cropped(width, height):
    """OpenCV's own warp takes no picture of 32,767 px or more."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    x, y = (width - 20, 4) if width > height else (4, height - 20)
    image[:, :] = 50
    crop = Crop.from_square(x, y, 8, size=16)
    assert crop.sample(image).min() == crop.sample(image).max() == 50


def test_a_square_far_larger_than_its_crop_is_averaged():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    image = coarse.repeat(100, axis=0).repeat(100, axis=1)
    sampled = Crop.from_square(800, 800, 1600, size=16).sample(image)
    np.testing.assert_allclose(sampled.astype(int), coarse, atol=2)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # they touch
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),  # one inside the other
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),  # no area at all
    ],
)
def test_overlap(a, b, expected):
    assert overlap(np.array(a, float), np.array(b, float)) == pytest.approx(expected)
