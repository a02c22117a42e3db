"""The comparison with breaching: what both are given, how both are scored. The peer itself is played."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from veilmark.audit.inversion_search import SmallSigmoidNetwork
from veilmark.run.errors import DataError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCHMARKS)
    attacks = importlib.import_module("attacks")
    peer_breaching = importlib.import_module("peer_breaching")
    peer_environment = importlib.import_module("peer_environment")


def test_a_case_holds_the_gradient_of_its_picture():
    first, second = attacks.load_cases(None, 2)
    assert first.picture.shape == attacks.SHAPE
    assert -1 <= first.picture.min() < first.picture.max() <= 1
    network = SmallSigmoidNetwork(3, 32, 10, seed=1)
    cross_entropy(network(second.picture), second.label).backward()
    for parameter, weight, seen in zip(network.parameters(), second.weights, second.seen, strict=True):
        assert torch.equal(parameter, weight)
        torch.testing.assert_close(parameter.grad, seen, atol=1e-4 * float(seen.abs().max()), rtol=1e-4)


def test_more_pictures_than_there_are_is_refused():
    with pytest.raises(DataError, match="take fewer"):
        attacks.load_cases(None, 10**6)


def test_ours_comes_nearer_with_more_steps_and_is_timed():
    cases = attacks.load_cases(None, 1)
    few, more = (attacks.run_ours(cases, 0, *steps) for steps in ((1, 2), (3, 30)))
    for name in ("DLG", "cosine"):
        assert more[name]["psnr"][0] > few[name]["psnr"][0] + 1
        assert more[name]["seconds"][0] > 0


def test_the_peer_gets_the_same_number_of_steps():
    given = attacks.plan(7, 11)
    assert [own["overrides"][0] for own in given.values()] == [f"optim.max_iterations={n}" for n in (7, 11, 11)]
    assert [own["labelled"] for own in given.values()] == [False, True, True]


def test_what_the_peers_process_is_given_and_gives_back(monkeypatch):
    given = {}

    def call(command):
        with safe_open(command[2], "pt") as file:
            given.update(attacks=json.loads(file.metadata()["attacks"]))
        given.update(load_file(command[2]), python=command[0])
        save_file({"a.pictures": torch.zeros(2, 3, 32, 32)}, command[3], {"torch": "0"})

    monkeypatch.setattr(peer_breaching, "call", call)
    cases = attacks.load_cases(None, 2)
    words = {"a": {"config": "c", "overrides": [], "labelled": True}}
    labels = torch.cat([one.label for one in cases])
    found, about = peer_breaching.run_peer(
        Path("python"), [one.weights for one in cases], [one.seen for one in cases], labels, words
    )
    assert (given["python"], given["attacks"], about) == ("python", words, {"torch": "0"})
    assert torch.equal(given["weights.1.0"], cases[1].weights[0])
    assert torch.equal(given["gradients.0.7"], cases[0].seen[7])
    assert torch.equal(given["labels"], labels)
    assert found["a.pictures"].shape == (2, 3, 32, 32)


def test_an_environment_is_made_once(monkeypatch, tmp_path):
    commands = []

    def call(command):
        commands.append(command[1:])
        tmp_path.mkdir(exist_ok=True)

    monkeypatch.setattr(peer_environment, "call", call)
    for _ in range(2):
        assert peer_environment.environment(tmp_path, ["a==1", "b"], ["--no-deps", "c"]) == tmp_path / "bin" / "python"
    assert [command[-2:] for command in commands] == [["venv", str(tmp_path)], ["a==1", "b"], ["--no-deps", "c"]]
    peer_environment.environment(tmp_path, ["a==2"])
    assert commands[-1][-1] == "a==2"


OURS = {"DLG": {"psnr": [30.0, 20.0, 40.0, 10.0], "seconds": [1.0, 2.0, 3.0, 9.0]}}
THEIRS = {"DLG": {"psnr": [10.0, 25.0, 40.0, 9.0], "seconds": [2.0, 3.0, 4.0, 5.0]}}


def test_medians_and_shares_by_hand():
    ours, theirs = attacks.score(OURS, THEIRS)
    assert (ours["side"], ours["psnr"][0], ours["seconds"][0]) == ("Veilmark", 25, 2.5)
    assert (theirs["side"], theirs["psnr"][0], theirs["seconds"][0]) == ("breaching", 17.5, 3.5)
    assert (theirs["ours_better"], theirs["ours_faster"]) == (75, 75)
    median, low, high = ours["psnr"]
    assert 10 <= low < median < high <= 40


def test_an_interval_of_equal_values_is_a_point():
    assert attacks.median_interval([3.0] * 5) == (3, 3, 3)


def test_the_table_has_a_line_a_row():
    lines = attacks.table(attacks.score(OURS, THEIRS)).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| DLG | Veilmark | 25.0 (10.0 to 40.0) | 2.5 ")
    assert lines[3].endswith("| 75 | 75 |")


def cli(*arguments):
    app = typer.Typer()
    app.command()(attacks.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def fake_peer(monkeypatch):
    """A peer that answers with grey pictures, and counts them."""
    runs = []

    def run_peer(python, weights, gradients, labels, plan):
        runs.append(len(labels))
        answers = {f"{name}.pictures": torch.zeros(len(labels), 3, 32, 32) for name in plan}
        return answers | {f"{name}.seconds": torch.ones(len(labels)) for name in plan}, {"torch": "0"}

    monkeypatch.setattr(attacks, "run_peer", run_peer)
    monkeypatch.setattr(attacks, "make_environment", lambda folder: folder)
    monkeypatch.setattr(attacks, "TOGETHER", 2)
    return runs


def test_a_comparison_from_end_to_end_then_its_table(fake_peer, tmp_path):
    out = tmp_path / "attacks.json"
    words = ["--count", 3, "--dlg-steps", 1, "--cosine-steps", 2, "--work", tmp_path / "work", "--out", out]
    result = cli(*words)
    assert result.exit_code == 0, result.output
    stored = json.loads(out.read_text())
    assert [(row["attack"], row["side"], row["n"]) for row in stored["rows"]] == [
        ("DLG", "Veilmark", 3),
        ("DLG", "breaching", 3),
        ("cosine", "Veilmark", 3),
        ("cosine", "breaching", 3),
        ("cosine, our smoothness", "breaching", 3),
    ]
    pictures = [one.picture for one in attacks.load_cases(None, 3)]
    expected = [-10 * np.log10(float((one / 2).square().mean())) for one in pictures]
    assert stored["rows"][1]["each"]["psnr"] == pytest.approx(expected, abs=1e-3)
    assert fake_peer == [2, 1]
    assert cli("--print", "--out", out).stdout.strip() == attacks.table(stored["rows"])
    # Finished parts are kept on request, and figures of other settings are not mixed in.
    assert cli(*words, "--resume").exit_code == 0
    assert fake_peer == [2, 1]
    assert json.loads(out.read_text())["rows"] == stored["rows"]
    words[3] = 2
    assert cli(*words, "--resume").exit_code == 0
    assert fake_peer == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--print", "--out", "missing.json"], "missing.json does not exist"), (["--data", "nowhere"], "nowhere")],
)
def test_errors_name_what_is_missing(arguments, said, tmp_path):
    result = cli(*arguments, "--work", tmp_path)
    assert result.exit_code == 1
    assert said in result.output
