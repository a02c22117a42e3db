"""Augmentation: points stay on their pixels, zero strengths change nothing, covers stay small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from veilmark.faces.augment import Augmentation, cover, draw_crop, recolour
from veilmark.faces.crop import Crop
from veilmark.landmarks.schemes import get_scheme

BOX = np.array([100.0, 90.0, 190.0, 200.0], dtype=np.float32)
NONE = Augmentation(rotation=0, zoom=0, shift=0, mirror=False, colour=0, cover=0)
DOTS = np.array([[120.5, 110.5], [170.5, 115.5], [140.5, 150.5], [130.5, 180.5], [165.5, 175.5]])
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]])


def dotted_picture() -> np.ndarray:
    """A dot of its own colour at every point."""
    row, column = np.mgrid[0:300, 0:280] + 0.5
    image = np.zeros((300, 280, 3), dtype=np.uint8)
    for (x, y), colour in zip(DOTS, COLOURS, strict=True):
        image[(column - x) ** 2 + (row - y) ** 2 < 6**2] = colour
    return image


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@given(st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_points_stay_on_their_pixels(seed: int) -> None:
    strong = Augmentation(rotation=30, zoom=0.1, shift=0.05)
    crop, mirror = draw_crop(BOX, 128, strong, np.random.default_rng(seed))
    assert mirror == (np.linalg.det(crop.matrix[:, :2]) < 0)
    places = crop.to_crop(DOTS)
    inside = ((places > 0) & (places < 128)).all(axis=1)
    assert inside.any()
    x, y = np.floor(places[inside]).astype(int).T
    np.testing.assert_allclose(crop.sample(dotted_picture())[y, x], COLOURS[inside], atol=20)


def test_half_of_the_faces_are_mirrored() -> None:
    rng = np.random.default_rng(0)
    mirrored = sum(draw_crop(BOX, 64, Augmentation(), rng)[1] for _ in range(400))
    assert 160 < mirrored < 240


def test_without_strength_it_is_the_crop_of_the_contract() -> None:
    plain = Crop.from_box(BOX, size=64)
    for seed in range(5):
        crop, mirror = draw_crop(BOX, 64, NONE, np.random.default_rng(seed))
        assert not mirror
        assert crop.size == 64
        np.testing.assert_allclose(crop.matrix, plain.matrix, atol=1e-9)


def test_a_mirrored_crop_is_the_flipped_crop_with_the_schemes_mirrored_points() -> None:
    rng = np.random.default_rng(0)
    only_mirror = NONE.model_copy(update={"mirror": True})
    crop = next(c for c, mirror in (draw_crop(BOX, 128, only_mirror, rng) for _ in range(50)) if mirror)
    plain = Crop.from_box(BOX)
    flipped = plain.sample(dotted_picture())[:, ::-1].astype(int)
    # Bicubic weights are rounded to 1/32 px, which shows at the dots' sharp edges.
    assert np.abs(crop.sample(dotted_picture()).astype(int) - flipped).mean() < 0.5
    scheme = get_scheme("ibug68")
    points = rng.uniform(100, 190, (68, 2))
    np.testing.assert_allclose(
        crop.to_crop(points)[scheme.mirror_index], scheme.mirror_points(plain.to_crop(points), 128), atol=1e-9
    )


def test_strengths_are_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    strength = Augmentation(rotation=10, zoom=0.1, shift=0.04, mirror=False)
    matrices = np.array([draw_crop(BOX, 128, strength, rng)[0].matrix for _ in range(1500)])
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    sides = np.log(128 / np.hypot(matrices[:, 1, 0], matrices[:, 0, 0]) / (1.3 * 110))
    centre = np.linalg.solve(matrices[:, :, :2], (64 - matrices[:, :, 2])[..., None])[..., 0]
    shifts = (centre - [145, 145]) / (1.3 * 110)
    for drawn, expected in ((angles, 10), (sides, 0.1), (shifts[:, 0], 0.04), (shifts[:, 1], 0.04)):
        assert drawn.std() == pytest.approx(expected, rel=0.1)
        assert abs(drawn.mean()) < 0.1 * expected


@pytest.mark.parametrize(
    "values",
    [{"rotation": -1}, {"rotation": 91}, {"zoom": 0.6}, {"shift": -0.1}, {"colour": 3}, {"cover": 1.1}, {"blur": 1}],
)
def test_strengths_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        Augmentation.model_validate(values)


def test_no_colour_changes_nothing() -> None:
    np.testing.assert_array_equal(recolour(noise(16), 0, np.random.default_rng(0)), noise(16))


@given(st.integers(0, 10_000), st.floats(0.1, 2))
@settings(max_examples=40, deadline=None)
def test_colour_repeats_and_treats_every_pixel_alike(seed: int, strength: float) -> None:
    face = noise(16)
    changed = recolour(face, strength, np.random.default_rng(seed))
    assert changed.shape == face.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(recolour(face, strength, np.random.default_rng(seed)), changed)
    # A map of colours moves no pixel: flipping before or after is the same.
    flipped = recolour(np.ascontiguousarray(face[:, ::-1]), strength, np.random.default_rng(seed))
    np.testing.assert_array_equal(flipped, changed[:, ::-1])
    np.testing.assert_array_equal(face, noise(16))


def test_colour_varies_and_is_sometimes_grey() -> None:
    rng = np.random.default_rng(0)
    results = [recolour(noise(16), 1, rng).astype(int) for _ in range(200)]
    assert len({result.tobytes() for result in results}) == 200
    grey = sum(bool((np.ptp(result, axis=2) == 0).all()) for result in results)
    assert 4 < grey < 32
    # Still a face: brightness stays within reach.
    assert all(30 < result.mean() < 225 for result in results)


@given(st.integers(0, 100_000), st.sampled_from([64, 96, 128]))
@settings(max_examples=60, deadline=None)
def test_a_cover_is_one_rectangle_of_at_most_a_fifth(seed: int, side: int) -> None:
    face = noise(side, seed)
    before = face.copy()
    covered = cover(face, np.random.default_rng(seed))
    np.testing.assert_array_equal(face, before)
    assert covered.shape == face.shape
    assert covered.dtype == np.uint8
    rows, columns = np.nonzero((covered != face).any(axis=2))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height * width <= 0.2 * side**2
    assert min(height, width) >= int(0.15 * side) - 1
    # Nearly every pixel of the rectangle changed; none outside did.
    assert len(rows) > 0.95 * height * width
