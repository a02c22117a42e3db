import itertools

import numpy as np
import pytest

from veilmark.landmarks.draw import draw_landmarks, landmark_colours
from veilmark.landmarks.result import Landmarks
from veilmark.landmarks.schemes import get_scheme


def one_face(size=220.0, at=(20.0, 20.0), error=0.0):
    points = np.random.default_rng(0).uniform(0, size, (1, 68, 2))
    points[0, 0], points[0, 1] = (0, 0), (size, size)
    box = [at[0], at[1], at[0] + size, at[1] + size]
    return Landmarks(points + at, np.full((1, 68), error), [0.9], [box])


def all_at(x, y, error=0.0):
    return Landmarks(np.full((1, 68, 2), (x, y)), np.full((1, 68), error), [1], [[x - 5, y - 5, x + 5, y + 5]])


def grey(height=260, width=280):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def changed(image, drawn):
    return (drawn != image).any(axis=2)


def test_draws_on_a_copy():
    image = grey()
    drawn = draw_landmarks(image, one_face(error=3))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert changed(image, drawn).any()
    assert (image == 128).all()


def test_no_face_draws_nothing():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    drawn = draw_landmarks(image, Landmarks.empty())
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize(("x", "y"), [(30.0, 40.0), (30.25, 40.5), (12.5, 60.75)])
def test_a_point_is_drawn_where_it_is(x, y, scale):
    image = np.zeros((80, 70, 3), dtype=np.uint8)
    drawn = draw_landmarks(image, all_at(x, y), scale=scale, boxes=False).astype(float).sum(axis=2)
    rows, columns = np.indices(drawn.shape)
    # The centre of gravity of the ink, in the picture's pixels; a mix-up of corner and centre is 0.5 off.
    assert ((columns + 0.5) * drawn).sum() / drawn.sum() / scale == pytest.approx(x, abs=0.15)
    assert ((rows + 0.5) * drawn).sum() / drawn.sum() / scale == pytest.approx(y, abs=0.15)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("error", [8.0, 15.5])
def test_discs_are_as_wide_as_the_expected_error(error, scale):
    face = all_at(50, 50)
    face.expected_error[0, 60] = error
    drawn = draw_landmarks(grey(100, 100), face, scale=scale, boxes=False).astype(int)
    ink = np.abs(drawn - 128).max(axis=2)
    half = ink[50 * scale, round((50 + error / 2) * scale)] / 2
    assert np.sqrt((ink > half).sum() / np.pi) / scale == pytest.approx(error, abs=0.5)
    # Translucent: halfway out the picture still dominates.
    assert 0 < half < 32


def test_overlapping_discs_let_the_picture_through():
    # All 68 discs lie on one another; blending them one by one would hide the picture.
    image = grey(100, 100)
    image[:, 65:] = 255
    drawn = draw_landmarks(image, all_at(50, 50, 30), scale=1, boxes=False).astype(int)
    assert (drawn[30, 68] - drawn[30, 60]).min() > 50


@pytest.mark.parametrize(("errors", "boxes"), [(False, True), (True, False)])
def test_parts_can_be_left_out(errors, boxes):
    image = grey()
    face = one_face(error=4)
    full = draw_landmarks(image, face)
    part = draw_landmarks(image, face, errors=errors, boxes=boxes)
    assert changed(image, part).sum() < changed(image, full).sum()


def test_the_box_is_drawn_at_its_corners():
    face = Landmarks(np.full((1, 68, 2), 50.0), np.zeros((1, 68)), [1], [[10, 20, 90, 80]])
    ink = changed(grey(100, 100), draw_landmarks(grey(100, 100), face, scale=1))
    rows, columns = np.nonzero(ink)
    assert (columns.min(), columns.max()) == pytest.approx((10, 90), abs=2)
    assert (rows.min(), rows.max()) == pytest.approx((20, 80), abs=2)


@pytest.mark.parametrize(
    ("face", "side", "expected"),
    [
        (220, 260, 1),  # large enough
        (150, 200, 2),
        (40, 60, 5),
        (16, 40, 13),
        (16, 1000, 4),  # the picture's side stops it at 4096
    ],
)
def test_small_faces_are_enlarged_by_a_whole_factor(face, side, expected):
    drawn = draw_landmarks(np.zeros((side, side // 2, 3), dtype=np.uint8), one_face(face, (2, 2)))
    assert drawn.shape == (side * expected, side // 2 * expected, 3)


def test_a_given_scale_counts():
    assert draw_landmarks(grey(30, 20), one_face(16, (2, 2)), scale=2).shape == (60, 40, 3)


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (np.zeros((9, 9), dtype=np.uint8), 1, "expected uint8"),
        (np.zeros((9, 9, 3)), 1, "expected uint8"),
        (np.zeros((9, 9, 4), dtype=np.uint8), 1, "expected uint8"),
        (grey(), 0, "scale 0"),
    ],
)
def test_unusable_input(image, scale, message):
    with pytest.raises(ValueError, match=message):
        draw_landmarks(image, one_face(), scale=scale)


def test_faces_far_outside_do_no_harm():
    absurd = Landmarks(
        np.random.default_rng(0).normal(0, 1e30, (1, 68, 2)),
        np.full((1, 68), 1e30),
        [0],
        [[-1e30, 0, 1e30, 1e30]],
    )
    assert draw_landmarks(grey(), absurd).shape == grey().shape


def test_views_can_be_drawn_on():
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 3)).astype(np.uint8)
    view = image[::-1, ::-1]
    np.testing.assert_array_equal(
        draw_landmarks(view, one_face(30, (5, 5))), draw_landmarks(view.copy(), one_face(30, (5, 5)))
    )


def test_colours_cover_the_components_and_pair_left_with_right():
    colours = landmark_colours()
    assert list(colours) == list(get_scheme("ibug68").components)
    assert colours["left_eye"] == colours["right_eye"]
    assert colours["left_brow"] == colours["right_brow"]
    families = {name.removeprefix("left_").removeprefix("right_"): colour for name, colour in colours.items()}
    for a, b in itertools.combinations(families.values(), 2):
        assert a != b
