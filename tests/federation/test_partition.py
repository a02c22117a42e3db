"""Partitions: exact, reproducible, and refused where they cannot be."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilmark.federation.partition import Partition, by_group, dirichlet, iid
from veilmark.run.errors import ConfigError
from veilmark.run.seeds import rng_for

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
SEEDS = st.integers(0, 2**32)
ALPHAS = st.floats(1e-300, 1e6)
NAMES = ("a", "b", "c", "d", "e")


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.clients, other.clients, strict=True))


def check(partition, images, clients):
    """No image twice, indices sorted and of the set; gives back how many were dealt."""
    assert len(partition.clients) == clients
    for own in partition.clients:
        assert own.dtype == np.int64
        assert (np.diff(own) > 0).all()
    dealt = np.concatenate(partition.clients)
    assert len(np.unique(dealt)) == len(dealt)
    assert ((dealt >= 0) & (dealt < images)).all()
    return len(dealt)


@given(labels=LABELS, seed=SEEDS, data=st.data())
def test_iid_deals_all_images_evenly(labels, seed, data):
    clients = data.draw(st.integers(1, len(labels)))
    found = iid(labels, clients, None, rng_for(seed))
    assert check(found, len(labels), clients) == len(labels)
    sizes = [len(own) for own in found.clients]
    assert max(sizes) - min(sizes) <= 1
    assert same(found, iid(labels, clients, None, rng_for(seed)))


@given(labels=LABELS, seed=SEEDS, alpha=ALPHAS, data=st.data())
def test_per_client_is_exact(labels, seed, alpha, data):
    clients = data.draw(st.integers(1, len(labels)))
    each = data.draw(st.integers(1, len(labels) // clients))
    for deal in (
        lambda: iid(labels, clients, each, rng_for(seed)),
        lambda: dirichlet(labels, clients, each, alpha, rng_for(seed)),
    ):
        found = deal()
        assert check(found, len(labels), clients) == clients * each
        assert {len(own) for own in found.clients} == {each}
        assert same(found, deal())


@given(labels=LABELS, seed=SEEDS, alpha=ALPHAS, data=st.data())
def test_dirichlet_loses_no_image(labels, seed, alpha, data):
    clients = data.draw(st.integers(1, len(labels)))
    found = dirichlet(labels, clients, None, alpha, rng_for(seed), least=0)
    assert check(found, len(labels), clients) == len(labels)
    assert same(found, dirichlet(labels, clients, None, alpha, rng_for(seed), least=0))


@given(groups=st.lists(st.sampled_from("pqrstuvw"), min_size=1, max_size=60), seed=SEEDS, data=st.data())
def test_groups_stay_whole(groups, seed, data):
    people = len(set(groups))
    clients = data.draw(st.integers(1, people))
    found = by_group(groups, clients, rng_for(seed))
    assert check(found, len(groups), clients) == len(groups)
    owners = [{groups[i] for i in own} for own in found.clients]
    assert sum(map(len, owners)) == people
    assert max(map(len, owners)) - min(map(len, owners)) <= 1
    assert same(found, by_group(np.array(groups), clients, rng_for(seed)))


BALANCED = np.repeat(np.arange(5), 400)


def spread(alpha, per_client):
    """Mean standard deviation of the clients' shares of a class; a symmetric Dirichlet draw has a known one."""
    found = [dirichlet(BALANCED, 10, per_client, alpha, rng_for(seed), least=0) for seed in range(60)]
    counts = np.stack([partition.counts(BALANCED, NAMES) for partition in found]).astype(float)
    # With per_client a client's shares sum to 1 over classes, else a class's over clients.
    shares = counts / counts.sum(axis=2 if per_client else 1, keepdims=True)
    return float(np.sqrt(shares.var()))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("per_client", "parts"), [(40, 5), (None, 10)])
