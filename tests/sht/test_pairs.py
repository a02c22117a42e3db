"""Which faces make a pair: only those of one person, every one that has a partner, the same for the same draw."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmark.faces.datasets import Face
from veilmark.run.errors import ConfigError
from veilmark.sht.pairs import choose_pairs


def faces(*who: tuple[str | None, str | None]) -> list[Face]:
    return [Face(Path(f"{i}.jpg"), f"{i}.jpg", None, person, video) for i, (person, video) in enumerate(who)]


# Two frames of one video, one more video of the same person, another person's only frame, and nobody's frame.
MIXED = faces(("a", "v0"), ("b", "v0"), ("a", "v0"), ("a", "v1"), (None, None))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("kind", "partners"),
    [
        ("video", {0: {2}, 2: {0}}),  # v0 of b is another video: the person counts, too
        ("person", {0: {2, 3}, 2: {0, 3}, 3: {0, 2}}),
        ("warp", {i: {i} for i in range(5)}),  # everybody, with or without a name
    ],
)
def test_every_face_with_a_partner_gets_each_of_them(kind: str, partners: dict[int, set[int]]) -> None:
    seen: dict[int, set[int]] = {}
    for seed in range(30):
        pairs = choose_pairs(MIXED, kind, rng(seed))
        assert [a for a, _ in pairs] == sorted(partners)
        for a, b in pairs:
            seen.setdefault(a, set()).add(b)
    assert seen == partners


def test_partners_are_drawn_evenly() -> None:
    crowd = faces(*[("a", "v0")] * 5)
    drawn = Counter(dict(choose_pairs(crowd, "video", rng(seed)))[2] for seed in range(800))
    assert set(drawn) == {0, 1, 3, 4}
    assert all(150 < count < 250 for count in drawn.values())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("vw")), min_size=7, max_size=30), st.integers(0, 2**31)
)
def test_pairs_are_two_faces_of_one_video_and_follow_the_draw(who: list[tuple[str, str]], seed: int) -> None:
    # Seven faces of six videos: two are always of one.
    set_of_faces = faces(*who)
    pairs = choose_pairs(set_of_faces, "video", rng(seed))
    assert pairs == choose_pairs(set_of_faces, "video", rng(seed))
    for a, b in pairs:
        assert a != b
        assert who[a] == who[b]
    shared = Counter(who)
    assert [a for a, _ in pairs] == [i for i, video in enumerate(who) if shared[video] > 1]


@pytest.mark.parametrize(
    ("set_of_faces", "kind", "words"),
    [
        (faces((None, None), (None, None)), "person", "none of the 2 faces says whose"),  # celebrity crops, no names
        (faces(("a", None), ("a", None)), "video", "from which video"),  # a folder per person
        (faces(("a", "v0"), ("b", "v0")), "video", "no two of the 2 faces are of one person and video"),
        (faces(("a", None), ("b", None)), "person", "no two of the 2 faces are of one person;"),  # as 300W is read
        ([], "person", "no face"),
    ],
)
def test_a_set_without_partners_is_told_of_warped_copies(set_of_faces: list[Face], kind: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        choose_pairs(set_of_faces, kind, rng())
    assert "pairs.kind=warp" in str(error.value)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'friend'.*video, person, warp"):
        choose_pairs(MIXED, "friend", rng())
