"""Degradation: the plain area downsample is exact, the random one is repeatable."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.faces.degrade import SIZES, degrade, draw_size, shrink


def picture(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def area_mean(face: np.ndarray, size: int) -> np.ndarray:
    """The definition: every pixel is the mean of what it covers, parts of pixels by their share."""
    side = face.shape[0]
    edges = np.arange(size + 1) * side / size
    starts = np.arange(side)
    share = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    weights = np.clip(share, 0, None) * size / side
    rows_then_columns = weights @ face.astype(np.float64).transpose(2, 0, 1) @ weights.T
    return rows_then_columns.transpose(1, 2, 0)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_whole_factors_are_block_means(size: int) -> None:
    face, factor = picture(128), 128 // size
    means = face.reshape(size, factor, size, factor, 3).astype(np.float64).mean(axis=(1, 3))
    small = shrink(face, size)
    assert small.shape == (size, size, 3)
    assert small.dtype == np.uint8
    assert np.abs(small - means).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("side", "size"), [(128, 24), (128, 48), (128, 127), (100, 33), (7, 3), (128, 16), (9, 1)])
def test_any_factor_is_the_area_mean(side: int, size: int) -> None:
    small = shrink(picture(side), size)
    assert np.abs(small - area_mean(picture(side), size)).max() <= 0.5 + 1e-2


def test_the_mean_of_the_face_stays() -> None:
    face = picture(128)
    np.testing.assert_allclose(shrink(face, 24).mean(axis=(0, 1)), face.mean(axis=(0, 1)), atol=0.06)


def test_the_same_size_changes_nothing() -> None:
    np.testing.assert_array_equal(shrink(picture(24), 24), picture(24))


@pytest.mark.parametrize(("side", "size"), [(16, 17), (64, 128)])
def test_enlarging_is_refused(side: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"{side} px face cannot be shrunk to {size} px"):
        shrink(picture(side), size)


@given(st.integers(0, 10_000), st.sampled_from(SIZES), st.sampled_from([128, 150]))
@settings(max_examples=60, deadline=None)
def test_degrade_repeats_and_leaves_the_face_alone(seed: int, size: int, side: int) -> None:
    face = picture(side)
    small = degrade(face, size, np.random.default_rng(seed))
    assert small.shape == (size, size, 3)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(degrade(face, size, np.random.default_rng(seed)), small)
    np.testing.assert_array_equal(face, picture(side))


def test_half_of_the_faces_are_the_plain_downsample_and_the_rest_vary() -> None:
    face = picture(64)
    rng = np.random.default_rng(0)
    results = [degrade(face, 16, rng) for _ in range(300)]
    plain = sum(np.array_equal(result, shrink(face, 16)) for result in results)
    # Half, and those of the others that drew no change at all (0.5 x 0.5 x (0.5 + 0.5 / 3) x 0.36 = 6 %).
    assert 140 < plain < 200
    assert len({result.tobytes() for result in results}) > 80


def test_degradation_neither_moves_nor_relights_the_face() -> None:
    row, column = np.mgrid[0:128, 0:128] + 0.5
    light = 40 + 180 * np.exp(-0.5 * ((column - 50) ** 2 + (row - 70) ** 2) / 20**2)
    face = np.repeat(light[..., None], 3, axis=2).astype(np.uint8)
    expected = shrink(face, 32).astype(np.float64)
    rng = np.random.default_rng(0)
    for _ in range(40):
        small = degrade(face, 32, rng).astype(np.float64)
        assert abs(small.mean() - expected.mean()) < 2
        above = np.clip(small[..., 0] - 100, 0, None)
        y, x = np.mgrid[0:32, 0:32] + 0.5
        centre = np.array([(above * x).sum(), (above * y).sum()]) / above.sum() * 4
        np.testing.assert_allclose(centre, [50, 70], atol=0.6)


@pytest.mark.parametrize("sizes", [(16, 128), (24, 24), (8, 64)])
def test_drawn_sizes_stay_in_range_and_reach_its_ends(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    drawn = {draw_size(rng, sizes) for _ in range(2000)}
    assert min(drawn) == sizes[0]
    assert max(drawn) == sizes[1]
    assert all(type(size) is int for size in drawn)


def test_drawn_sizes_are_log_uniform() -> None:
    rng = np.random.default_rng(0)
    octaves = [min(int(math.log2(draw_size(rng, (16, 128)) / 16)), 2) for _ in range(3000)]
    shares = np.bincount(octaves, minlength=3) / 3000
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3], atol=0.05)