def test_shares_vary_as_a_dirichlet_draw_does(alpha, per_client, parts):
    mean = 1 / parts
    variance = mean * (1 - mean) / (parts * alpha + 1)
    if per_client:
        # Images are drawn by the mix, which adds the multinomial's own variance.
        variance += (mean * (1 - mean) - variance) / per_client
    assert spread(alpha, per_client) == pytest.approx(np.sqrt(variance), rel=0.15)


def test_seeds_differ():
    assert not same(iid(BALANCED, 4, 10, rng_for(0)), iid(BALANCED, 4, 10, rng_for(1)))
    assert not same(dirichlet(BALANCED, 4, 10, 1.0, rng_for(0)), dirichlet(BALANCED, 4, 10, 1.0, rng_for(1)))
    assert not same(by_group(np.arange(99), 2, rng_for(0)), by_group(np.arange(99), 2, rng_for(1)))


def test_images_are_not_dealt_in_the_order_of_the_set():
    labels = np.zeros(1000, dtype=np.int64)
    for found in (iid(labels, 2, 100, rng_for(0)), dirichlet(labels, 2, 100, 1.0, rng_for(0))):
        assert found.clients[0].max() > 500


def test_a_class_that_has_run_out_leaves_its_place_to_the_others():
    # Class 0 has one image: the two clients together need all nine.
    labels = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2, 2])
    for seed in range(20):
        found = dirichlet(labels, 2, 5, 0.01, rng_for(seed))
        assert check(found, 10, 2) == 10


@pytest.mark.parametrize(
    ("deal", "words"),
    [
        (lambda rng: iid(BALANCED[:5], 6, None, rng), ["6 clients", "the set has 5"]),
        (lambda rng: iid(BALANCED, 3, 700, rng), ["3 clients x 700", "2100", "2000"]),
        (lambda rng: dirichlet(BALANCED, 3, 700, 1.0, rng), ["3 clients x 700", "2100", "2000"]),
        (lambda rng: iid(BALANCED, 0, None, rng), ["0 clients"]),
        (lambda rng: iid(BALANCED, 2, 0, rng), ["0 images each"]),
        (lambda rng: dirichlet(BALANCED, 2, None, 0.0, rng), ["alpha 0.0", "above 0"]),
        (lambda rng: dirichlet(BALANCED, 2, 3, -1.0, rng), ["alpha -1.0"]),
        (lambda rng: dirichlet(BALANCED, 2, 3, float("nan"), rng), ["alpha nan"]),
        (lambda rng: dirichlet(BALANCED, 2, 3, float("inf"), rng), ["alpha inf"]),
        # Two classes of which each goes to one client cannot fill four.
        (
            lambda rng: dirichlet(np.repeat([0, 1], 9), 4, None, 1e-9, rng),
            ["got 0 images of 18", "fewer than 1", "alpha 1e-09", "larger alpha", "fewer clients", "another seed"],
        ),
        (lambda rng: dirichlet(BALANCED, 2, None, 1e6, rng, least=1100), ["client 0", "fewer than 1100"]),
        (lambda rng: by_group(["p", "q", "p"], 3, rng), ["3 clients", "2 groups"]),
        (lambda rng: by_group(["p", "q", "p"], 0, rng), ["0 clients"]),
    ],
)
def test_what_cannot_be_dealt_is_refused(deal, words):
    with pytest.raises(ConfigError) as error:
        deal(rng_for(0))
    for word in words:
        assert word in str(error.value)


def test_counts_and_summary_say_what_each_client_has():
    labels = np.array([0, 2, 2, 1, 0])
    partition = Partition((np.array([0, 1, 2]), np.array([4])), "dirichlet", 0.5)
    assert partition.counts(labels, ("x", "y", "z")).tolist() == [[1, 0, 2], [1, 0, 0]]
    summary = partition.summary(labels, ("x", "y", "z"))
    assert json.loads(json.dumps(summary)) == {
        "kind": "dirichlet",
        "alpha": 0.5,
        "sizes": [3, 1],
        "classes": ["x", "y", "z"],
        "counts": [[1, 0, 2], [1, 0, 0]],
    }
