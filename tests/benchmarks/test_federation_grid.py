"""The grid of federations: every finished cell is one of it, and was played with what the grid says."""

import importlib
import json
from pathlib import Path

import pytest

from veilmark.federation.config import FederationConfig

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    federation = importlib.import_module("federation")


def test_finished_cells_are_of_the_grid_and_say_what_was_played():
    cells = {cell.key: cell for cell in federation.grid(3)}
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in federation.RESULTS.glob("*.json")}
    assert found.keys() <= cells.keys()
    for key, said in found.items():
        assert (said["cell"], said["name"], said["seed"]) == (key, cells[key].name, cells[key].seed)
        # Settings that came after a cell was played are not in it; they must be what they are by default.
        assert FederationConfig.model_validate(said["config"]) == cells[key].config(), key


def test_the_published_method_starts_all_extractors_alike():
    names = {cell.name: cell.config().made_method().options for cell in federation.grid(1) if cell.data == "probe"}
    assert names["ppidsg"].extractor_start == names["ppidsg, published code"].extractor_start == "key"
    assert names["1e-3, kept head"].extractor_start == names["ppidsg, own extractors"].extractor_start == "own"


def cell_of(folder: Path, name: str, seed: int, last: float) -> None:
    rounds = [{"mean": last - 10}, {"mean": last}]
    (folder / f"mnist-iid-{name.replace(' ', '_')}-s{seed}.json").write_text(json.dumps({"rounds": rounds}))


def test_a_setting_in_short_names_the_best_other_repair_and_the_span_of_seeds(tmp_path):
    for name, seed, last in (
        ("none", 0, 90.0),
        ("none", 1, 94.0),
        ("repaired, fixed head", 0, 70.0),
        ("1e-3, kept head", 0, 99.0),
    ):
        cell_of(tmp_path, name, seed, last)
    found = federation.summaries(federation.grid(3), tmp_path)
    table = federation.short_table(found)
    assert "| MNIST | like | 92.0 (90.0 to 94.0) | not played |" in table
    assert table.endswith("| 70.0 (one seed) *repaired, fixed head* |")
    federation.plot(found, tmp_path / "federation.png")
    assert (tmp_path / "federation.png").stat().st_size > 10_000


def test_a_setting_in_short_without_other_repairs_says_so(tmp_path):
    cell_of(tmp_path, "none", 0, 90.0)
    assert federation.short_table(federation.summaries(federation.grid(3), tmp_path)).endswith("| none tried |")
