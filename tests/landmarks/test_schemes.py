import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from veilmark.landmarks.conversion import CONVERSIONS, conversion, convert_points
from veilmark.landmarks.draw import draw_landmarks
from veilmark.landmarks.result import Landmarks
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
    assert first in scheme.components["left_eye"]
    assert second in scheme.components["right_eye"]
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


@EVERY
def test_every_scheme_can_be_drawn(scheme):
    k = len(scheme)
    points = np.array([[(4 + 6 * (i % 10), 4 + 6 * (i // 10)) for i in range(k)]], dtype=np.float64)
    result = Landmarks(points, np.ones((1, k)), np.ones(1), np.array([[4, 4, 60, 60]]), scheme.name)
    drawn = draw_landmarks(np.zeros((64, 64, 3), np.uint8), result, scale=4, boxes=False, errors=False)
    # Every point has its spot, those of components of one point, too.
    for x, y in (points[0] * 4).astype(int):
        assert drawn[y, x].max() > 60


def across(points):
    """The same points on the other side of a picture 100 px wide."""
    return [(100 - x, y) for x, y in points]


def symmetric_98():
    """A face that is its own mirror image, in the order that WFLW's own picture of its 98 points shows."""
    angle = np.linspace(np.pi, 0, 33)
    jaw = [*zip(50 + 45 * np.cos(angle), 40 + 55 * np.sin(angle), strict=True)]
    brow_above, brow_below = [(10 + 7 * i, 25 - i) for i in range(5)], [(37 - 8 * i, 30) for i in range(4)]
    bridge, base = [(50, 30 + 6 * i) for i in range(4)], [(42, 55), (46, 56)]
    eye_above, eye_below = [(20, 40), (24, 37), (28, 36), (32, 37), (36, 40)], [(32, 43), (28, 44), (24, 43)]
    lip_above, lip_below = [(35, 75), (40, 72), (45, 70)], [(45, 82), (40, 80)]
    inner_above, inner_below = [(38, 75), (44, 74)], [(44, 78)]
    return np.array(
        [
            *jaw,
            *[*brow_above, *brow_below],  # outer to inner end, and back below
            *[*across(brow_above)[::-1], *across(brow_below)[::-1]],  # inner to outer end, and back below
            *[*bridge, *base, (50, 57), *across(base)[::-1]],
            *[*eye_above, *eye_below],  # outer to inner corner, and back below
            *[*across(eye_above)[::-1], *across(eye_below)[::-1]],  # inner to outer corner, and back below
            *[*lip_above, (50, 71), *across(lip_above)[::-1], *across(lip_below)[::-1], (50, 83), *lip_below],
            *[*inner_above, (50, 73), *across(inner_above)[::-1], *across(inner_below)[::-1], (50, 79), *inner_below],
            *[(28, 40), (72, 40)],
        ],
        dtype=np.float64,
    )


def symmetric_29():
    """The same for COFW: brows, eyes (each left, right), nose, mouth, chin."""
    return np.array(
        [
            *[(10, 25), (90, 25), (38, 26), (62, 26)],  # outer ends of the brows, inner ends
            *[(24, 21), (24, 28), (76, 21), (76, 28)],  # above and below the left brow, then the right
            *[(20, 40), (80, 40), (36, 40), (64, 40)],  # outer corners of the eyes, inner corners
            *[(28, 36), (28, 44), (72, 36), (72, 44)],  # above and below the left eye, then the right
            *[(28, 40), (72, 40)],  # pupils
            *[(42, 55), (58, 55), (50, 50), (50, 58)],  # nostrils, above and below them
            *[(35, 75), (65, 75)],  # corners of the mouth
            *[(50, 70), (50, 73), (50, 79), (50, 83)],  # lips from top to bottom
            (50, 95),
        ],
        dtype=np.float64,
    )


def symmetric_19():
    """The same for AFLW: from the picture's left to its right, brows, eyes, nose, mouth, chin."""
    return np.array(
        [
            *[(10, 25), (24, 21), (38, 26), (62, 26), (76, 21), (90, 25)],
            *[(20, 40), (28, 40), (36, 40), (64, 40), (72, 40), (80, 40)],
            *[(42, 55), (50, 50), (58, 55)],
            *[(35, 75), (50, 76), (65, 75), (50, 95)],
        ],
        dtype=np.float64,
    )


SYMMETRIC = [
    ("wflw98", symmetric_98()),
    ("ibug68", convert_points(symmetric_98(), "wflw98", "ibug68")),
    ("cofw29", symmetric_29()),
    ("aflw19", symmetric_19()),
]


@pytest.mark.parametrize(("name", "face"), SYMMETRIC, ids=[name for name, _ in SYMMETRIC])
def test_a_symmetric_face_is_its_own_mirror_image(name, face):
    scheme = get_scheme(name)
    assert len(np.unique(face, axis=0)) == len(scheme)
    np.testing.assert_allclose(scheme.mirror_points(face, 100), face, atol=1e-9)


@pytest.mark.parametrize(("name", "face"), SYMMETRIC, ids=[name for name, _ in SYMMETRIC])
def test_the_eyes_are_where_the_face_has_them(name, face):
    scheme = get_scheme(name)
    np.testing.assert_allclose(face[list(scheme.inter_ocular)], [(20, 40), (80, 40)])
    pupils = [face[list(points)].mean(axis=0) for points in (scheme.left_eye, scheme.right_eye)]
    np.testing.assert_allclose(pupils, [(28, 40), (72, 40)], atol=0.01)


@pytest.mark.parametrize(("source", "target"), list(CONVERSIONS))
@given(data=st.data())
def test_conversion_commutes_with_mirroring(source, target, data):
    points = data.draw(arrays(np.float64, (3, len(get_scheme(source)), 2), elements=st.floats(-500, 500)))
    first = convert_points(get_scheme(source).mirror_points(points, 100), source, target)
    second = get_scheme(target).mirror_points(convert_points(points, source, target), 100)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("source", "target"), list(CONVERSIONS))
def test_conversion_keeps_the_normalising_points_and_takes_each_point_once(source, target):
    chosen = conversion(source, target)
    assert len(set(chosen)) == len(chosen) == len(get_scheme(target))
    assert tuple(chosen[i] for i in get_scheme(target).inter_ocular) == get_scheme(source).inter_ocular


@pytest.mark.parametrize(
    ("point", "of_98"),
    [
        (0, 0),  # jaw, ear to ear
        (8, 16),  # chin
        (16, 32),
        (17, 33),  # brows
        (26, 46),
        (30, 54),  # tip of the nose
        (33, 57),
        (36, 60),  # outer eye corners
        (45, 72),
        (37, 61),  # lids: WFLW's middle one is left out
        (38, 63),
        (41, 67),
        (48, 76),  # corners of the mouth
        (54, 82),
        (60, 88),
        (67, 95),
    ],
)
def test_wflw98_to_ibug68(point, of_98):
    assert conversion("wflw98", "ibug68")[point] == of_98


def test_points_of_a_scheme_need_no_conversion_to_it():
    points = np.zeros((2, 98, 2))
    assert convert_points(points, "wflw98", "wflw98") is points


def test_a_conversion_that_cannot_be_had_names_both_schemes():
    with pytest.raises(
        ConfigError, match=r"points of aflw19 cannot be turned into points of ibug68 .*wflw98 to ibug68"
    ):
        convert_points(np.zeros((19, 2)), "aflw19", "ibug68")
