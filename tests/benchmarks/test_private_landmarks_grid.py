"""The grid of landmark federations: every cell has a config, tables are what cells say, with intervals and leaks."""

import importlib
import json
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    grid = importlib.import_module("private_landmarks")


def cell_file(folder, cell, people, unlabelled=None):
    mean = sum(people) / len(people)
    sizes = {size: {"mean": mean - 1} for size in ("16", "32", "128")}
    nme = {"mean": mean, "min": mean - 2, "max": mean + 2, "sizes": sizes, "psnr": {"mean": 26.0}}
    nme |= {"unlabelled": unlabelled and {"mean": unlabelled}, "people": {"nme_16": people}}
    content = {"nme": nme, "bytes_up_per_client_round": 2_000_000, "seconds": 12.3, "newcomers": [{"nme_16": 30.0}]}
    content |= {"date": "2026-11-26", "machine": "NVIDIA H200, 16 cores" if cell.name == "none" else "x86_64, 2 cores"}
    (folder / f"{cell.key}.json").write_text(json.dumps(content))


def test_every_cell_has_a_config_and_a_name_of_its_own():
    cells = grid.grid(2)
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        made = cell.config()
        assert made.seed == cell.seed
        assert made.clients * made.data.people == 250
        made.made_method()


def test_a_table_has_intervals_over_people_and_what_leaks(tmp_path):
    cells = [c for c in grid.grid(1) if (c.part, c.labels) == ("10 x 25", "all")]
    named = {cell.name: cell for cell in cells}
    results, audits = tmp_path / "results", tmp_path / "audits"
    for folder in (results, audits):
        folder.mkdir()
    cell_file(results, named["local"], [10.0, 12.0, 14.0, 16.0])
    cell_file(results, named["none"], [6.0, 8.0, 10.0, 12.0])
    # As much better for everybody: the interval of the difference has no width.
    cell_file(results, named["hallucinator"], [9.0, 11.0, 13.0, 15.0], unlabelled=64.0)
    finding = {"attack": "owner of a person", "rung": "as it was", "value": 70.0, "low": 50.0, "chance": 25.0}
    finding |= {"positive_control": 60.0, "negative_control": 20.0, "high": 90.0, "metric": "named", "unit": "%"}
    finding |= {"threat_model": "the server", "method": "m", "dataset": "d", "seed": 0, "n": 24}
    for name, findings in (
        ("none", [finding]),
        ("local", []),
        ("hallucinator", [finding | {"value": 55.0, "low": 20.0}]),
    ):
        (audits / f"ytf68-{name}-s0.json").write_text(json.dumps({"findings": findings}))
    (table,) = grid.tables(cells, results, audits)
    title, _, head, _, *lines = table.split("\n")
    assert title == "10 x 25 people, labels: all"
    columns = [word.strip() for word in head.strip("| ").split(" | ")]
    rows = {}
    for line in lines:
        values = [word.strip() for word in line.removeprefix("|").removesuffix("|").split("|")]
        rows[values[0]] = dict(zip(columns, values, strict=True))
    low, high = grid.interval([9.0, 11.0, 13.0, 15.0])
    assert 9 < low < 12 < high < 15
    shared = rows["hallucinator"]
    assert shared["NME 16 px % (95 %)"] == f"12.00 ({low:.2f} to {high:.2f})"
    assert shared["less than local (95 %)"] == "1.00 (1.00 to 1.00)"
    assert (shared["played"], rows["none"]["played"]) == ("2026-11-26, CPU", "2026-11-26, GPU")
    assert shared["of the way to none"] == "25 %"
    assert (shared["without labels"], shared["MB up"], shared["newcomers"]) == ("64.00", "2.00", "30.00")
    leaks = {name: row["largest leak, 4 x 6"] for name, row in rows.items()}
    assert leaks == {"none": "60 %, owner of a person", "local": "nothing travels", "hallucinator": "none found"}
