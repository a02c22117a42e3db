"""FedCG: what travels, the losses, the server's distillation, and that it learns."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from veilmark.federation.feature_gan import (
    FeatureDiscriminator,
    FeatureGenerator,
    deceiving_loss,
    distillation_loss,
    real_or_made_loss,
)
from veilmark.federation.messages import check_update
from veilmark.federation.methods.fedavg import weighted_mean
from veilmark.federation.methods.fedcg import FedCG, FedCGOptions, pull_weight


def method(**options):
    return FedCG(FedCGOptions(**({"distillation_steps": 3} | options)))


def copied(tensors):
    return {name: value.clone() for name, value in tensors.items()}


def play(bench, how, rounds=1, server=None, states=None, first=0):
    server = server or bench.server(how)
    states = dict(states or {})
    for round_number in range(first, rounds):
        updates = {}
        for number in range(len(bench.owners)):
            client = bench.client(how, number)
            if number in states:
                client.load_state(states[number])
            updates[number] = client.train_round(server.broadcast(), round_number)
            states[number] = copied(client.state())
        server.combine({n: check_update(update, server.declared(), 1000) for n, update in updates.items()})
    return server, states, updates


def test_only_generator_and_head_travel_and_the_rest_stays(bench):
    one, how = bench(clients=2, images=8), method()
    server, states, updates = play(one, how)
    assert {name.split(".")[0] for name in updates[0].tensors} == {"generator", "classifier"}
    assert set(updates[0].tensors) == set(server.broadcast())
    assert updates[0].size() == server.declared().size()
    assert set(updates[0].metrics) == {"loss", "accuracy", "distance", "discriminator", "generator"}
    assert {name.split(".")[0] for name in states[0]} == {"extractor", "discriminator", "optimizer"}
    private = {value.numpy().tobytes() for name, value in states[0].items() if value.numel() > 64}
    assert not private & {value.numpy().tobytes() for value in updates[0].tensors.values()}
    assert how.personal


@pytest.mark.parametrize("side", [4, 7, 8])
def test_generator_and_discriminator_fit_the_features(side):
    generator, discriminator = FeatureGenerator(3, 32, side, 10), FeatureDiscriminator(3, 32, side)
    made = generator(torch.randn(2, 10), torch.tensor([0, 2]))
    assert made.shape == (2, 32, side, side)
    assert made.min().item() == 0.0
    assert discriminator(made, torch.tensor([0, 2])).shape == (2, 1)


def test_losses_are_their_formulas():
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(2, 6, 1))
    squash = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    judging = -np.log(squash(real)).mean() - np.log(1 - squash(made)).mean()
    assert float(real_or_made_loss(torch.tensor(real), torch.tensor(made))) == pytest.approx(judging)
    assert float(deceiving_loss(torch.tensor(made))) == pytest.approx(-np.log(squash(made)).mean())
    answers, aims = rng.normal(size=(2, 6, 4))
    q, p = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (answers, aims))
    expected = (p * np.log(p / q)).sum(axis=1).mean()
    assert float(distillation_loss(torch.tensor(answers), torch.tensor(aims))) == pytest.approx(expected)
    assert float(distillation_loss(torch.tensor(aims), torch.tensor(aims))) == pytest.approx(0, abs=1e-12)


def test_the_pull_rises_from_nothing():
    options = FedCGOptions(pull=3.0, pull_rounds=50)
    assert pull_weight(options, 0) == 0
    assert pull_weight(options, 10) == pytest.approx(3 * (2 / (1 + math.exp(-2)) - 1))
    assert pull_weight(options, 50) == pull_weight(options, 80) == pytest.approx(3 * (2 / (1 + math.exp(-10)) - 1))


def test_the_pull_draws_features_to_those_of_the_global_generator(bench):
    one = bench(clients=1, lr=0.02)
    distance = {}
    for pull in (0.0, 20.0):
        how = method(pull=pull, pull_rounds=1)
        client, broadcast = one.client(how), one.server(how).broadcast()
        # From round 1 on the weight is whole; the global G stays the same.
        for round_number in (1, 2):
            update = client.train_round(broadcast, round_number)
        distance[pull] = update.metrics["distance"]
    assert distance[20.0] < 0.8 * distance[0.0]


def test_without_distillation_the_server_averages(bench):
    one = bench(clients=2, images=8)
    server, _, updates = play(one, method(distillation_steps=0))
    mean = weighted_mean(updates)
    assert all(torch.equal(value, mean[name]) for name, value in server.broadcast().items())


def ensemble_gap(server, updates, seed=5):
    """KL of the global answers from the clients' together, on drawn z and y, by fresh networks."""
    generator, head = server.generator, server.head
    z, y = torch.randn(256, 100, generator=torch.Generator().manual_seed(seed)), torch.arange(256) % 2

    def answers(tensors):
        generator.load_state_dict({k[10:]: v for k, v in tensors.items() if k.startswith("generator.")})
        head.load_state_dict({k[11:]: v for k, v in tensors.items() if k.startswith("classifier.")})
        return head(generator(z, y))

    with torch.no_grad():
        total = sum(update.examples for update in updates.values())
        aims = sum(answers(update.tensors) * update.examples / total for update in updates.values())
        return float(distillation_loss(answers(server.broadcast()), aims))


