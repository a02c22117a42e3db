import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from veilmark.landmarks.schemes import SCHEMES, get_scheme
from veilmark.run.errors import ConfigError

EVERY = pytest.mark.parametrize("scheme", list(SCHEMES.values()), ids=list(SCHEMES))


@EVERY
def test_components_partition_the_points(scheme):
    members = [i for component in scheme.components.values() for i in component]
    assert sorted(members) == list(range(len(scheme)))
    assert scheme.closed <= set(scheme.components)


@EVERY
def test_component_of_finds_the_component(scheme):
    names = list(scheme.components)
    for i, position in enumerate(scheme.component_of):
        assert i in scheme.components[names[position]]


@EVERY
def test_the_mirror_is_an_involution(scheme):
    np.testing.assert_array_equal(scheme.mirror_index[scheme.mirror_index], np.arange(len(scheme)))


@EVERY
def test_the_mirror_swaps_left_and_right_components(scheme):
    swapped = {"left": "right", "right": "left"}
    for name, members in scheme.components.items():
        side, _, rest = name.partition("_")
        partner = f"{swapped[side]}_{rest}" if side in swapped else name
        assert {scheme.mirror[i] for i in members} == set(scheme.components[partner])


@EVERY
def test_the_mirror_keeps_neighbours_along_a_contour(scheme):
    def edges(component):
        members = scheme.components[component]
        ends = members[1:] + members[:1] if component in scheme.closed else members[1:]
        return {frozenset(pair) for pair in zip(members, ends, strict=False)}

    every = set().union(*map(edges, scheme.components))
    assert {frozenset(scheme.mirror[i] for i in edge) for edge in every} == every


@EVERY
def test_the_normalising_points_mirror_into_each_other(scheme):
    first, second = scheme.inter_ocular
    assert scheme.mirror[first] == second
    assert first in scheme.left_eye
    assert second in scheme.right_eye
    assert {scheme.mirror[i] for i in scheme.left_eye} == set(scheme.right_eye)


@pytest.mark.parametrize(
    ("point", "mirrored"),
    [
        (0, 16),  # jaw, ear to ear
        (8, 8),  # chin
        (17, 26),  # outer ends of the brows
        (27, 27),  # bridge of the nose
        (31, 35),  # nostrils
        (33, 33),
        (36, 45),  # outer eye corners
        (39, 42),  # inner eye corners
        (37, 44),  # upper lids
        (41, 46),  # lower lids
        (48, 54),  # corners of the mouth
        (51, 51),
        (57, 57),
        (59, 55),  # lower edge of the outer lip
        (60, 64),
        (67, 65),
    ],
)
def test_ibug68_mirror_pairs(point, mirrored):
    assert get_scheme("ibug68").mirror[point] == mirrored


@given(points=arrays(np.float64, (2, 68, 2), elements=st.floats(-1000, 1000)), width=st.integers(1, 2000))
def test_mirroring_points_twice_gives_them_back(points, width):
    scheme = get_scheme("ibug68")
    before = points.copy()
    once = scheme.mirror_points(points, width)
    np.testing.assert_allclose(scheme.mirror_points(once, width), points, atol=1e-9)
    np.testing.assert_array_equal(points, before)
    np.testing.assert_array_equal(once[0], scheme.mirror_points(points[0], width))


def test_mirrored_points_land_in_the_mirrored_pixels():
    scheme = get_scheme("ibug68")
    # The centre of the first pixel of a 10 px row is, mirrored, that of the last.
    points = np.full((68, 2), (0.5, 3.5))
    points[36] = (2.5, 7.5)
    mirrored = scheme.mirror_points(points, 10)
    np.testing.assert_array_equal(mirrored[45], [7.5, 7.5])
    np.testing.assert_array_equal(mirrored[36], [9.5, 3.5])


def test_mirroring_keeps_the_dtype():
    assert get_scheme("ibug68").mirror_points(np.zeros((1, 68, 2), np.float32), 64).dtype == np.float32


def test_names_are_the_keys():
    assert all(name == scheme.name for name, scheme in SCHEMES.items())


def test_an_unknown_scheme_lists_the_known():
    with pytest.raises(ConfigError, match=r"unknown landmark scheme 'ibug86'; known: .*ibug68"):
        get_scheme("ibug86")
