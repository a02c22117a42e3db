"""What every method must keep to, and what the plain ones do."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from veilmark.cli import main
from veilmark.federation.client_side import ClientSide
from veilmark.federation.messages import Declared, Update, UpdateRefused, check_update
from veilmark.federation.methods import METHODS
from veilmark.federation.methods.fedavg import weighted_mean
from veilmark.federation.transcript import Transcript
from veilmark.run.checkpoints import read_tensors
from veilmark.run.errors import ConfigError

SPOILED = {"share": ("generator", "discriminator"), "clip": 0.1, "noise": 0.01}
CLASSIFYING = [name for name, kind in METHODS.items() if "classify" in kind.tasks]
SHORT = {"fedcg": {"distillation_steps": 3}}
CASES = [pytest.param(name, SHORT.get(name, {}), id=name) for name in CLASSIFYING] + [
    pytest.param("ppidsg", SPOILED, id="ppidsg, D, noise")
]


def method(name, **options):
    kind = METHODS[name]
    return kind(kind.model(**options))


def play(bench, how, rounds=1):
    """A few rounds without an engine; the last updates."""
    server = bench.server(how)
    states = {}
    for round_number in range(rounds):
        updates = {}
        for number in range(len(bench.owners)):
            client = bench.client(how, number)
            if number in states:
                client.load_state(states[number])
            updates[number] = client.train_round(server.broadcast(), round_number)
            states[number] = {k: v.clone() for k, v in client.state().items()}
        accepted = {n: check_update(update, server.declared(), 1000) for n, update in updates.items()}
        server.combine(accepted)
    return server, states, updates


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_update_is_what_its_server_declares(bench, name, options):
    server, _, updates = play(bench(), method(name, **options))
    for update in updates.values():
        assert update.examples == 12
        assert server.declared().size() == update.size()
        assert all(np.isfinite(value) for value in update.metrics.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    kind = METHODS[name]
    assert kind.summary
    assert kind.source
    assert set(kind.tasks) & {"classify", "landmarks"}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_client_goes_on_from_its_disk_and_a_server_from_its_checkpoint(bench, name, options):
    one = bench()
    how = method(name, **options)
    _, states, updates = play(one, how, rounds=2)
    again, _, _ = play(one, how, rounds=1)
    restored = one.server(how)
    restored.load_state({k: v.clone() for k, v in again.state().items()})
    _, kept, _ = play(one, how, rounds=1)
    client = one.client(how, 1)
    client.load_state(kept[1])
    update = client.train_round(restored.broadcast(), 1)
    assert update.metrics == pytest.approx(updates[1].metrics)
    for tensor, value in update.tensors.items():
        assert torch.equal(value, updates[1].tensors[tensor]), tensor
    assert all(torch.equal(value, states[1][key]) for key, value in client.state().items())


@pytest.mark.parametrize("name", CLASSIFYING)
def test_predictions_are_classes(bench, name):
    one = bench()
    how = method(name, **SHORT.get(name, {}))
    server, states, _ = play(one, how)
    client = one.client(how, 0)
    client.load_state(states[0])
    answers = client.predict(server.broadcast(), one.task.test.inputs)
    assert answers.shape == (20,)
    assert set(answers.tolist()) <= {0, 1}


@pytest.fixture(scope="module")
def example():
    """What the docs' example defines, by name."""
    page = (Path(__file__).parents[2] / "docs/add-a-method.md").read_text()
    names = {"__name__": "example"}
    exec(compile(page.split("```python\n")[1].split("```")[0], "docs/add-a-method.md", "exec"), names)
    return names


def test_the_example_of_the_docs_is_a_method_that_learns(bench, example):
    one = bench(images=24, epochs=6, lr=0.01)
    how = example["Signs"](example["SignOptions"]())
    server, _, updates = play(one, how, rounds=2)
    assert server.declared().size() == updates[0].size()
    answers = one.client(how).predict(server.broadcast(), one.task.test.inputs)
    assert (answers == one.task.test.targets).float().mean() > 0.8


