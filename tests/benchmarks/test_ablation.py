"""The grid of the ablation: what can be wrong before an hour of training is spent on it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from veilmark.sht.recipes import resolve_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablation():
    spec = importlib.util.spec_from_file_location("ablation", BENCHMARKS / "ablation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ablation"]


def steps(config) -> float:
    """Steps of all stages, in passes over all faces of the set."""
    whole = config.schedule.epochs * config.data.labelled_people
    return whole + (config.joint_schedule.epochs * config.data.labelled_people if config.kind == "sht" else 0)


def test_every_cell_has_a_config_that_trains(ablation):
    for cell in ablation.grid(1):
        if cell.chain is None:
            config, _ = resolve_recipe(cell.config(), cell.key)
            assert config.seed == cell.seed


def test_names_are_unique_and_chains_refer_to_cells_of_the_grid(ablation):
    cells = ablation.grid(3)
    keys = [cell.key for cell in cells]
    assert len(set(keys)) == len(keys)
    for cell in cells:
        for part in cell.chain or ():
            assert part.key in keys
            assert part.seed == cell.seed


def test_every_cell_but_the_control_for_cost_has_the_same_steps_and_the_same_protocol(ablation):
    for cell in ablation.grid(1):
        if cell.chain is None and cell.name != "heatmaps twice":
            config, _ = resolve_recipe(cell.config(), cell.key)
            passes = ablation.EPOCHS * (ablation.LONG if cell.table == "long" else 1)
            if cell.table == "long" and config.data.labelled_people == 0.1:
                taken = steps(config) / 0.1 * ablation.BATCHES_OF_A_TENTH
                assert taken == pytest.approx(passes * ablation.BATCHES, rel=0.01), cell.name
            else:
                assert steps(config) == pytest.approx(passes), cell.name
            assert config.schedule.batch == 16
            assert config.schedule.ema == 0.998
            assert config.samples.augmentation == resolve_recipe(ablation.BASE, "base")[0].samples.augmentation


def test_the_joint_cells_of_few_and_imprecise_labels_walk_one_cosine(ablation):
    for cell in ablation.grid(1):
        if cell.table in ("few", "jitter", "long") and cell.changes.get("kind") == "sht":
            config, _ = resolve_recipe(cell.config(), cell.key)
            assert config.schedule.span == (0.0, 0.5)
            assert config.joint_schedule.span == (0.5, 1.0)
            assert config.joint_schedule.lr == config.schedule.lr
