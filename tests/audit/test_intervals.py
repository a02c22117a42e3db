"""Intervals of an audit's figures: exact for hits, wide enough for few figures, and noise that stands for messages."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from tiny_federations import config, play
from veilmark.audit.attack import FEW, by_client, gain_interval, mean_interval
from veilmark.audit.record import in_noise, read_record


@pytest.mark.parametrize(("hits", "count"), [(0, 4), (2, 2), (13, 24), (49, 49)])
def test_hits_have_the_exact_interval(hits, count):
    value, low, high = mean_interval([100.0] * hits + [0.0] * (count - hits), 0)
    assert value == pytest.approx(100 * hits / count)
    # Clopper and Pearson 1934: at its ends as many hits, or more or fewer, have 2.5 %.
    if hits:
        assert binom.sf(hits - 1, count, low / 100) == pytest.approx(0.025)
    if hits < count:
        assert binom.cdf(hits, count, high / 100) == pytest.approx(0.025)
    assert (low == 0) == (hits == 0)
    assert (high == 100) == (hits == count)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_few_figures_have_an_interval_that_holds_the_truth_as_often_as_it_says(count):
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(2000):
        _, low, high = mean_interval(rng.normal(7, 2, count).tolist(), 0)
        held += low <= 7 <= high
    # 95 %, four standard deviations of 2,000 draws either way.
    assert 0.93 < held / 2000 < 0.97


def test_one_figure_has_none_and_many_are_drawn_anew():
    assert mean_interval([3.5], 0) == (3.5, 3.5, 3.5)
    value, low, high = mean_interval(np.linspace(0, 1, FEW).tolist(), 0)
    assert value == pytest.approx(0.5)
    assert low < value < high


@pytest.mark.parametrize(("method", "options"), [("none", {}), ("gc", {"keep": 0.1}), ("ppidsg", {})])
def test_noise_stands_for_every_message(tmp_path, method, options):
    record = read_record(play(tmp_path / "run", config(method=method, options={method: options})).path / "transcript")
    noisy = in_noise(record, 0)
    assert [some.number for some in noisy.rounds] == [some.number for some in record.rounds]
    for one, other in zip(record.rounds, noisy.rounds, strict=True):
        assert one.broadcast is other.broadcast
        assert one.updates.keys() == other.updates.keys()
        for client, update in one.updates.items():
            sent, blind = update.tensors, other.updates[client].tensors
            assert sent.keys() == blind.keys()
            for name, value in sent.items():
                real, noise = (some - one.broadcast[name] for some in (value, blind[name]))
                if value.numel() < 500 or not real.any():
                    continue
                assert not torch.equal(real, noise)
                if method == "gc":
                    assert int((noise != 0).sum()) == int((real != 0).sum())
                else:
                    assert float(noise.square().mean()) == pytest.approx(float(real.square().mean()), rel=0.3)
    assert all(
        torch.equal(value, in_noise(record, 0).rounds[0].updates[0].tensors[name])
        for name, value in noisy.rounds[0].updates[0].tensors.items()
    )
    start = record.rounds[0].broadcast
    assert record.start.keys() == start.keys()
    assert all(torch.equal(record.start[name], value) for name, value in start.items())


def test_messages_of_one_client_are_one_figure():
    """Two rounds of a client say nearly the same: counted twice, they would make an interval too narrow."""
    found = {(1, 0): 90.0, (1, 3): 70.0, (5, 3): 74.0, (5, 0): 92.0}
    assert by_client(found) == [91.0, 72.0]


def test_a_gain_over_its_own_chance_is_surer_than_a_mean():
    """Pictures differ more among each other than an attack does from chance on each of them."""
    chances = [10.0, 20.0, 30.0, 40.0]
    values = [chance + gain for chance, gain in zip(chances, (4.9, 5.0, 5.1, 5.0), strict=True)]
    value, chance, low, high = gain_interval(values, chances, 0)
    assert (value, chance) == (30.0, 25.0)
    assert 29.5 < low < 30 < high < 30.5
    assert mean_interval(values, 0)[1] < 25
    # All right, each beyond a chance of its own, is not ten tosses of a coin.
    _, chance, low, _ = gain_interval([100.0] * 10, np.linspace(70, 88, 10).tolist(), 0)
    assert low > 90 > chance
    with pytest.raises(ValueError, match="argument 2"):
        gain_interval([1.0, 2.0], [1.0], 0)
