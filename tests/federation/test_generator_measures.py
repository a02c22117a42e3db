"""Figures of a released generator: controls at both ends."""

import json

import numpy as np
import pytest
import torch

from veilmark.federation.config import FederationConfig
from veilmark.federation.generator_measures import linear_probe, measure_generator, two_sample_score
from veilmark.federation.runs import run_federation
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunFolder

DATA = {"layout": "digits", "per_client": 8, "test": 100, "head_widths": [16, 8]}


def config(method):
    return FederationConfig(method=method, clients=2, rounds=1, data=DATA, training={"batch": 4}, record=())


def noise(count, seed, shift=0.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (count, 1, 4, 4))).float()


def test_a_probe_reads_what_is_there_and_nothing_else():
    labels = torch.arange(100) % 2
    told = noise(100, 0) + 3 * labels.view(-1, 1, 1, 1)
    assert linear_probe(told, labels) > 95
    assert 30 < linear_probe(noise(100, 0), labels) < 70


def test_two_samples_are_told_apart_where_they_differ():
    assert two_sample_score(noise(80, 0), noise(80, 1, shift=2.0)) > 95
    assert 35 < two_sample_score(noise(80, 0), noise(80, 1)) < 65


def test_figures_of_a_run(tmp_path):
    run, secrets = RunFolder(tmp_path / "run"), tmp_path / "secrets"
    made = config("ppidsg")
    with run.hold():
        run_federation(made, None, run, secrets=secrets)
    found = measure_generator(made, None, run.path, secrets)
    assert found["test_images"] == 100
    # A generator of two steps is not the cipher, and pictures of digits tell their class.
    assert 0.1 < found["l1"] < 2
    assert found["probe_x"] > found["chance"] + 20
    assert 0 <= found["key_head"] <= 100
    # Scrambled pictures are not told from scrambled ones, which is what a generator could reach; plain ones are.
    assert 25 < found["two_sample_scrambled"] < 75
    assert found["two_sample_x"] > 80
    with pytest.raises(ConfigError, match="releases no generator"):
        measure_generator(config("none"), None, run.path, secrets)


def test_the_key_head_is_what_clients_have_whose_heads_are_fixed(tmp_path):
    run, secrets = RunFolder(tmp_path / "run"), tmp_path / "secrets"
    made = config("ppidsg").model_copy(update={"options": {"ppidsg": {"head": "fixed", "extractor": "fixed"}}})
    with run.hold():
        run_federation(made, None, run, secrets=secrets)
    accuracy = json.loads((run.path / "summary.json").read_text())["accuracy"]
    assert measure_generator(made, None, run.path, secrets)["key_head"] == pytest.approx(accuracy["mean"])
