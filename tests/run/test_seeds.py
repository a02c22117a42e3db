"""Named randomness: the same name gives the same numbers in any order of work, another name others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.run.seeds import rng_for

names = st.tuples(st.integers(0, 2**31), st.integers(0, 1000), st.integers(0, 10000))


@given(st.lists(names, min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_draws_do_not_depend_on_the_order_of_work(parts: list[tuple[int, int, int]], shuffler: object) -> None:
    in_order = {part: rng_for(*part).random(3).tolist() for part in parts}
    shuffler.shuffle(parts)  # type: ignore[attr-defined]
    assert {part: rng_for(*part).random(3).tolist() for part in parts} == in_order
    assert len({tuple(values) for values in in_order.values()}) == len(parts)


def test_the_global_generator_plays_no_part() -> None:
    np.random.seed(1)  # noqa: NPY002
    first = rng_for(3, 1).random()
    np.random.seed(2)  # noqa: NPY002
    assert rng_for(3, 1).random() == first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 1, 2), (0, 2, 1)),  # epoch and image exchanged
        ((0, 1, 2), (1, 1, 2)),  # another seed
        ((0, 12, 3), (0, 1, 23)),  # the same digits
    ],
)
def test_other_names_give_other_numbers(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert rng_for(*one).random(4).tolist() != rng_for(*other).random(4).tolist()


def test_neighbouring_names_are_uncorrelated() -> None:
    draws = np.array([rng_for(0, 1, image).standard_normal(200) for image in range(20)])
    correlations = np.corrcoef(draws) - np.eye(20)
    assert np.abs(correlations).max() < 0.3


@pytest.mark.parametrize("parts", [(-1,), (0, -1)])
def test_negative_names_are_refused(parts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        rng_for(*parts)
