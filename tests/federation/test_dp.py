"""Noise on updates: bounds, deviations by formula, whose noise it is."""

import math

import numpy as np
import pytest
import torch

from veilmark.federation.methods.dp import DPOptions, UpdateNoise, downlink_deviation, uplink_deviation
from veilmark.federation.methods.release import bounded


def test_deviations_are_those_of_the_paper():
    options = DPOptions(epsilon=8.0, delta=0.01, clip=3.0, exposures=2)
    c = math.sqrt(2 * math.log(1.25 / 0.01))
    assert uplink_deviation(options, 500, 25) == pytest.approx(c * 2 * (2 * 3.0 / 500) / 8.0)
    assert downlink_deviation(options, 500, 50, 25) == pytest.approx(
        2 * c * 3.0 * math.sqrt(25**2 - 2**2 * 50) / (500 * 50 * 8.0)
    )
    # T = 25 is no more than L sqrt(N): the uplink's noise is enough.
    assert downlink_deviation(options, 500, 400, 25) == 0
    assert uplink_deviation(DPOptions(), 500, 25) == pytest.approx(
        25 * uplink_deviation(DPOptions(exposures=1), 500, 1)
    )


def test_the_bound_is_on_all_tensors_together():
    tensors = {"a": torch.full((3,), 2.0), "b": torch.full((2, 2), -1.0)}
    small = bounded(tensors, 1.0)
    norm = math.sqrt(sum(float(value.square().sum()) for value in small.values()))
    assert norm == pytest.approx(1.0)
    assert torch.allclose(small["a"] / small["b"][0, 0], torch.full((3,), -2.0))
    assert torch.equal(bounded(tensors, 100.0)["a"], tensors["a"])


def flat(tensors):
    return torch.cat([value.flatten() for value in tensors.values()])


def sent(one, options, number=0, round_number=0):
    method = UpdateNoise(options)
    start = one.server(method).broadcast()
    return flat(one.client(method, number).train_round(start, round_number).tensors), flat(start)


def test_noise_has_its_deviation_and_the_update_its_bound(bench):
    one = bench()
    exact, start = sent(one, DPOptions(epsilon=1e12, clip=0.01))
    assert float((exact - start).norm()) == pytest.approx(0.01, rel=1e-3)
    options = DPOptions(epsilon=20.0, clip=0.01)
    noisy, _ = sent(one, options)
    noise = (noisy - exact).numpy()
    expected = uplink_deviation(options, 12, one.rounds)
    assert noise.std() == pytest.approx(expected, rel=0.02)
    assert abs(noise.mean()) < 5 * expected / math.sqrt(len(noise))


def test_weights_can_be_bounded_as_in_the_paper(bench):
    exact, _ = sent(bench(), DPOptions(epsilon=1e12, clip=0.5, clips="weights"))
    assert float(exact.norm()) == pytest.approx(0.5, rel=1e-3)


def test_every_round_has_noise_of_its_own_which_the_client_alone_can_draw_again(bench):
    one, options = bench(), DPOptions(clip=1e-9, epsilon=1e-6)
    first, again, later, other = (
        torch.sub(*sent(one, options, number, r)) for number, r in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    for stranger in (later, other):
        assert abs(float(np.corrcoef(first.numpy(), stranger.numpy())[0, 1])) < 0.05


def test_the_server_adds_noise_where_there_are_many_rounds(bench):
    one = bench(rounds=4)
    quiet, loud = (UpdateNoise(DPOptions(exposures=exposures, epsilon=1e3)) for exposures in (4, 1))
    results = []
    for method in (quiet, loud):
        server = one.server(method)
        clients = {n: one.client(method, n).train_round(server.broadcast(), 0) for n in range(3)}
        server.combine(clients)
        mean = sum(flat(update.tensors).double() for update in clients.values()) / 3
        results.append(float((flat(server.broadcast()).double() - mean).std()))
    expected = downlink_deviation(loud.options, 12, 3, 4)
    assert results[0] < 1e-6
    assert results[1] == pytest.approx(expected, rel=0.03)
