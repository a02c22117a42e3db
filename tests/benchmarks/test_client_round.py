"""The benchmark of a client's round: its variants compute the same, and its figures are there."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/client_round.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("client_round", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["client_round"] = module
    spec.loader.exec_module(module)
    return module


def trained(script, waste, plain=True):
    """How far each weight moves in a round of one step."""
    client = script.made_client("mnist", 8, 8, (24, 12))
    # With nothing wasted it would be the package's own step: what is no waste by that name makes it write out its own.
    client.begin(frozenset(waste) | {"nothing"} if plain else frozenset())
    for name in ("generator", "discriminator"):
        # Adam's steps are as long for gradients that are rounding errors as for others; not so with a large eps.
        client.optimizers[name].param_groups[0]["eps"] = 1.0
    networks = {name: getattr(client, name) for name in ("generator", "discriminator", "extractor", "classifier")}
    start = [parameter.clone() for network in networks.values() for parameter in network.parameters()]
    client.train_round({name: value.clone() for name, value in client.generator.state_dict().items()}, 0)
    ended = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.named_parameters()}
    return {name: value.detach() - old for (name, value), old in zip(ended.items(), start, strict=True)}


@pytest.mark.parametrize(
    "waste", ["nothing", "gradients", "decoder", "features", "forward", "direct", "written", "everything"]
)
def test_leaving_out_waste_changes_no_weight(script, waste):
    """The package's step against the same step written out, with what it leaves out done."""
    ours = trained(script, (), plain=False)
    chosen = {"nothing": (), "everything": tuple(script.WASTE)}.get(waste, (waste,))
    for name, change in trained(script, chosen).items():
        assert ours[name].abs().max() > 0, name
        # Rounding tips a few ReLUs over, and weights near 1 are rounded to 1e-7.
        assert (change - ours[name]).norm() < 3e-2 * ours[name].norm() + 3e-7 * change.numel() ** 0.5, name


def test_its_figures_are_written(script, tmp_path, monkeypatch):
    file = tmp_path / "figures.json"
    words = ["--shapes", "mnist", "--images", "4", "--batch", "4", "--repeats", "1", "--widths", "16", "8"]
    monkeypatch.setattr(sys, "argv", ["client_round", *words, "--results", str(file)])
    script.main()
    found = json.loads(file.read_text())["shapes"]["mnist"]
    assert found["ratio_to_plain"]["plain: all of the waste"] == 1
    assert sum(found["share_of_time"].values()) == pytest.approx(1)
    assert found["peak_rss_mb"] > 100
    assert all(value > 0 for value in found["images_per_second"].values())
