"""The landmark schemes of the published sets, as data. Indices count from 0; left is the picture's left."""

from __future__ import annotations

from collections.abc import Iterable

from veilmark.landmarks.scheme import Scheme


def _mirror(k: int, pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """The mirror order in which these pairs swap and every other point stays."""
    order = list(range(k))
    for a, b in pairs:
        order[a], order[b] = b, a
    return tuple(order)


def _span(first: int, last: int) -> tuple[int, ...]:
    """The indices from ``first`` to ``last``, both included."""
    return tuple(range(first, last + 1))


IBUG68 = Scheme(
    name="ibug68",
    components={
        "jaw": _span(0, 16),
        "left_brow": _span(17, 21),
        "right_brow": _span(22, 26),
        "nose_bridge": _span(27, 30),
        "nose_base": _span(31, 35),
        "left_eye": _span(36, 41),
        "right_eye": _span(42, 47),
        "outer_lip": _span(48, 59),
        "inner_lip": _span(60, 67),
    },
    closed=frozenset({"left_eye", "right_eye", "outer_lip", "inner_lip"}),
    mirror=_mirror(
        68,
        [
            *((i, 16 - i) for i in range(8)),
            *((17 + i, 26 - i) for i in range(5)),
            *((31, 35), (32, 34)),
            *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),
            *((48, 54), (49, 53), (50, 52), (58, 56), (59, 55)),
            *((60, 64), (61, 63), (67, 65)),
        ],
    ),
    inter_ocular=(36, 45),
    left_eye=_span(36, 41),
    right_eye=_span(42, 47),
)
"""The 68 points of Multi-PIE as iBUG annotates them (Sagonas et al. 2013)."""

WFLW98 = Scheme(
    name="wflw98",
    components={
        "jaw": _span(0, 32),
        "left_brow": _span(33, 41),
        "right_brow": _span(42, 50),
        "nose_bridge": _span(51, 54),
        "nose_base": _span(55, 59),
        "left_eye": _span(60, 67),
        "right_eye": _span(68, 75),
        "outer_lip": _span(76, 87),
        "inner_lip": _span(88, 95),
        "left_pupil": (96,),
        "right_pupil": (97,),
    },
    closed=frozenset({"left_brow", "right_brow", "left_eye", "right_eye", "outer_lip", "inner_lip"}),
    mirror=_mirror(
        98,
        [
            *((i, 32 - i) for i in range(16)),
            # The upper edge of a brow, then its lower edge; the right brow starts at the nose.
            *((33 + i, 46 - i) for i in range(5)),
            *((38 + i, 50 - i) for i in range(4)),
            *((55, 59), (56, 58)),
            *((60 + i, 72 - i) for i in range(5)),
            *((65, 75), (66, 74), (67, 73)),
            *((76, 82), (77, 81), (78, 80), (87, 83), (86, 84)),
            *((88, 92), (89, 91), (95, 93)),
            (96, 97),
        ],
    ),
    inter_ocular=(60, 72),
    left_eye=(96,),
    right_eye=(97,),
)
"""The 98 points of WFLW (Wu et al. 2018)."""

COFW29 = Scheme(
    name="cofw29",
    components={
        "left_brow": (0, 4, 2, 5),
        "right_brow": (1, 6, 3, 7),
        "left_eye": (8, 12, 10, 13),
        "right_eye": (9, 14, 11, 15),
        "left_pupil": (16,),
        "right_pupil": (17,),
        "nose": (18, 20, 19, 21),
        "outer_lip": (22, 24, 23, 27),
        "inner_lip": (25, 26),
        "chin": (28,),
    },
    closed=frozenset({"left_brow", "right_brow", "left_eye", "right_eye", "nose", "outer_lip"}),
    mirror=_mirror(
        29,
        [
            *((0, 1), (2, 3), (4, 6), (5, 7)),
            *((8, 9), (10, 11), (12, 14), (13, 15), (16, 17)),
            *((18, 19), (22, 23)),
        ],
    ),
    inter_ocular=(8, 9),
    left_eye=(16,),
    right_eye=(17,),
)
"""The 29 points of LFPW as COFW has them (Burgos-Artizzu, Perona and Dollar 2013)."""

AFLW19 = Scheme(
    name="aflw19",
    components={
        "left_brow": (0, 1, 2),
        "right_brow": (3, 4, 5),
        "left_eye": (6, 7, 8),
        "right_eye": (9, 10, 11),
        "nose": (12, 13, 14),
        "mouth": (15, 16, 17),
        "chin": (18,),
    },
    closed=frozenset(),
    mirror=_mirror(19, [*((i, 5 - i) for i in range(3)), *((6 + i, 11 - i) for i in range(3)), (12, 14), (15, 17)]),
    inter_ocular=(6, 11),
    left_eye=(7,),
    right_eye=(10,),
)
"""AFLW's 21 points (Koestinger et al. 2011) without the ears (Zhu et al. 2016)."""
