import math

import numpy as np
import pytest

from veilmark.landmarks.smoothing import OneEuroFilter, jitter


def scalar_one_euro(values, times, min_cutoff, beta, derivative_cutoff):
    """The published algorithm for one number, written with its own alpha = 1 / (1 + tau / Te)."""

    def alpha(cutoff, step):
        return 1 / (1 + (1 / (2 * math.pi * cutoff)) / step)

    smooth, speed, out = values[0], 0.0, [values[0]]
    for before, now, value in zip(times, times[1:], values[1:], strict=False):
        step = now - before
        a = alpha(derivative_cutoff, step)
        speed = a * (value - smooth) / step + (1 - a) * speed
        a = alpha(min_cutoff + beta * abs(speed), step)
        smooth = a * value + (1 - a) * smooth
        out.append(smooth)
    return out


def test_one_moving_coordinate_follows_the_paper():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.02, 0.06, 30))
    values = np.cumsum(rng.normal(0, 4, 30))
    one_euro = OneEuroFilter(1.5, 0.02, 0.8)
    track = [one_euro.update([[value, 7.0], [7.0, value]], time) for value, time in zip(values, times, strict=True)]
    expected = scalar_one_euro(values, times, 1.5, 0.02, 0.8)
    np.testing.assert_allclose(np.array(track)[:, 0, 0], expected)
    np.testing.assert_allclose(np.array(track)[:, 1, 1], expected)
    np.testing.assert_allclose(np.array(track)[:, 0, 1], 7)


def test_turning_the_picture_turns_the_result():
    rng = np.random.default_rng(0)
    track = np.cumsum(rng.normal(0, 3, (10, 5, 2)), axis=0)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    straight, turned = OneEuroFilter(beta=0.1), OneEuroFilter(beta=0.1)
    for i, points in enumerate(track):
        np.testing.assert_allclose(turned.update(points @ turn, i / 30), straight.update(points, i / 30) @ turn)


def test_noise_is_calmed_and_the_input_left_alone():
    noisy = 50 + np.random.default_rng(0).normal(0, 1, (60, 68, 2))
    before = noisy.copy()
    one_euro = OneEuroFilter(1.0, 0.01)
    smooth = np.array([one_euro.update(points, i / 30) for i, points in enumerate(noisy)])
    assert jitter(smooth) < jitter(noisy) / 4
    np.testing.assert_array_equal(noisy, before)


def test_beta_lets_a_fast_point_lag_less():
    def lag(beta):
        one_euro = OneEuroFilter(1.0, beta)
        return [300 * i / 30 - one_euro.update([[300 * i / 30, 0.0]], i / 30)[0, 0] for i in range(60)][-1]

    assert 0 < lag(0.1) < lag(0) / 5


def test_a_result_is_the_callers_own():
    one_euro = OneEuroFilter()
    one_euro.update([[1.0, 2.0]], 0.0)[:] = 99
    np.testing.assert_allclose(one_euro.update([[1.0, 2.0]], 1.0), [[1, 2]])


@pytest.mark.parametrize("seconds", [0.5, 0.4, math.nan])
def test_time_must_advance(seconds):
    one_euro = OneEuroFilter()
    one_euro.update(np.zeros((3, 2)), 0.5)
    with pytest.raises(ValueError, match="times must increase"):
        one_euro.update(np.zeros((3, 2)), seconds)


def test_the_shape_must_stay():
    one_euro = OneEuroFilter()
    one_euro.update(np.zeros((3, 2)), 0)
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        one_euro.update(np.zeros((4, 2)), 1)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, -1, 1), (1, 1, 0), (math.nan, 1, 1)])
def test_settings_out_of_range(arguments):
    with pytest.raises(ValueError, match="cutoffs must be above 0"):
        OneEuroFilter(*arguments)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([0, 0, 0, 0], 0),  # at rest
        ([0, 2, 4, 6], 0),  # steady motion
        ([0, 1, 0, 1], 2),  # to and fro by a pixel
        ([0, 0, 3], 3),
    ],
)
def test_jitter(x, expected):
    track = np.zeros((len(x), 2, 2))
    track[:, :, 0] = np.array(x)[:, None]
    assert jitter(track) == pytest.approx(expected)
    assert jitter(track[..., ::-1]) == pytest.approx(expected)


def test_jitter_is_a_length():
    assert jitter([[[0, 0]], [[0, 0]], [[3, 4]]]) == pytest.approx(5)


def test_jitter_needs_three_frames():
    with pytest.raises(ValueError, match="3 or more"):
        jitter(np.zeros((2, 68, 2)))
