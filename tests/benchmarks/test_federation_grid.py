"""The grid of federations: every finished cell is one of it, and was played with what the grid says."""

import importlib
import json
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    federation = importlib.import_module("federation")


def test_finished_cells_are_of_the_grid_and_say_what_was_played():
    cells = {cell.key: cell for cell in federation.grid(3)}
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in federation.RESULTS.glob("*.json")}
    assert found.keys() <= cells.keys()
    for key, said in found.items():
        assert (said["cell"], said["name"], said["seed"]) == (key, cells[key].name, cells[key].seed)
        assert said["config"]["options"] == cells[key].config().model_dump(mode="json")["options"]


def test_the_published_method_starts_all_extractors_alike():
    names = {cell.name: cell.config().made_method().options for cell in federation.grid(1) if cell.data == "probe"}
    assert names["ppidsg"].extractor_start == names["ppidsg, published code"].extractor_start == "key"
    assert names["1e-3, kept head"].extractor_start == names["ppidsg, own extractors"].extractor_start == "own"
