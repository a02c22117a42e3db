"""Similarity between shapes, and yaw from landmarks, against heads whose turn is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.faces.face_shape import Head
from veilmark.faces.synthetic import Expression, Identity, Pose, draw_expression, draw_identity, render_face
from veilmark.landmarks import align
from veilmark.landmarks.align import similarity, yaw_degrees
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError, DataError

SCHEME = get_scheme("ibug68")
ANGLES = st.floats(-math.pi, math.pi)
SHIFTS = st.floats(-500, 500)
SCALES = st.floats(0.05, 20)


def moved(points: np.ndarray, scale: float, angle: float, shift: tuple[float, float]) -> np.ndarray:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * points @ turn.T + np.asarray(shift)


def rendered(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    pose, rng = Pose(yaw, pitch, roll), np.random.default_rng(1)
    return render_face(rng, 96, identity=Identity(), pose=pose, expression=Expression()).points.astype(np.float64)


FACES = {yaw: rendered(yaw) for yaw in (-35, 0, 20)}


@given(SCALES, ANGLES, SHIFTS, SHIFTS)
def test_similarity_finds_the_move_that_was_made(scale: float, angle: float, dx: float, dy: float) -> None:
    source = FACES[0]
    found, rotation, translation = similarity(source, moved(source, scale, angle, (dx, dy)))
    assert found == pytest.approx(scale)
    np.testing.assert_allclose(rotation, moved(np.eye(2), 1, angle, (0, 0)).T, atol=1e-9)
    np.testing.assert_allclose(translation, [dx, dy], atol=1e-6)


def test_no_other_similarity_comes_closer() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2, 9, 2))
    scale, rotation, translation = similarity(source, target)

    def miss(s: float, r: np.ndarray, t: np.ndarray) -> float:
        return float(((s * source @ r.T + t - target) ** 2).sum())

    best = miss(scale, rotation, translation)
    for turn in (-0.01, 0.01):
        assert miss(scale, moved(rotation.T, 1, turn, (0, 0)).T, translation) > best
        assert miss(scale + turn, rotation, translation) > best
        assert miss(scale, rotation, translation + turn) > best


def test_similarity_never_mirrors() -> None:
    source = FACES[20]
    _, rotation, _ = similarity(source, source * (-1, 1))
    assert np.linalg.det(rotation) == pytest.approx(1)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([[1, 1], [1, 1]], [[3, 0], [5, 0]], (1.0, [3, -1])),  # no extent: no turn to be told
        ([[0, 0], [2, 0]], [[4, 4], [4, 4]], (0.0, [4, 4])),  # everything goes to one place
    ],
)
def test_similarity_of_points_in_one_place(source: list, target: list, expected: tuple) -> None:
    scale, rotation, translation = similarity(source, target)
    assert scale == expected[0]
    np.testing.assert_array_equal(rotation, np.eye(2))
    np.testing.assert_allclose(translation, expected[1])


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2))),  # different counts
        (np.zeros((3, 3)), np.zeros((3, 3))),  # not in the plane
        (np.zeros((0, 2)), np.zeros((0, 2))),  # nothing to align
        (np.full((3, 2), np.nan), np.zeros((3, 2))),  # not a number
    ],
)
def test_similarity_refuses_what_is_no_pair_of_shapes(source: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(ValueError, match="points"):
        similarity(source, target)


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (12, 0), (-12, 10)])
def test_the_yaw_of_the_mean_head_is_recovered(pitch: float, roll: float) -> None:
    true = np.arange(-50, 51, 10)
    found = yaw_degrees(np.stack([rendered(yaw, pitch, roll) for yaw in true]))
    assert (np.diff(found) > 5).all()
    np.testing.assert_allclose(found, true, atol=0.5)


def test_the_yaw_of_anybody_is_recovered_within_some_degrees() -> None:
    rng = np.random.default_rng(3)
    faces = [
        render_face(rng, 48, identity=draw_identity(rng), pose=Pose(yaw, 5, -5), expression=draw_expression(rng))
        for yaw in range(-50, 51, 5)
    ]
    errors = yaw_degrees(np.stack([face.points for face in faces])) - [face.yaw for face in faces]
    assert np.abs(errors).max() < 7
    assert np.sqrt((errors**2).mean()) < 3


@settings(deadline=None)
@given(st.sampled_from(sorted(FACES)), SCALES, ANGLES, SHIFTS, SHIFTS)
def test_scale_turn_and_place_do_not_change_the_yaw(yaw: int, scale: float, angle: float, dx: float, dy: float) -> None:
    changed = moved(FACES[yaw], scale, angle, (dx, dy))
    np.testing.assert_allclose(yaw_degrees(changed[None]), yaw_degrees(FACES[yaw][None]), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_mirrored_face_is_turned_the_other_way(seed: int) -> None:
    # Any points at all, not only a face's.
    points = FACES[20] + np.random.default_rng(seed).normal(0, 3, (68, 2))
    mirrored = SCHEME.mirror_points(points, width=96)
    np.testing.assert_allclose(yaw_degrees(mirrored[None]), -yaw_degrees(points[None]), atol=1e-6)


def test_the_stored_mean_face_is_the_neutral_synthetic_head() -> None:
    np.testing.assert_allclose(align._MEAN_FACE, Head(Identity(), Expression()).features(), atol=6e-4)


def test_no_faces_have_no_yaws() -> None:
    assert yaw_degrees(np.zeros((0, 68, 2))).shape == (0,)


@pytest.mark.parametrize("scheme", ["wflw98", "cofw29", "nonsense"])
def test_other_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(ConfigError, match=scheme):
        yaw_degrees(np.zeros((1, 98, 2)), scheme)


@pytest.mark.parametrize("value", [np.nan, np.inf, 5.0])
def test_a_face_without_a_yaw_is_named(value: float) -> None:
    faces = np.stack([FACES[0], np.full((68, 2), value)])
    with pytest.raises(DataError, match="face row 1"):
        yaw_degrees(faces)


@pytest.mark.parametrize("shape", [(68, 2), (1, 67, 2), (1, 68, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        yaw_degrees(np.ones(shape))
