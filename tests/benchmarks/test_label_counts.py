"""The grid of class counts: scores by hand, batches as they are called, figures and tables that are there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/label_counts.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("label_counts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["label_counts"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["label_counts"]


def test_scores_by_hand(script):
    guess, truth = np.array([3, 0, 1, 0]), np.array([2, 1, 1, 0])
    said = script.scores(guess, truth)
    assert said == {"right": 75, "exact": 0, "presence": pytest.approx(80), "l1": 2}
    assert script.scores(truth, truth) == {"right": 100, "exact": 100, "presence": 100, "l1": 0}


def test_batches_are_as_even_as_they_are_called(script):
    labels = np.arange(2000) % 10
    spread = {}
    for draw in ("IID", "skewed"):
        rows = [script.drawn(labels, 64, draw, 0, number) for number in range(10)]
        assert all(len(set(some.tolist())) == 64 for some in rows)
        spread[draw] = np.mean([np.bincount(labels[some.numpy()], minlength=10).std() for some in rows])
    assert spread["skewed"] > 2 * spread["IID"]


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_the_network_takes_pictures_of_both_sets(script, channels, side):
    network = script.LeNet(channels, side, 10, "leaky ReLU", 3)
    pictures = torch.randint(0, 256, (2, channels, side, side), dtype=torch.uint8)
    assert network.entered(pictures).shape == (2, 84)
    assert torch.equal(network.last.weight, script.LeNet(channels, side, 10, "leaky ReLU", 3).last.weight)


def test_a_fresh_network_gives_counts_away_and_a_baseline_does_not(script, tmp_path, monkeypatch, capsys):
    small = {"activations": ["ReLU"], "batches": [16], "networks": 1, "batches_of_a_network": 4}
    for name, value in {**small, "training": {**script.CONFIG["training"], "steps": 2}}.items():
        monkeypatch.setitem(script.CONFIG, name, value)
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["label_counts", "--results", str(file)])
    script.main()
    found = json.loads(file.read_text())
    assert [(cell["network"], cell["draw"]) for cell in found["cells"]] == [
        (state, draw) for state in ("fresh", "trained") for draw in ("IID", "skewed")
    ]
    fresh = found["cells"][0]["figures"]
    assert fresh["ours"]["exact"][0] == 100
    assert fresh["LLG"]["right"][0] < fresh["ours"]["right"][0]
    assert all(low <= value <= high for by_measure in fresh.values() for value, low, high in by_measure.values())
    made = script.tables(found)
    assert made[0].count("\n") == 4
    assert f"{fresh['iDLG']['right'][0]:.1f} / " in made[0]
