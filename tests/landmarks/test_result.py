import dataclasses

import numpy as np
import pytest

from veilmark.landmarks.result import Landmarks
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError


def parts(n=3):
    return {
        "points": np.arange(n * 136, dtype=np.float64).reshape(n, 68, 2),
        "expected_error": np.arange(n * 68, dtype=np.float64).reshape(n, 68),
        "trust": np.linspace(0, 1, n),
        "boxes": np.arange(n * 4).reshape(n, 4),
    }


def test_arrays_become_float32_and_keep_their_values():
    given = parts()
    result = Landmarks(**given)
    for name, array in given.items():
        assert getattr(result, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(result, name), array)
    assert len(result) == 3
    assert result.scheme == "ibug68"
    assert result.definition is get_scheme("ibug68")


def test_an_empty_result():
    result = Landmarks.empty()
    assert len(result) == 0
    assert result.points.shape == (0, 68, 2)
    assert result.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("points", np.zeros((3, 67, 2))),  # a point short of the scheme
        ("points", np.zeros((3, 68, 3))),
        ("points", np.zeros((68, 2))),  # one face, not in a batch
        ("points", np.float32(1)),
        ("expected_error", np.zeros((3, 67))),
        ("expected_error", np.zeros((2, 68))),
        ("trust", np.zeros((3, 1))),
        ("trust", np.zeros(4)),
        ("boxes", np.zeros((3, 5))),
        ("boxes", np.zeros((2, 4))),
    ],
)
def test_shapes_must_agree(name, array):
    with pytest.raises(ValueError, match=r"has shape .* expected"):
        Landmarks(**parts() | {name: array})


@pytest.mark.parametrize("name", ["points", "expected_error", "trust", "boxes"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(name, value):
    given = parts()
    array = given[name].astype(np.float64)
    array.flat[-1] = value
    with pytest.raises(ValueError, match=f"{name} holds a value that is not finite"):
        Landmarks(**given | {name: array})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("expected_error", -0.001, "negative distance"),
        ("trust", -0.001, r"in \[0, 1\]"),
        ("trust", 1.001, r"in \[0, 1\]"),
    ],
)
def test_values_must_be_in_range(name, value, message):
    given = parts()
    given[name].flat[0] = value
    with pytest.raises(ValueError, match=message):
        Landmarks(**given)


def test_the_scheme_must_be_known():
    with pytest.raises(ConfigError, match="ibug68"):
        Landmarks(**parts(), scheme="dlib5")


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (np.array([True, False, True]), [0, 2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (np.array([False] * 3), []),
    ],
)
def test_select_keeps_the_parts_together(index, kept):
    given = parts()
    chosen = Landmarks(**given).select(index)
    assert len(chosen) == len(kept)
    for name, array in given.items():
        np.testing.assert_array_equal(getattr(chosen, name), array[kept].astype(np.float32))


def test_a_result_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Landmarks.empty().trust = np.zeros(0)