def test_the_example_of_the_docs_is_played_by_its_name_and_resumes(tmp_path, monkeypatch, example):
    monkeypatch.setitem(METHODS, "sign", example["Signs"])
    tiny = ["method=sign", "options.sign.scale=0.5", "data.per_client=8", "data.test=20", "data.head_widths=[16,8]"]
    tiny += ["training.batch=4", "training.local_steps=2", "record=all"]
    command = ["veilmark", "federate", "ppidsg-digits", "--clients", "2", "--rounds", "2"]
    command += [word for setting in tiny for word in ("--set", setting)]

    def federate(name, *more, code=0):
        arguments = [*command, "--out", str(tmp_path / name), "--secrets", str(tmp_path / "secrets"), *more]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match=f"^{code}$"):
            main()
        return tmp_path / name

    train = ClientSide.train

    def interrupted(self, number, broadcast, round_number):
        if (number, round_number) == (1, 2):
            raise KeyboardInterrupt
        return train(self, number, broadcast, round_number)

    unbroken = federate("unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(ClientSide, "train", interrupted)
        federate("run", code=130)
    run = federate("run", "--resume")
    assert Transcript(run / "transcript").verify() == Transcript(unbroken / "transcript").verify()
    sent, _ = read_tensors(run / "transcript/round-0002/client-1.safetensors")
    assert {value.dtype for name, value in sent.items() if name.endswith(".sign")} == {torch.int8}
    states = [read_tensors(folder / "checkpoints/server-0002.safetensors")[0] for folder in (run, unbroken)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["method"], summary["options"]) == ("sign", {"scale": 0.5})
    assert "with the method sign" in (run / "report.html").read_text()


def test_the_mean_is_weighted_by_examples():
    updates = {
        number: Update({"w": torch.full((2,), value)}, {}, examples)
        for number, (value, examples) in enumerate([(1.0, 1), (4.0, 2)])
    }
    assert weighted_mean(updates)["w"].tolist() == [3.0, 3.0]


def test_who_leaves_a_tensor_as_it_was_has_no_say_in_it():
    before = {"detector": torch.tensor([1.0, 2.0]), "stem": torch.tensor([0.1]), "buffer": torch.tensor([0.3])}
    updates = {
        0: Update({**before, "detector": torch.tensor([1.0, 8.0]), "stem": torch.tensor([1.0])}, {}, 1),
        1: Update({**before, "stem": torch.tensor([4.0])}, {}, 2),
        2: Update({**before, "detector": torch.tensor([3.0, 2.0]), "stem": torch.tensor([1.0])}, {}, 3),
    }
    mean = weighted_mean(updates, before)
    assert mean["detector"].tolist() == pytest.approx([2.5, 3.5])
    assert mean["stem"].tolist() == [2.0]
    assert torch.equal(mean["buffer"], before["buffer"])
    assert weighted_mean(updates)["detector"].tolist() == pytest.approx([2.0, 3.0])


@pytest.mark.parametrize(("name", "lasts"), [("local", True), ("none", False)])
def test_a_client_alone_keeps_its_momentum(bench, name, lasts):
    one = bench()
    client = one.client(method(name))
    broadcast = one.server(method(name)).broadcast()
    client.train_round(broadcast, 0)
    kept = {key: value for key, value in client.state().items() if "momentum" in key}
    assert bool(kept) == lasts
    again = one.client(method(name))
    again.load_state(client.state())
    for some in (client, again):
        some.train_round(broadcast, 1)
    weights = [some.learner.model.state_dict() for some in (client, again)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_averaging_learns_and_local_training_differs_by_client(bench):
    one = bench(images=24, epochs=6, lr=0.01)
    server, _, _ = play(one, method("none"), rounds=2)
    answers = one.client(method("none")).predict(server.broadcast(), one.task.test.inputs)
    assert (answers == one.task.test.targets).float().mean() > 0.9
    _, states, updates = play(one, method("local"))
    assert updates[0].tensors == {}
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_some_parts_travel_and_the_rest_stays(bench):
    one, how = bench(), method("none", share=("extractor",))
    server, states, _ = play(one, how)
    assert all(name.startswith("extractor.") for name in server.broadcast())
    assert all(name.startswith("classifier.") for name in states[0])
    assert how.personal
    assert not method("none").personal
    with pytest.raises(ConfigError, match=r"no tensor 'encoder'; its parts: classifier, extractor"):
        one.server(method("none", share=("encoder",)))


def test_only_generators_travel_in_ppidsg(bench):
    one, how = bench(), method("ppidsg")
    server, states, updates = play(one, how)
    assert set(updates[0].tensors) == set(server.broadcast())
    assert all(name.startswith("layers.") for name in server.broadcast())
    kept = {name.split(".")[0] for name in states[0]}
    assert {"discriminator", "extractor", "classifier", "history", "optimizer"} == kept
    alone = method("ppidsg", share=())
    server, states, updates = play(one, alone, rounds=2)
    assert updates[0].tensors == {}
    assert "generator" in {name.split(".")[0] for name in states[0]}


@pytest.mark.parametrize("scope", ["federation", "client", "image"])
def test_the_scope_says_whose_secret_scrambles(bench, scope):
    one = bench(clients=2)
    one.owners[1] = one.owners[0]
    how = method("ppidsg", scope=scope)
    first, other = (one.client(how, number).client.scrambled for number in (0, 1))
    assert torch.equal(first, other) == (scope == "federation")


def test_wrong_options_are_refused():
    for options, words in [
        ({"share": ("classifier",)}, "only"),
        ({"without": ("blur",)}, "no step"),
        ({"block": 4, "colour": 1}, "colour"),
    ]:
        with pytest.raises(ValueError, match=words):
            method("ppidsg", **options)


GOOD = Update({"w": torch.zeros(2)}, {"loss": 1.0}, 5)


@pytest.mark.parametrize(
    ("tensors", "metrics", "examples", "words"),
    [
        ({}, {"loss": 1.0}, 5, "lacks 'w'"),
        ({"w": torch.zeros(2), "x": torch.zeros(1)}, {"loss": 1.0}, 5, "has 'x'"),
        ({"w": torch.zeros(3)}, {"loss": 1.0}, 5, "tensor 'w' is"),
        ({"w": torch.zeros(2, dtype=torch.float64)}, {"loss": 1.0}, 5, "float64"),
        ({"w": torch.tensor([0.0, float("nan")])}, {"loss": 1.0}, 5, "holds nan"),
        ({"w": torch.tensor([0.0, -float("inf")])}, {"loss": 1.0}, 5, "holds inf"),
        ({"w": torch.tensor([0.0, 1e7])}, {"loss": 1.0}, 5, "holds 1e"),
        ({"w": torch.zeros(2)}, {}, 5, "lacks 'loss'"),
        ({"w": torch.zeros(2)}, {"loss": 1.0, "age": 3.0}, 5, "has 'age'"),
        ({"w": torch.zeros(2)}, {"loss": float("nan")}, 5, "metric 'loss' is nan"),
        ({"w": torch.zeros(2)}, {"loss": 1.0}, 0, "0 examples"),
    ],
)
def test_updates_that_were_not_declared_are_refused(tensors, metrics, examples, words):
    declared = Declared.like(GOOD.tensors, ("loss",))
    with pytest.raises(UpdateRefused, match=words):
        check_update(Update(tensors, metrics, examples), declared, 100)


def test_no_client_weighs_more_than_the_cap():
    assert check_update(GOOD, Declared.like(GOOD.tensors, ("loss",)), 3).examples == 3
