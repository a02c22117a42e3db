"""Randomness that does not depend on order: every draw is named by what it is for."""

from __future__ import annotations

import numpy as np


def rng_for(seed: int, *parts: int) -> np.random.Generator:
    """A generator for one purpose, e.g. ``rng_for(seed, epoch, image)``: the same numbers in any order of work.

    Args:
        seed: The run's seed, 0 or more.
        parts: Whole numbers, 0 or more, that name the purpose. Names that differ only by zeros at their end
            are the same name to numpy's SeedSequence: purposes need parts of one number.
    """
    return np.random.default_rng([seed, *parts])
