"""Pictures by batch size: every cell has a config, compressed updates are made whole, scores are those of best matches."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from tiny_federations import config, play
from veilmark.audit import feature_inversion, inversion_ladder
from veilmark.audit.inversion_ladder import InversionOfClassifier
from veilmark.audit.record import read_record

SCRIPT = Path(__file__).parents[2] / "benchmarks/inversion_batches.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("inversion_batches", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["inversion_batches"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["inversion_batches"]


def pictures(count, seed):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_every_cell_is_one_step_of_its_batch(script):
    cells = script.grid()
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells:
        made = cell.config(1)
        assert (made.training.local_steps, made.training.batch, made.rounds) == (1, cell.batch, 1)
        assert made.data.per_client >= cell.batch
        assert made.method == cell.method


def test_compressed_updates_are_attacked_as_whole_ones(script, tmp_path):
    run = play(tmp_path / "gc", config(method="gc", rounds=1, training__local_steps=1, options={"gc": {"keep": 0.1}}))
    record = read_record(run.path / "transcript")
    assert InversionOfClassifier().obstacle(record) is None
    before, after = record.rounds[0].broadcast, record.rounds[0].updates[0].tensors
    name = "classifier.layers.1.weight"
    moved = (after[name] != before[name]).float().mean()
    assert 0 < moved <= 0.1001


def test_one_picture_is_scored_against_the_nearest_of_its_batch(script):
    true, strangers = pictures(3, 0), pictures(5, 1)
    strangers[2] = true[0] + 0.01
    row, said = script.nearest(true[1:2] + 0.1, true, strangers)
    assert row == 1
    assert said.psnr[0] == pytest.approx(26.02, abs=0.01)
    # A stranger that is near to another picture of the batch is a lucky guess all the same.
    assert said.chance_psnr[0] == pytest.approx(46.02, abs=0.01)
    assert said.chance_ssim[0] > 0.9


def test_of_ppidsg_the_generator_is_attacked_and_its_step_has_as_many_pictures(script, monkeypatch):
    monkeypatch.setattr(inversion_ladder, "GENERATOR_STEPS", 1)
    monkeypatch.setattr(script, "FEDERATIONS", {2: 1})
    monkeypatch.setitem(script.PUBLIC, "digits", 20)
    monkeypatch.setitem(script.PROTOCOL, "clients", 1)
    said, true, made = script.play_cell(script.Cell("digits", "ppidsg", 2), None)
    assert list(said["attacks"]) == ["gradient inversion of the generator"]
    assert true.shape == made.shape == (2, 1, 28, 28)
    assert said["config"]["options"]["ppidsg"]["extractor"] == "fixed"


def test_cells_are_played_once_and_the_sheet_is_drawn(script, tmp_path, monkeypatch):
    monkeypatch.setattr(inversion_ladder, "STEPS", 2)
    monkeypatch.setattr(feature_inversion, "DECODER_STEPS", 2)
    monkeypatch.setattr(script, "FEDERATIONS", {2: 1})
    monkeypatch.setitem(script.PUBLIC, "digits", 20)
    monkeypatch.setattr(script, "DLG_STEPS", 1)
    monkeypatch.setattr(script, "COSINE_STEPS", 1)
    monkeypatch.setattr(script, "METHODS", {"none": ("none", ())})
    monkeypatch.setitem(script.PROTOCOL, "clients", 1)
    monkeypatch.setitem(script.DATA, "head_widths", [16, 8])
    file, sheet = tmp_path / "found.json", tmp_path / "sheet.png"
    words = ["inversion_batches", "--results", str(file)]
    monkeypatch.setattr(sys, "argv", [*words, "--sheet", str(sheet)])
    script.main()
    assert sheet.exists()
    said = json.loads(file.read_text())["digits-none-2"]
    assert said["attacks"]["gradient inversion"]["pictures"] == 2
    assert said["attacks"]["pictures from updates"]["pictures"] == 1
    papers = ["DLG", "iDLG", "cosine and total variation"]
    assert [said["attacks"][name]["pictures"] for name in papers] == [2, 2, 2]
    assert "| digits | none | 2 | gradient inversion | 2 |" in script.table({"digits-none-2": said})
    monkeypatch.setattr(script, "play_cell", lambda *words: 1 / 0)
    monkeypatch.setattr(sys, "argv", words)
    script.main()
