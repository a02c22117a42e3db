"""The grid of the remedies: every cell has a config, and the questions of its own answer where the answer is known."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from tiny_federations import config
from veilmark.audit.audits import ATTACKS
from veilmark.ppidsg.cipher import Cipher

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    remedies = importlib.import_module("remedies")


def bars(count, seed=0):
    """Pictures with a bright bar, lying or upright, somewhere."""
    generator = torch.Generator().manual_seed(seed)
    pictures = -torch.ones(count, 1, 16, 16)
    for picture in pictures:
        lying, at = torch.randint(0, 2, (1,), generator=generator), int(torch.randint(0, 13, (1,), generator=generator))
        (picture[:, at : at + 3] if lying else picture[..., at : at + 3]).fill_(1)
    return pictures


def test_every_cell_has_a_config():
    cells = remedies.grid(2, mnist=True)
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        made = cell.config()
        assert made.seed == cell.seed
        assert set(made.recorded()) == {1, made.rounds}
        made.made_method()
    assert not any(cell.data == "mnist" for cell in remedies.grid(2, mnist=False))


def test_nothing_but_gray_is_left_of_a_picture_whose_key_nobody_knows():
    """The best answer for this very picture is no better than one for all; with one key for all there is a right one."""
    found = remedies.gray(bars(20), 4, keys=80)
    assert found.spread < 0.2 * found.spread_x
    assert found.median == pytest.approx(found.constant, rel=0.05)
    assert found.median >= 0.98 * found.gray


def test_where_keys_only_turn_blocks_something_is_left(monkeypatch):
    """Control: where keys change little, the best answer for a picture is better than gray."""
    monkeypatch.setattr(remedies, "Cipher", lambda secret, block: Cipher(secret, block, ["rotate"]))
    found = remedies.gray(bars(20), 4, keys=80)
    assert found.median < 0.8 * found.gray
    assert found.median < 0.8 * found.constant
    assert found.spread > 0.3 * found.spread_x


def test_a_cell_says_what_its_tables_print(tmp_path, monkeypatch):
    """Two federations that take seconds; the slow attacks are left out."""
    monkeypatch.setattr(remedies, "RUNS", tmp_path / "runs")
    slow = [name for name in ATTACKS if name.startswith(("membership", "pictures", "candidates", "class mix"))]
    monkeypatch.setattr(remedies, "LEFT_OUT", (*remedies.LEFT_OUT, *slow))
    monkeypatch.setattr(ATTACKS["key out of the generator"], "steps", 1)
    scopes = {"G": "federation", "a key of each client": "client"}
    monkeypatch.setattr(
        remedies.Cell, "config", lambda cell: config(method="ppidsg", options__ppidsg__scope=scopes[cell.name])
    )
    results = tmp_path / "results"
    results.mkdir()
    cells = [remedies.Cell("digits", name, 0) for name in scopes]
    for cell in cells:
        (results / f"{cell.key}.json").write_text(json.dumps(remedies.play_cell(cell, None)))
    common, own = remedies.finished(cells, results)
    assert any(line["rung"] == "1 leaked pair of one client's key" for line in own["findings"])
    table = remedies.remedies_table([common, own])
    rows = [row.split(" | ") for row in table.splitlines()]
    assert len({len(row) for row in rows}) == 1
    key = rows[0].index("key out of the released G")
    assert rows[2][key] != "-"
    assert rows[3][key] == "-"
    assert rows[3][rows[0].index("one leaked pair")] != "-"
    assert len(remedies.parts_table([common]).splitlines()) == 3
    price = [row.split(" | ") for row in remedies.price_table([common, own]).splitlines()]
    assert {len(row) for row in price} == {len(price[0])}
    assert price[2][price[0].index("accuracy %")] == f"{common['accuracy']['mean']:.1f}"


def test_what_leaks_is_bold():
    """An attack's verdict, which its figures beyond chance, its control and noise make; nothing else is bold."""
    line = {
        "attack": "membership behind the share", "threat_model": "curious-client", "method": "ppidsg",
        "dataset": "digits", "seed": 0, "n": 600, "metric": "area under the curve", "unit": "%", "chance": 50.0,
        "positive_control": 98.0, "negative_control": 50.0,
    }  # fmt: skip
    learned = line | {"rung": "learned by heart", "value": 98.0, "low": 95.0, "high": 100.0}
    leaking = line | {"rung": "as it was", "value": 60.0, "low": 57.0, "high": 63.0}
    silent = line | {"rung": "as it was", "value": 51.0, "low": 48.0, "high": 54.0}
    for real, said in ((leaking, "**60.0 (57.0 to 63.0; 50.0)**"), (silent, "51.0 (48.0 to 54.0; 50.0)")):
        cell = {"findings": [learned, real], "own": [real | {"attack": "own key"}]}
        assert remedies._said(cell, "membership behind the share") == said
        assert "*" not in remedies._said(cell, "own key")
    assert remedies._said({"findings": [], "own": []}, "own key") == "-"
