"""EtC: what is scrambled, with whose secret, and that it is learned from."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from veilmark.federation.messages import check_update
from veilmark.federation.methods.etc import EncryptThenCompress, EtCOptions
from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.secret import Secret
from veilmark.run.errors import ConfigError


def method(**options):
    return EncryptThenCompress(EtCOptions(**options))


def play(bench, how, rounds=1, server=None, states=None, first=0):
    """A few rounds without an engine."""
    server = server or bench.server(how)
    states = dict(states or {})
    for round_number in range(first, rounds):
        updates = {}
        for number in range(len(bench.owners)):
            client = bench.client(how, number)
            if number in states:
                client.load_state(states[number])
            updates[number] = client.train_round(server.broadcast(), round_number)
            states[number] = {k: v.clone() for k, v in client.state().items()}
        server.combine({n: check_update(update, server.declared(), 1000) for n, update in updates.items()})
    return server, states, updates


def test_an_update_is_the_whole_classifier_as_declared(bench):
    one = bench(clients=1)
    server, states, updates = play(one, method())
    assert set(updates[0].tensors) == set(one.task.network(0).state_dict())
    assert set(updates[0].metrics) == set(one.task.metrics)
    assert updates[0].size() == server.declared().size()
    assert states[0] == {}


@pytest.mark.parametrize("scope", ["federation", "client", "image"])
def test_training_pictures_are_scrambled_with_the_secret_of_the_scope(bench, scope):
    one, how = bench(), method(scope=scope, block=8)
    own = one.owners[1]
    secret = Secret(b"f" * 32) if scope == "federation" else Secret(bytes([1]) * 32)
    names = list(own.names) if scope == "image" else None
    expected = Cipher(secret.derive(b"cipher"), 8).scramble(own.inputs, names)
    learner = one.client(how, 1).learner
    assert torch.equal(learner.data.inputs, expected)
    assert not torch.equal(learner.data.inputs, own.inputs)
    assert torch.equal(learner.data.targets, own.targets)
    assert how.personal == (scope != "federation")


def heard(client, inputs, broadcast):
    """What reaches the network when inputs are answered, and the answers."""
    seen = []
    hook = client.learner.model.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    answers = client.predict(broadcast, inputs)
    hook.remove()
    return torch.cat(seen), answers


@pytest.mark.parametrize("scope", ["federation", "client", "image"])
def test_test_pictures_are_scrambled_before_the_network_sees_them(bench, scope):
    one, how = bench(), method(scope=scope)
    broadcast, inputs = one.server(how).broadcast(), one.task.test_inputs
    seen = [heard(one.client(how, number), inputs, broadcast)[0] for number in (0, 1)]
    secret = Secret(b"f" * 32) if scope == "federation" else Secret(bytes(32))
    cipher = Cipher(secret.derive(b"cipher"), 4)
    names = [f"test/{row}".encode() for row in range(20)] if scope == "image" else None
    assert torch.equal(seen[0], cipher.scramble(inputs, names).float() / 127.5 - 1)
    assert torch.equal(seen[0], seen[1]) == (scope == "federation")


def test_steps_are_left_out(bench):
    one = bench()
    still = one.client(method(without=("rotate", "negate", "flip", "colour", "permute"))).learner.data.inputs
    assert torch.equal(still, one.owners[0].inputs)
    moved = one.client(method(without=("negate",))).learner.data.inputs
    assert torch.equal(moved.flatten(1).sort()[0], one.owners[0].inputs.flatten(1).sort()[0])


def test_it_learns_and_the_wrong_secret_reads_nothing(bench):
    one, how = bench(images=32, epochs=6, lr=0.02), method()
    server, _, _ = play(one, how, rounds=2)
    client, truth = one.client(how), one.task.test.targets
    right = client.predict(server.broadcast(), one.task.test_inputs)
    wrong = []
    for letter in (b"t", b"u", b"v", b"w", b"x", b"y"):
        client.cipher = Cipher(Secret(letter * 32).derive(b"cipher"), 4)
        said = client.predict(server.broadcast(), one.task.test_inputs)
        wrong.append(float((said == truth).float().mean()))
    assert (right == truth).float().mean() > 0.85
    # Two classes, few test pictures: one secret may be lucky.
    assert np.mean(wrong) < 0.7, wrong


def test_a_resumed_run_equals_an_unbroken_one(bench):
    one, how = bench(), method()
    unbroken, _, _ = play(one, how, rounds=2)
    half, states, _ = play(one, how, rounds=1)
    server = one.server(how)
    server.load_state({k: v.clone() for k, v in half.state().items()})
    resumed, _, _ = play(one, how, 2, server, states, first=1)
    assert all(torch.equal(value, unbroken.broadcast()[name]) for name, value in resumed.broadcast().items())
    assert not all(torch.equal(value, half.broadcast()[name]) for name, value in resumed.broadcast().items())


def test_what_does_not_fit_is_refused(bench):
    for options, words in [
        ({"block": 5}, "allowed: 2, 4, 8, 16"),
        ({"without": ("blur",)}, "no step"),
        ({"scope": "server"}, "federation"),
        ({"jpeg": 80}, "jpeg"),
    ]:
        with pytest.raises(ValidationError, match=words):
            method(**options)
    one = bench()
    owner = one.owners[0]
    small = type(owner)(owner.inputs[:, :, :12, :12].contiguous(), owner.targets, owner.names)
    one.owners[0] = small
    with pytest.raises(ConfigError, match="no whole number of blocks of 8"):
        one.client(method(block=8))


def test_colour_pictures_too(bench):
    one, how = bench(channels=3), method(scope="image", block=2)
    server, _, updates = play(one, how)
    assert np.isfinite(updates[0].metrics["loss"])
    assert set(one.client(how).predict(server.broadcast(), one.task.test_inputs).tolist()) <= {0, 1}
