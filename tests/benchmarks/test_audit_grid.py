"""The grid of audits: every cell has a config, a leak is what it says, pictures and tables come from finished cells."""

import importlib
import json
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    grid = importlib.import_module("audit")


def finding(attack, value, low, chance=50.0, control=90.0, rung=grid.REAL, metric="found", noise=None):
    line = {"threat_model": "the server", "method": "m", "dataset": "d", "seed": 0, "n": 9, "high": 100.0}
    line |= {"attack": attack, "metric": metric, "unit": "%", "rung": rung, "value": value, "low": low}
    return line | {"chance": chance, "positive_control": control, "negative_control": noise}


def test_every_cell_has_a_config():
    cells = grid.grid(2)
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.data for cell in cells} == set(grid.SCORES)
    for cell in cells:
        made = cell.config()
        assert made.seed == cell.seed
        assert made.recorded() == [1, *(range(9, 17) if cell.data == "ytf68" else [made.rounds])]
        assert made.task == ("landmarks" if cell.data == "ytf68" else "classify")
        made.made_method()


@pytest.mark.parametrize(
    ("lines", "share", "attack"),
    [
        ([finding("owner", 70, 60)], 50, "owner"),
        ([finding("owner", 70, 60), finding("labels", 80, 55, chance=40)], 80, "labels"),
        ([finding("owner", 99, 95)], 100, "owner"),  # beyond its control
        ([finding("owner", 70, 49)], 0, "none found"),  # chance is within the interval
        ([finding("owner", 70, 60, control=50)], 0, "none found"),  # its control did not succeed
        ([finding("owner", 70, 60, rung="easy")], 0, "none found"),
        ([finding("owner", 70, 60, noise=60)], 0, "none found"),  # noise may do as well
        ([finding("owner", 70, 60, noise=59)], 50, "owner"),
        # A rehearsal is no best case: the leak is of the way to every person.
        ([finding("owner of a person", 60, 40, chance=20, control=30)], 50, "owner of a person"),
        ([finding("linking of messages", 100, 100, chance=25, control=100)], 0, "none found"),
    ],
)
def test_the_largest_leak(lines, share, attack):
    found, name = grid.leakage({"findings": lines})
    assert (found, name) == (pytest.approx(share), attack)


def test_tables_and_pictures_of_finished_cells(tmp_path):
    cells = [cell for cell in grid.grid(1) if cell.name in ("none", "local")]
    for place, cell in enumerate(cells):
        lines = [finding("owner", 70 + place, 60)] if cell.name == "none" else []
        content = {"cell": cell.key, "data": cell.data, "name": cell.name, "seed": 0, "score": 20.0 + place}
        content["obstacles"] = {} if cell.name == "none" else {"owner": "nothing travels"}
        content |= {"date": "2026-11-26", "extended": [{"date": "2026-11-28"}] if cell.name == "none" else []}
        (tmp_path / f"{cell.key}.json").write_text(json.dumps(content | {"findings": lines}))
    made, finished = grid.tables(cells, tmp_path)
    assert len(finished) == len(cells) == 6
    for table in made:
        name, _, head, _, none, local = table.split("\n")
        assert grid.SCORES[name] in head
        assert "owner, %" in head
        assert "(50.0)" in none
        assert "nothing travels" in local
        assert none.endswith("| 2026-11-26 to 2026-11-28 |")
        assert local.endswith("| 2026-11-26 |")
        assert " | - | " in local
    for words in set(grid.SCORES.values()):
        alike = [cell for cell in finished if grid.SCORES[cell["data"]] == words]
        grid.plot(alike, tmp_path / "leaks.png", words)
        assert (tmp_path / "leaks.png").stat().st_size > 10_000


