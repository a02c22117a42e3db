"""Where an audit computes: a device that is not there is refused at once, and one that is there finds the same."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tiny_federations import config, play
from veilmark.audit import (
    audits,
    class_mix,
    completed_share,
    feature_inversion,
    inversion_ladder,
    shadow_membership,
    shadows,
)
from veilmark.audit.answers import logits_of
from veilmark.audit.attack import Attack
from veilmark.audit.audits import ATTACKS, audit_run
from veilmark.cli import app
from veilmark.run.devices import choose_device
from veilmark.run.errors import ConfigError

TOLERANCE = {"dB": 1.0, "%": 15.0}
"""Rounding, as far as steps of Adam enlarge it: a picture more or less is 12.5 % of a client's."""
COUNTED = "class mix out of the generator"
"""Whole counts out of a few rehearsals, whose first steps of Adam go by the signs of gradients that may be nearly 0."""


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda", "'cuda' is not available here; use --device cpu"), ("cuda:1", "not available"), ("gpu", "unknown")],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(no_gpu, tmp_path, device, words):
    with pytest.raises(ConfigError, match=words):
        audit_run(tmp_path / "no run", None, tmp_path / "out", device=device)
    assert not (tmp_path / "out").exists()


def test_the_verb_refuses_it_before_it_plays_a_first_look(no_gpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["audit", "--device", "cuda"])
    assert isinstance(refused.exception, ConfigError)
    assert not list(tmp_path.iterdir())


def test_a_second_gpu_is_not_the_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="'cuda:1' is not available"):
        choose_device("cuda:1")


def test_attacks_get_the_chosen_device(tmp_path, monkeypatch):
    given = []

    class Asking(Attack):
        name, threat_model, needs, question = "asking", ATTACKS["label counts"].threat_model, "nothing", "where?"

        def obstacle(self, record):
            return None

        def findings(self, scene):
            given.append(scene.device)
            return []

    run = play(tmp_path / "run", config(method="none", rounds=1)).path
    monkeypatch.setattr(audits, "ATTACKS", {"asking": Asking()})
    monkeypatch.setattr(audits, "choose_device", torch.device)
    assert audit_run(run, None, tmp_path / "out", device="meta")["device"] == "meta"
    assert given == [torch.device("meta")]


def test_attacks_leave_no_trace_and_are_exact():
    torch.manual_seed(5)
    state, before = torch.get_rng_state(), torch.backends.cudnn.allow_tf32
    with audits._undisturbed(torch.device("cpu")):
        torch.rand(3)
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.allow_tf32 == before


def test_answers_come_in_one_piece():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    inputs = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    said = logits_of(network, inputs)
    assert said.shape == (300, 3)
    torch.testing.assert_close(said, network(inputs.float() / 127.5 - 1).detach())
    assert not said.is_inference()
    assert len(logits_of(network, inputs[:0])) == 0


@pytest.fixture(scope="module")
def quick():
    """How well attacks do is tested with each of them; here devices are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audits, "_STRANGERS", 20)
        patch.setattr(feature_inversion, "DECODER_STEPS", 5)
        for name, few in (("LEARNED", 2), ("HELD", 1), ("EASY_LEARNED", 2), ("EASY_HELD", 1), ("MOST_STEPS", 1)):
            patch.setattr(class_mix, name, few)
        for name in ("STEPS", "KNOWN_STEPS", "GENERATOR_STEPS"):
            patch.setattr(completed_share, name, 3)
        for name in ("STEPS", "GENERATOR_STEPS", "CONTROL_STEPS"):
            patch.setattr(inversion_ladder, name, 3)
        for name in ("MOST_STEPS", "KNOWN_STEPS"):
            patch.setattr(shadows, name, 3)
        patch.setattr(ATTACKS["key out of the generator"], "steps", 5)
        patch.setattr(ATTACKS["pictures from generated ones"], "steps", 5)
        for attack in ATTACKS.values():
            if isinstance(attack, shadow_membership.MembershipByShadows):
                patch.setattr(attack, "federations", 6)
        yield


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["none", "ppidsg"])
def test_a_gpu_finds_what_a_cpu_finds(quick, tmp_path, method):
    run = play(tmp_path / "run", config(method=method)).path
    found = {}
    for device in ("cpu", "cuda"):
        assert not audit_run(run, None, tmp_path / device, device=device)["skipped"]
        found[device] = json.loads((tmp_path / device / "audit.json").read_text())
    for here, there in zip(found["cpu"], found["cuda"], strict=True):
        assert [here[key] for key in ("attack", "rung", "metric", "n")] == [
            there[key] for key in ("attack", "rung", "metric", "n")
        ]
        # What somebody gets who saw nothing depends on no network.
        assert there["chance"] == pytest.approx(here["chance"])
        if here["attack"] != COUNTED:
            assert there["value"] == pytest.approx(here["value"], abs=TOLERANCE[here["unit"]]), here
