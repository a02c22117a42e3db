"""Gradient compression: what travels, what stays, what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from veilmark.federation.messages import Update, UpdateRefused, check_update
from veilmark.federation.methods.gc import GCOptions, GradientCompression, largest
from veilmark.federation.methods.none import NoDefence, NoneOptions


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-9, 9, width=32)), st.floats(0.01, 1))
def test_the_largest_are_kept(values, keep):
    kept, places = largest(torch.from_numpy(values), keep)
    count = max(1, round(keep * len(values)))
    assert len(kept) == len(set(places.tolist())) == count
    assert places.tolist() == sorted(places.tolist())
    assert np.array_equal(kept.numpy(), values[places.numpy()])
    # Equal magnitudes may be told apart either way; the magnitudes themselves may not.
    assert np.array_equal(np.sort(np.abs(kept.numpy())), np.sort(np.abs(values))[len(values) - count :])


def one_round(bench, method, clients=3):
    server = bench.server(method)
    updates = {n: bench.client(method, n).train_round(server.broadcast(), 0) for n in range(clients)}
    for update in updates.values():
        server.check(check_update(update, server.declared(), 1000))
    server.combine(updates)
    return server, updates


def test_all_of_it_is_plain_averaging(bench):
    plain, _ = one_round(bench(), NoDefence(NoneOptions()))
    whole, _ = one_round(bench(), GradientCompression(GCOptions(keep=1.0)))
    for name, value in plain.broadcast().items():
        assert torch.allclose(whole.broadcast()[name], value, atol=1e-6)


def test_a_tenth_travels_at_eight_bytes_a_number(bench):
    server, updates = one_round(bench(), GradientCompression(GCOptions(keep=0.1)))
    numbers = sum(value.numel() for value in server.broadcast().values())
    assert updates[0].size() == pytest.approx(0.8 * numbers, rel=0.01)
    before = bench().server(NoDefence(NoneOptions())).broadcast()
    moved = sum(int((server.broadcast()[name] != value).sum()) for name, value in before.items())
    assert 0.05 < moved / numbers < 0.31


def test_what_is_left_out_comes_later_where_that_is_wanted(bench):
    one, method = bench(), GradientCompression(GCOptions(keep=0.2, feedback=True))
    client = one.client(method)
    start = one.server(method).broadcast()
    sent = client.train_round(start, 0).tensors
    trained = client.learner.model.state_dict()
    for name, value in trained.items():
        rebuilt = torch.zeros(value.numel())
        rebuilt[sent[f"{name}.indices"].long()] = sent[f"{name}.values"]
        assert torch.allclose(rebuilt.view(value.shape) + client.left[name], value - start[name], atol=1e-7)
    again = one.client(method)
    again.load_state(client.state())
    plain = one.client(GradientCompression(GCOptions(keep=1.0)))
    added = again.train_round(start, 1).tensors
    change = plain.train_round(start, 1).tensors
    for name, left in client.left.items():
        full = change[f"{name}.values"] + left.flatten()
        assert torch.allclose(added[f"{name}.values"], full[added[f"{name}.indices"].long()], atol=1e-6)
    assert one.client(GradientCompression(GCOptions())).state() == {}


@pytest.mark.parametrize("places", [[0, 0], [3, 1], [-1, 2], [0, 10_000_000]])
def test_places_that_cannot_be_are_refused(bench, places):
    server, updates = one_round(bench(), GradientCompression(GCOptions(keep=0.1)))
    tensors = dict(updates[0].tensors)
    name = next(n for n, v in tensors.items() if n.endswith(".indices") and len(v) > 2)
    tensors[name] = tensors[name].clone()
    tensors[name][:2] = torch.tensor(places, dtype=torch.int32)
    if places[1] == 10_000_000:
        tensors[name] = tensors[name].sort().values
    with pytest.raises(UpdateRefused, match="must ascend"):
        server.check(Update(tensors, updates[0].metrics, 5))
