"""Label inference: exact where it must be, at the prior where there is nothing to see."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from tiny_federations import config, play
from veilmark.audit.attack import REAL, Scene
from veilmark.audit.audits import _truth
from veilmark.audit.class_counts import (
    LastLayerSolver,
    apportioned,
    counts_from_bias,
    counts_from_weights,
    label_score,
    llg,
    prior_counts,
    sign_rule,
)
from veilmark.audit.label_inference import LabelCounts, counts_behind
from veilmark.audit.record import read_record

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "leaky relu": nn.LeakyReLU, "tanh": nn.Tanh}


def network(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), ACTIVATIONS[activation](), nn.Linear(128, 10))


def batch(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Unbalanced: every class has a weight of its own.
    labels = torch.multinomial(torch.arange(1.0, 11), size, replacement=True, generator=generator)
    return 0.5 * torch.randn(size, 64, generator=generator) + 0.1 * labels[:, None], labels


def seen(made, x, labels):
    cross_entropy(made(x), labels).backward()
    return made[2].weight.grad, made[2].bias.grad


def public(made, seed=9):
    x, labels = batch(3000, seed)
    with torch.no_grad():
        said = made(x).softmax(dim=1)
        return made[:2](x).mean(dim=0), torch.stack([said[labels == label].mean(dim=0) for label in range(10)])


def solver(made, seed=9, without=-1):
    x, labels = batch(1000, seed)
    x, labels = x[labels != without], labels[labels != without]
    with torch.no_grad():
        return LastLayerSolver(made[:2](x), made(x).softmax(dim=1), labels)


def learned(activation):
    """A network that is right about one picture in three."""
    made, (x, labels) = network(activation), batch(3000, 8)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for rows in torch.arange(len(x)).split(100) * 2:
        optimizer.zero_grad()
        cross_entropy(made(x[rows]), labels[rows]).backward()
        optimizer.step()
    return made


def counted(labels):
    return np.bincount(labels.numpy(), minlength=10)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_gives_counts_away_at_the_start(activation, size):
    """The positive control: over 95 % of the counts."""
    right = []
    for seed in range(10):
        made = network(activation)
        x, labels = batch(size, seed)
        _, bias = seen(made, x, labels)
        right.append(label_score(counts_from_bias(bias, public(made)[1], size), counted(labels)).exact)
    assert np.mean(right) > 95


def test_bias_is_exact_where_probabilities_are_known():
    made, (x, labels) = network("tanh"), batch(128)
    _, bias = seen(made, x, labels)
    with torch.no_grad():
        known = made(x).softmax(dim=1).mean(dim=0)
    assert counts_from_bias(bias, known, 128).tolist() == counted(labels).tolist()


def test_weights_give_counts_away_without_a_bias():
    made, (x, labels) = network("sigmoid"), batch(64)
    weights, _ = seen(made, x, labels)
    activations, said = public(made)
    guess = counts_from_weights(weights, activations, said.mean(dim=0), 64)
    assert label_score(guess, counted(labels)).l1 < 10


@pytest.mark.parametrize("size", [1, 32, 128])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_whole_last_layer_gives_counts_away_at_the_start(activation, size):
    """The positive control."""
    made = network(activation)
    ours = solver(made)
    for seed in range(5):
        x, labels = batch(size, seed)
        assert label_score(ours.counts(*seen(made, x, labels), size), counted(labels)).l1 < 5
        made.zero_grad()


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_of_a_network_that_learned_the_whole_layer_gives_away_more(activation):
    made = learned(activation)
    ours, said = solver(made), public(made)[1]
    found = {name: [] for name in ("ours", "bias", "sign", "llg", "prior")}
    for seed in range(20):
        x, labels = batch(64, seed)
        made.zero_grad()
        weights, bias = seen(made, x, labels)
        guesses = {
            "ours": ours.counts(weights, bias, 64),
            "bias": counts_from_bias(bias, said, 64),
            "sign": sign_rule(weights, 64),
            "llg": llg(weights, 64),
            "prior": prior_counts(64, 10),
        }
        for name, guess in guesses.items():
            found[name].append(label_score(guess, counted(labels)).l1)
    assert all(np.mean(found["ours"]) < np.mean(found[other]) for other in found if other != "ours"), found


def test_a_class_without_public_pictures_is_counted_too():
    made, (x, labels) = network("relu"), batch(64)
    guess = solver(made, without=9).counts(*seen(made, x, labels), 64)
    assert label_score(guess, counted(labels)).l1 < 5


def test_noise_gives_the_solver_nothing():
    """The negative control: of even batches it must not get more than even counts, and it adds up."""
    generator, made = torch.Generator().manual_seed(1), network("relu")
    ours, found, prior = solver(made), [], []
    for seed in range(20):
        labels = torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(seed))
        noise = [torch.randn(shape, generator=generator) * 0.05 for shape in ((10, 128), (10,))]
        guess = ours.counts(*noise, 64)
        assert guess.sum() == 64
        found.append(label_score(guess, counted(labels)).l1)
        prior.append(label_score(prior_counts(64, 10), counted(labels)).l1)
    assert np.mean(found) > np.mean(prior) - 1


def test_baselines_work_on_positive_activations():
    made, (x, labels) = network("sigmoid"), batch(32)
    weights, _ = seen(made, x, labels)
    truth = counted(labels)
    assert label_score(llg(weights, 32), truth).l1 < label_score(prior_counts(32, 10), truth).l1
    x, label = batch(1)
    made = network("sigmoid")
    weights, _ = seen(made, x, label)
    assert sign_rule(weights, 1).tolist() == llg(weights, 1).tolist() == counted(label).tolist()


def test_noise_gives_nothing_away():
    """The negative control: no better than the prior."""
    generator = torch.Generator().manual_seed(1)
    found, prior = [], []
    for seed in range(40):
        made, (_, labels) = network("relu"), batch(64, seed)
        noise = torch.randn(10, generator=generator) * 0.05
        found.append(label_score(counts_from_bias(noise, public(made)[1], 64), counted(labels)).l1)
        prior.append(label_score(prior_counts(64, 10), counted(labels)).l1)
    assert np.mean(found) > np.mean(prior) - 1


@given(st.lists(st.floats(-5, 50), min_size=1, max_size=12), st.integers(0, 200))
def test_apportioned_adds_up_and_is_near(wanted, total):
    counts = apportioned(torch.tensor(wanted), total)
    assert counts.sum() == total
    assert counts.min() >= 0
    positive = np.clip(np.array(wanted, dtype=np.float32).astype(float), 0, None)
    if positive.sum() > 0:
        assert np.abs(counts - positive * total / positive.sum()).max() <= 1 + 1e-6


@given(st.lists(st.integers(0, 30), min_size=2, max_size=12).filter(any))
def test_apportioned_keeps_whole_counts(counts):
    assert apportioned(torch.tensor(counts), sum(counts)).tolist() == counts


def test_scores_by_hand():
    score = label_score(np.array([2, 0, 2, 0]), np.array([2, 1, 1, 0]))
    assert (score.exact, score.presence, score.l1) == (50, 75, 25)
    assert prior_counts(10, 4).tolist() == [3, 3, 2, 2]
    with pytest.raises(ValueError, match="guessed"):
        label_score(np.zeros(3, dtype=int), np.zeros(4, dtype=int))


def test_one_step_of_few_pictures_is_held_against_these_and_not_against_all_that_a_client_has(tmp_path):
    made = config(method="none", rounds=1, data__per_client=40, data__test=120, training={"batch": 6, "local_steps": 1})
    run = play(tmp_path / "run", made)
    record = read_record(run.path / "transcript")
    scene = Scene(record, *reversed(_truth(record, run.path, None, None)))
    assert [int(counts_behind(scene, 1, client).sum()) for client in (0, 1)] == [6, 6]
    found = LabelCounts().findings(scene)
    lines = {line.metric: line for line in found if line.rung == REAL}
    right = lines["pictures counted in the right class"]
    assert right.value == 100 > right.chance
    assert lines["classes counted exactly"].value == lines["classes known to be there or not"].value == 100
    # Noise counts about as much as somebody who saw nothing, in every figure's own control.
    assert right.negative_control < 80
    rehearsed = found[0]
    assert rehearsed.low > rehearsed.chance
    assert rehearsed.positive_control == rehearsed.value


def test_pictures_behind_a_round_count_as_often_as_they_were_in_a_step(tmp_path):
    made = config(method="none", rounds=1, data__per_client=10, training={"batch": 4, "local_steps": 4})
    run = play(tmp_path / "run", made)
    record = read_record(run.path / "transcript")
    truth, public = _truth(record, run.path, None, None)
    scene = Scene(record, public, truth)
    behind = counts_behind(scene, 1, 0)
    assert behind.sum() == 10
    whole = np.bincount(truth.owners[0].targets.numpy(), minlength=10)
    # Fourteen places for ten pictures: four of them twice.
    assert np.abs(behind - whole).sum() <= 4