def test_a_cell_that_lacks_a_later_attack_is_extended(tmp_path, monkeypatch):
    (cell,) = (cell for cell in grid.grid(1) if cell.key == "mnist-none-s0")
    later = "label counts"
    old = [finding(name, 60, 55) for name in grid.ATTACKS if name not in (later, "class mix out of the generator")]
    found = {"findings": old, "obstacles": {"class mix out of the generator": "nothing"}, "score": 90.0}
    assert grid.missing(cell, found) == [later]
    asked = {}

    def play_cell(cell, data, device, without):
        asked["without"] = set(without)
        said = {"findings": [finding(later, 70, 60)], "obstacles": {"class mix out of the generator": "changed"}}
        return said | {"date": "today", "score": 91.0, "seconds": 3.0, "config": {"record": ["last"]}}

    monkeypatch.setattr(grid, "play_cell", play_cell)
    made = grid.extended(cell, found, tmp_path, "cpu")
    assert asked["without"] == set(grid.ATTACKS) - {later}
    assert made["findings"] == [*old, finding(later, 70, 60)]
    assert made["obstacles"] == found["obstacles"]
    assert made["score"] == 90.0
    said = {"date": "today", "attacks": [later], "score": 91.0, "seconds": 3.0, "record": ["last"]}
    assert made["extended"] == [said]
    assert grid.missing(cell, made) == []


def test_verdicts_are_those_of_a_report():
    seen = finding("owner", 70, 60)
    cells = [
        {"data": "ytf68", "name": "none", "seed": 0, "findings": [seen], "obstacles": {"faces": "hidden"}},
        {"data": "ytf68", "name": "keyed", "seed": 0, "findings": [seen | {"low": 40.0}]},
        {"data": "ytf68", "name": "blind", "seed": 0, "findings": [seen | {"low": 40.0, "positive_control": 50.0}]},
        {"data": "ytf68", "name": "other", "seed": 1, "findings": [seen | {"attack": "faces"}]},
        {"data": "ytf68", "name": "local", "seed": 0, "findings": []},
    ]
    cells = [{"obstacles": {}} | cell for cell in cells]
    (table,) = grid.verdicts(cells)
    _, _, head, _, owner, faces = table.split("\n")
    assert head == "| attack | none, seed 0 | keyed, seed 0 | blind, seed 0 | other, seed 1 |"
    assert owner == "| owner | **leaks** | not found (0 of 1) | not shown to work (0 of 1) | not asked |"
    assert faces == "| faces | - | not asked | not asked | **leaks** |"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "nothing travels"),
        ([finding("owner", 70, 60)], "50 %, owner"),
        ([finding("owner", 70, 40)], "none found"),
        ([finding("owner", 70, 40, control=50.0)], "none found; 1 of 1 attacks not shown to work"),
        (
            [finding("owner", 70, 40, control=50.0), finding("faces", 70, 40), finding("linking of messages", 70, 40)],
            "none found; 1 of 2 attacks not shown to work",
        ),
    ],
)
def test_none_found_says_how_many_attacks_could_not_have_found_it(lines, words):
    assert grid.leak_words({"findings": lines}) == words


@pytest.mark.parametrize(
    ("lines", "obstacles", "words"),
    [
        ([], ("owner", "labels"), "-"),
        ([], (), "2 not asked"),
        ([("owner", 70.0, 60.0)], ("labels",), "**70.0** (60.0 to 100.0; 50.0)"),
        # Of two leaks the furthest from its chance.
        ([("owner", 70.0, 60.0), ("labels", 80.0, 75.0)], (), "**80.0** (75.0 to 100.0; 50.0)"),
        ([("owner", 70.0, 60.0)], (), "**70.0** (60.0 to 100.0; 50.0); 1 not asked"),
        ([("owner", 70.0, 40.0)], ("labels",), "not found"),
        ([("owner", 70.0, 40.0)], (), "not found; 1 not asked"),
        # An attack whose control fails says nothing: it is counted, not called private.
        ([("owner", 70.0, 40.0), ("labels", 70.0, 40.0, "fails")], (), "not found; 1 not shown to work"),
        ([("labels", 70.0, 40.0, "fails")], ("owner",), "1 not shown to work"),
    ],
)
def test_a_secret_in_short(monkeypatch, lines, obstacles, words):
    monkeypatch.setattr(grid, "SECRETS", {"a secret": ("owner", "labels")})
    found = []
    for attack, value, low, *fails in lines:
        control = 50.0 if fails else 90.0
        found.append(finding(attack, 90, 85, control=control, rung="easy"))
        found.append(finding(attack, value, low, control=control))
    cell = {"name": "m", "score": 91.94, "findings": found, "obstacles": dict.fromkeys(obstacles, "why")}
    row = grid.short_table([cell]).splitlines()[-1]
    assert row.startswith(f"| m | 91.9 | {words} | ")


def test_secrets_are_asked_for_by_attacks_that_exist():
    assert {name for names in grid.SECRETS.values() for name in names} <= set(grid.ATTACKS)
