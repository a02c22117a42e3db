"""Warps: pixels and points go to the same place, nothing moves where nothing is asked to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.faces.synthetic import Pose, draw_identity, render_face
from veilmark.faces.warp import Move, piecewise_affine, warp_copy
from veilmark.landmarks.metrics import psnr

SIDE = 96
PICTURE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
CORNERS = np.array([[0, 0], [SIDE, 0], [0, SIDE], [SIDE, SIDE]], dtype=np.float64)


def dots(points: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Smooth bright dots on black, one per point, corner origin."""
    x, y = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
    value = sum(250 * np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / 1.5**2) for px, py in points)
    return np.repeat(np.round(np.clip(value, 0, 255))[..., None], 3, axis=2).astype(np.uint8)


def dot_near(image: np.ndarray, point: np.ndarray, reach: int = 6) -> np.ndarray:
    """The centre of mass of what is bright around a point."""
    left, top = np.floor(point).astype(int) - reach
    part = image[max(top, 0) : top + 2 * reach + 1, max(left, 0) : left + 2 * reach + 1, 0].astype(np.float64)
    y, x = np.mgrid[0 : part.shape[0], 0 : part.shape[1]] + 0.5
    return np.array([(part * x).sum(), (part * y).sum()]) / part.sum() + (max(left, 0), max(top, 0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_points_that_stay_leave_every_bit_as_it_was(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-10, SIDE + 10, (12, 2))
    np.testing.assert_array_equal(piecewise_affine(PICTURE, points, points), PICTURE)


def test_the_picture_lands_where_the_points_say() -> None:
    grid = np.stack(np.meshgrid([24.0, 48, 72], [24.0, 48, 72]), axis=-1).reshape(-1, 2)
    target = grid + np.random.default_rng(1).uniform(-4, 4, grid.shape)
    warped = piecewise_affine(dots(grid), grid, target)
    for point in target:
        np.testing.assert_allclose(dot_near(warped, point), point, atol=0.8)


def test_corners_and_edges_stay() -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    ramp = np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)
    warped = piecewise_affine(ramp, np.array([[48.0, 48]]), np.array([[60.0, 40]])).astype(int)
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1), (0, 48), (48, 0), (-1, 48), (48, -1)):
        np.testing.assert_allclose(warped[row, column], ramp[row, column], atol=1)
    np.testing.assert_allclose(warped[39, 59], ramp[47, 47], atol=2)


@pytest.mark.parametrize(
    "target",
    [
        np.tile([[40.0, 40]], (5, 1)),  # all in one place
        np.stack([np.linspace(10, 80, 5), np.linspace(10, 80, 5)], axis=1),  # on one line
        np.tile(CORNERS[0], (5, 1)),  # on a corner
        np.array([[-40.0, 10], [200, 30], [48, -70], [30, 300], [48, 48]]),  # outside the picture
        np.full((5, 2), 48.0) + 1e-12 * np.arange(10).reshape(5, 2),  # almost in one place
        np.zeros((0, 2)),  # none at all
    ],
)
def test_degenerate_points_do_not_crash(target: np.ndarray) -> None:
    source = np.random.default_rng(2).uniform(20, 70, target.shape)
    for a, b in ((source, target), (target, source)):
        warped = piecewise_affine(PICTURE, a, b)
        assert warped.shape == PICTURE.shape
        assert warped.dtype == np.uint8


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2))),  # different counts
        (np.zeros((3, 3)), np.zeros((3, 3))),  # not in the plane
        (np.zeros((3, 2)), np.full((3, 2), np.nan)),  # not a number
    ],
)
def test_what_is_no_pair_of_shapes_is_refused(source: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(ValueError, match="points"):
        piecewise_affine(PICTURE, source, target)


def test_a_warped_face_is_closer_to_the_turned_one_than_the_face_itself() -> None:
    who = draw_identity(np.random.default_rng(5))
    first, second = (
        render_face(np.random.default_rng(7), 120, identity=who, pose=Pose(yaw), scene=3) for yaw in (-5, 20)
    )
    warped = piecewise_affine(first.image, first.points, second.points)
    x0, y0, x1, y1 = second.box.astype(int)
    copied, moved, true = (image[y0:y1, x0:x1] for image in (first.image, warped, second.image))
    assert psnr(moved, true) > psnr(copied, true) + 1


def test_the_points_of_a_warped_copy_agree_with_its_pixels() -> None:
    grid = np.stack(np.meshgrid([24.0, 48, 72], [24.0, 48, 72]), axis=-1).reshape(-1, 2)
    for seed in range(20):
        copy, points, _ = warp_copy(dots(grid), grid, np.random.default_rng(seed))
        assert points is not None
        assert np.abs(points - grid).mean() > 0.5
        for point in points:
            np.testing.assert_allclose(dot_near(copy, point), point, atol=0.5)


def test_the_same_draw_gives_the_same_copy_and_another_draw_another() -> None:
    first, again, other = (warp_copy(PICTURE, None, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()
    assert first[1] is None


@given(st.integers(0, 10_000), st.integers(16, 300))
def test_to_copy_undoes_to_source(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    move = Move.draw(side, rng)
    points = rng.uniform(-0.2 * side, 1.2 * side, (30, 2))
    np.testing.assert_allclose(move.to_copy(move.to_source(points)), points, atol=1e-6)
    np.testing.assert_allclose(move.to_source(move.to_copy(points)), points, atol=1e-6)


@given(st.integers(0, 10_000))
def test_a_copy_never_folds_and_stays_near(seed: int) -> None:
    move = Move.draw(SIDE, np.random.default_rng(seed))
    grid = np.stack(np.meshgrid(np.linspace(0, SIDE, 25), np.linspace(0, SIDE, 25)), axis=-1)
    source = move.to_source(grid)
    across, down = np.diff(source, axis=1)[:-1], np.diff(source, axis=0)[:, :-1]
    assert (across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0] > 0).all()
    assert np.linalg.norm(source - grid, axis=-1).max() < 0.35 * SIDE
    assert np.linalg.norm(source - grid, axis=-1).mean() < 0.2 * SIDE


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_squeeze_moves_the_middle_and_leaves_the_edges(share: float) -> None:
    none = np.zeros((0, 2))
    move = Move(100, np.eye(2), np.zeros(2), 0.2, none, np.zeros(0), none)
    moved = move.to_source(np.array([[100 * share, 40]]))
    np.testing.assert_allclose(moved, [[100 * share + (10 if share == 0.5 else 0), 40]], atol=1e-9)


def test_only_square_crops_are_copied() -> None:
    with pytest.raises(ValueError, match="64 x 32"):
        warp_copy(np.zeros((32, 64, 3), np.uint8), None, np.random.default_rng(0))