def test_distillation_brings_the_global_answers_to_the_ensemble(bench):
    one = bench(clients=2, images=8)
    _, _, updates = play(one, method(distillation_steps=0))
    gaps = []
    for steps in (0, 30):
        server = one.server(method(distillation_steps=steps, distillation_batch=16))
        server.combine(updates)
        gaps.append(ensemble_gap(server, updates))
    assert gaps[1] < 0.5 * gaps[0]


@pytest.mark.parametrize("head", ["global", "own"])
def test_a_resumed_run_equals_an_unbroken_one(bench, head):
    one, how = bench(clients=2, images=8), method(head=head)
    unbroken, kept, _ = play(one, how, rounds=2)
    half, states, _ = play(one, how, rounds=1)
    server = one.server(how)
    server.load_state(copied(half.state()))
    resumed, again, _ = play(one, how, 2, server, states, first=1)
    for left, right in ((unbroken.state(), resumed.state()), (kept[1], again[1])):
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_distillation_goes_on_from_its_own_state(bench):
    one, how = bench(clients=2, images=8), method()
    half, _, updates = play(one, how)
    forgetful = one.server(how)
    forgetful.load_state(copied(half.state()) | {"rounds": torch.tensor(0)})
    whole = one.server(how)
    whole.load_state(copied(half.state()))
    for server in (forgetful, whole, half):
        server.combine(updates)
    same = [all(torch.equal(v, half.state()[k]) for k, v in s.state().items()) for s in (whole, forgetful)]
    assert same == [True, False]


def test_the_head_that_answers_is_the_configured_one(bench):
    one = bench(clients=2, images=8)
    for head in ("global", "own"):
        how = method(head=head)
        server, states, updates = play(one, how)
        client = one.client(how)
        client.load_state(states[0])
        client.predict(server.broadcast(), one.task.test_inputs)
        used = client.network.classifier.state_dict()
        expected = server.broadcast() if head == "global" else updates[0].tensors
        assert all(torch.equal(value, expected[f"classifier.{name}"]) for name, value in used.items())
        extractor = client.network.extractor.state_dict()
        assert all(torch.equal(value, states[0][f"extractor.{name}"]) for name, value in extractor.items())


def test_it_learns(bench):
    one, how = bench(clients=2, images=20, epochs=4, lr=0.01), method(distillation_steps=5)
    server, states, _ = play(one, how, rounds=2)
    for number in range(2):
        client = one.client(how, number)
        client.load_state(states[number])
        answers = client.predict(server.broadcast(), one.task.test_inputs)
        assert (answers == one.task.test.targets).float().mean() > 0.8


def test_wrong_options_are_refused():
    for options in (
        {"noise": 0},
        {"gan_lr": 0.0},
        {"distillation_steps": -1},
        {"head": "none"},
        {"share": ["extractor"]},
    ):
        with pytest.raises(ValidationError):
            method(**options)
