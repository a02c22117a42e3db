"""Candidates by steps and batch: every cell is what its name says, and bold is what lies above chance."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from veilmark.audit import candidates

SCRIPT = Path(__file__).parents[2] / "benchmarks/candidates.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("candidates_grid", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["candidates_grid"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["candidates_grid"]


def test_every_cell_records_its_last_round_of_so_many_steps(script):
    cells = script.grid()
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        made = cell.config(1)
        assert (made.training.local_steps, made.training.batch) == (cell.steps, cell.batch)
        assert made.recorded() == [cell.rounds]
        assert made.made_method().options.extractor == "fixed"


def test_a_cell_says_how_well_pictures_are_told_and_the_table_marks_it(script, monkeypatch):
    for name, value in {"ASKED": 2, "STRANGERS": 12}.items():
        monkeypatch.setattr(candidates, name, value)
    monkeypatch.setattr(script, "GUESSES", 1)
    monkeypatch.setitem(script.DATA, "digits", {"head_widths": [32, 16], "per_client": 8, "test": 40})
    monkeypatch.setattr(script, "MESSAGES", {})
    cell = script.Cell("digits", 1, 2)
    made = script.play_cell(cell, None)
    assert made["pictures"] == 2 * 2
    low, high = made["area"][1:]
    assert 0 <= low <= made["area"][0] <= high <= 100
    sure = made | {"area": [80.0, 60.0, 90.0]}
    lines = script.table({cell.key: sure, script.grid()[0].key: made | {"area": [60.0, 40.0, 80.0]}}).splitlines()
    assert "**80.0 (60.0 to 90.0)**" in lines[-1]
    assert "**" not in lines[-2]
