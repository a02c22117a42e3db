"""Every recipe of a published set: trained on a tiny set in its layout, then scored as its papers score."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from published_layouts import INVISIBLE, TEST, TINY_SETS, TRAIN, WFLW_LISTS
from veilmark.cli import app
from veilmark.faces.datasets import aflw, load_faces
from veilmark.landmarks.schemes import get_scheme
from veilmark.report import plots
from veilmark.run.checkpoints import read_tensors
from veilmark.run.config import load_recipe, override, recipe_names
from veilmark.run.errors import ConfigError, DataError
from veilmark.sht.dhln import DHLN
from veilmark.sht.losses import Batch, DHLNLoss, Weights
from veilmark.sht.pretrained import load_dhln, weights_folder
from veilmark.sht.protocol import prepare_faces
from veilmark.sht.recipes import resolve_recipe
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.training_sets import LandmarkTraining, TrainingSets, open_sets

LANDMARKS = {"sht-wflw": "wflw", "sht-cofw": "cofw", "sht-aflw": "aflw", "sht-300w": "300w"}
HALLUCINATION = {"hallucinate-celeba": "celeba", "hallucinate-helen": "helen"}

BOTH = [
    "network.size=64", "network.stages=2", "network.structure_widths=[16,32,32]", "network.detail_widths=[16,32]",
    "network.painter_width=16", "samples.sizes=[16,64]", "validate_sizes=[16,64]", "schedule.epochs=1",
    "schedule.batch=2", "schedule.validate_epochs=1", "schedule.device=cpu", "schedule.precision=32-true",
]  # fmt: skip
TINY = {
    "sht": [
        *BOTH, "fptn.channels=16", "fptn.blocks=1", "fptn.painter_width=16", "pairs.per_step=2",
        "joint.confident=1.0", "joint_schedule.epochs=1", "joint_schedule.batch=2",
        "joint_schedule.validate_epochs=1",
    ],
    "dhln": [*BOTH, "init=null"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The first 20,000 faces of AFLW train; of the tiny set it is the first few. Coarse charts are drawn sooner."""
    monkeypatch.setattr(aflw, "TRAIN_FACES", TRAIN)
    monkeypatch.setattr(plots, "_DPI", 50)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a layout's tiny set, written once."""
    folders: dict[str, Path] = {}

    def folder(layout: str) -> Path:
        if layout not in folders:
            folders[layout] = tmp_path_factory.mktemp(f"tiny-{layout}")
            TINY_SETS[layout].write(folders[layout])
        return folders[layout]

    return folder


def settings(recipe: str, *more: str) -> list[str]:
    """What makes a recipe tiny, as a user would write it."""
    return [*TINY[load_recipe(recipe)["kind"]], *more]


def start(*arguments: object) -> tuple[BaseException | None, str]:
    """Runs ``veilmark ...``: the error, if there was one, and what a person would read."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = None if isinstance(done.exception, SystemExit) else done.exception
    return error, " ".join(done.output.split())


def train(recipe: str, data: Path, out: Path, *more: str) -> tuple[BaseException | None, str]:
    chosen = [part for setting in settings(recipe, *more) for part in ("--set", setting)]
    return start("train", recipe, "--data", data, "--out", out, "--cache", out.parent / "cache", *chosen)


def evaluate(layout: str, data: Path, weights: Path, out: Path, *more: str) -> tuple[str, dict]:
    error, text = start(
        "evaluate", "--data", data, "--layout", layout, "--split", TINY_SETS[layout].test, "--weights", weights,
        "--no-finder-rows", "--device", "cpu", "--cache", out.parent / "cache", "--out", out, *more,
    )  # fmt: skip
    assert error is None, text
    return text, json.loads((out / "metrics.json").read_text())


def config_of(recipe: str, *more: str) -> LandmarkTraining:
    return resolve_recipe(override(load_recipe(recipe), settings(recipe, *more)), recipe)[0]


def sets_of(recipe: str, data: Path, *more: str) -> TrainingSets:
    return open_sets(config_of(recipe, *more), data)


# End to end


@pytest.mark.parametrize(("recipe", "layout"), LANDMARKS.items())
def test_a_landmark_recipe_trains_and_is_scored_as_papers_score(recipe, layout, tiny, tmp_path):
    run, scored = tmp_path / "run", tmp_path / "scored"
    error, text = train(recipe, tiny(layout), run)
    assert error is None, text
    summary = json.loads((run / "summary.json").read_text())
    # One of the pictures chose and calibrated, the others taught.
    assert (summary["faces"], summary["people"], summary["pairs"]) == (TRAIN - 1, TRAIN - 1, "warp")
    assert summary["skipped"] == {}
    figures = summary["validation"]
    assert set(figures) == {"16", "64"}
    assert all(np.isfinite(value) for row in figures.values() for value in row.values())
    assert {"drift", "transfer_psnr"} <= set(json.loads(_last_validation(run))["validation"]["16"])
    text, metrics = evaluate(layout, tiny(layout), run / "weights", scored)
    assert "as papers print it, at 64 px" in text
    table = metrics["published"]
    assert tuple(row["subset"] for row in table) == TINY_SETS[layout].rows
    assert table[0]["n"] == TEST
    protocol = load_faces(layout, tiny(layout), TINY_SETS[layout].test).protocol
    for row in table:
        assert list(row) == ["subset", "n", *(column.label for column in protocol.columns)]
        for column in protocol.columns:
            assert f"{row[column.label]:.2f}" in text
            assert 0 <= row[column.label] < (np.inf if column.figure == "nme" else 100.1)
    assert metrics["protocol"]["normalisation"] == protocol.normalisations[protocol.usual]
    assert metrics["hallucination"] == []
    # The same table, with its length, in the report.
    report = unescape((scored / "report.html").read_text())
    for column in protocol.columns:
        assert column.label in report
    assert protocol.normalisations[protocol.usual] in report


def _last_validation(run: Path) -> str:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"validation"' in line][-1]


@pytest.mark.parametrize(("recipe", "layout"), HALLUCINATION.items())
def test_a_hallucination_recipe_trains_and_is_scored_by_its_pictures(recipe, layout, tiny, tmp_path):
    run = tmp_path / "run"
    error, text = train(recipe, tiny(layout), run)
    assert error is None, text
    summary = json.loads((run / "summary.json").read_text())
    assert summary["faces"] == len(sets_of(recipe, tiny(layout)).labelled) > 1
    assert set(summary["validation"]) == {"16"}  # at 64 px nothing is left to hallucinate
    assert set(summary["validation"]["16"]) == {"psnr", "psnr_gain"}
    _, metrics = evaluate(layout, tiny(layout), run / "weights", tmp_path / "scored", "--sizes", "16,32")
    assert [(row["size"], row["n"]) for row in metrics["hallucination"]] == [(16, TEST), (32, TEST)]
    assert (metrics["landmarks"], metrics["published"]) == ([], [])
    assert "normalisation" not in metrics["protocol"]


def test_98_points_teach_a_network_of_68(tiny, tmp_path):
    error, text = train("sht-wflw", tiny("wflw"), tmp_path / "run", "network.scheme=ibug68")
    assert error is None, text
    weights = tmp_path / "run" / "weights"
    assert load_dhln(weights).scheme == "ibug68"
    _, metrics = evaluate("wflw", tiny("wflw"), weights, tmp_path / "scored")
    assert metrics["protocol"]["points"].startswith("the 98 points of wflw98 turned into the 68 of ibug68")
    assert metrics["published"][0]["n"] == TEST


def test_other_unlabelled_faces_make_pairs_beside_a_labelled_set(tiny, tmp_path):
    error, text = train(
        "sht-wflw", tiny("wflw"), tmp_path / "run", "unlabelled.use=true", "unlabelled.layout=celeba",
        f"unlabelled.folder={tiny('celeba')}", "unlabelled.split=train", "unlabelled.finder=none",
        "unlabelled.trust=0", "unlabelled.error=1.0",
    )  # fmt: skip
    assert error is None, text
    unlabelled = json.loads((tmp_path / "run" / "summary.json").read_text())["unlabelled"]
    assert unlabelled == {"pictures": TRAIN - 1, "found": 100, "kept": 100}


# What the recipes say


@pytest.mark.parametrize(("recipe", "layout"), LANDMARKS.items())
def test_a_landmark_recipe_has_the_scheme_of_its_set(recipe, layout, tiny):
    values = load_recipe(recipe)
    faces = load_faces(values["data"]["layout"], tiny(layout), values["data"]["train"])
    assert values["network"]["scheme"] == faces.scheme
    # The largest faces that are drawn and validated are those that the network can tell apart.
    assert values["samples"]["sizes"][1] == max(values["validate_sizes"]) == values["network"]["size"]


@pytest.mark.parametrize("recipe", HALLUCINATION)
def test_a_hallucination_recipe_starts_from_packaged_landmarks(recipe):
    config = resolve_recipe(load_recipe(recipe), recipe)[0]
    given, _ = read_tensors(weights_folder(config.init) / "model.safetensors")
    own = DHLN(**config.network.model_dump()).state_dict()
    for part in ("structure_stem.", "structure.", "heatmap.", "again.", "guide.", "error.", "trust."):
        shapes = {name: tensor.shape for name, tensor in own.items() if name.startswith(part)}
        assert shapes
        assert {name: given[name].shape for name in shapes} == shapes
    # Without no-faces trust would learn to say yes to everything, and what nothing teaches would only decay.
    assert (config.samples.no_face, config.losses.trust, config.schedule.weight_decay) == (0, 0, 0)


def test_the_page_of_recipes_says_what_the_recipes_are(capsys):
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    exec(compile(program, "docs/recipes.md", "exec"), {})
    printed = {name: figures for name, *figures in map(str.split, capsys.readouterr().out.splitlines())}
    assert sorted(printed) == [name for name in recipe_names() if load_recipe(name)["kind"] != "federation"]
    table = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:3] == "| `"]
    assert {row[0]: row[3:7] for row in table} == {
        name: [*figures[:2], *(f"{int(count):,}" for count in figures[2:]), *["none"] * (4 - len(figures))]
        for name, figures in printed.items()
    }
    for name, layout, points, *_ in table:
        values = load_recipe(name)
        assert values["data"]["layout"] == layout
        if values["kind"] == "sht" and "network" in values:
            assert len(get_scheme(values["network"]["scheme"])) == int(points)


# Who chooses and calibrates


def held_out(sets: TrainingSets) -> set[str]:
    return {face.person or face.name for face in sets.others}


@pytest.mark.parametrize(
    ("recipe", "share", "expected"),
    [
        ("sht-wflw", 0.05, 1),  # never nobody
        ("sht-cofw", 0.5, 3),
        ("sht-aflw", 0.34, 2),
        ("sht-300w", 0.5, 3),
        ("hallucinate-helen", 0.5, 3),
        ("hallucinate-celeba", 0.5, 1),  # five pictures of two people
    ],
)
def test_held_out_people_are_others_and_the_seed_says_who(recipe, share, expected, tiny):
    layout = (LANDMARKS | HALLUCINATION)[recipe]
    data = tiny(layout)
    chosen = sets_of(recipe, data, f"data.held_out={share}")
    assert len(held_out(chosen)) == expected
    assert not held_out(chosen) & {face.person or face.name for face in chosen.labelled}
    everybody = load_faces(layout, data, "train")
    assert {face.name for face in chosen.others + chosen.labelled} == {
        face.name for face in everybody.labelled + everybody.unlabelled
    }
    again = sets_of(recipe, data, f"data.held_out={share}")
    assert [face.name for face in again.others] == [face.name for face in chosen.others]
    seeds = [held_out(sets_of(recipe, data, f"data.held_out={share}", f"seed={seed}")) for seed in range(1, 6)]
    assert any(other != held_out(chosen) for other in seeds)


def _write(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(b"broken")


@pytest.mark.parametrize(
    ("recipe", "damage"),
    [
        ("sht-wflw", _write(f"{WFLW_LISTS}/list_98pt_rect_attr_test.txt")),
        ("sht-cofw", _write("COFW_test_color.mat")),
        ("sht-300w", _write("ibug/c.pts")),
        ("hallucinate-helen", _write("testnames.txt")),
        # One list for all splits: the pictures of the test split are gone.
        ("sht-aflw", lambda root: [path.unlink() for path in root.rglob(f"image{TRAIN:05d}.jpg")]),
        ("hallucinate-celeba", lambda root: [path.unlink() for path in root.rglob(f"{TRAIN + 1:06d}.jpg")]),
    ],
)
def test_the_test_split_is_not_read(recipe, damage, tmp_path):
    layout = (LANDMARKS | HALLUCINATION)[recipe]
    TINY_SETS[layout].write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError):
        load_faces(layout, tmp_path, TINY_SETS[layout].test)
    assert sets_of(recipe, tmp_path).labelled


# Points that cannot be seen


def aflw_batch(tiny, tmp_path, moved: tuple[int, ...]) -> tuple[Batch, DHLNLoss]:
    """One batch of AFLW's training faces, the labels of the first face's points ``moved`` far off."""
    faces = load_faces("aflw", tiny("aflw"), "train").labelled
    config = SampleConfig(no_face=0, augmentation={"mirror": False})
    # The crop is the annotated points' box, so the labels move after it was taken.
    samples = TrainingFaces(prepare_faces(faces, tmp_path, "faces", 64), config, "aflw19", 64, seed=0)
    batch = samples.batch(0, np.arange(TRAIN))
    points = batch.points.clone()
    points[0, list(moved)] += 20
    return replace(batch, points=points), DHLNLoss(Weights(), "aflw19", 64, 4)


def loss_of(batch: Batch, loss: DHLNLoss) -> dict[str, float]:
    torch.manual_seed(0)
    model = DHLN(scheme="aflw19", size=64, structure_widths=(16, 32, 32), detail_widths=(16, 32))
    with torch.no_grad():
        parts = loss(model(batch.grid), batch)
    return {"total": float(parts.total)} | {name: float(value) for name, value in parts.parts.items()}


def test_invisible_labels_teach_nothing(tiny, tmp_path):
    before = loss_of(*aflw_batch(tiny, tmp_path, ()))
    assert loss_of(*aflw_batch(tiny, tmp_path, INVISIBLE)) == before
    seen = loss_of(*aflw_batch(tiny, tmp_path, (INVISIBLE[0] + 1,)))
    assert all(seen[name] != before[name] for name in ("points", "heatmaps", "claim", "total"))


@pytest.mark.parametrize("corner", get_scheme("aflw19").inter_ocular)
def test_an_invisible_eye_corner_teaches_nothing(corner, tiny, tmp_path):
    """Nor does it set the length that the errors of the others are divided by."""
    losses = []
    for moved in ((), (corner,)):
        batch, loss = aflw_batch(tiny, tmp_path, moved)
        visible = batch.visible.clone()
        visible[0, corner] = False
        losses.append(loss_of(replace(batch, visible=visible), loss))
    assert losses[0] == losses[1]


# What is refused


@pytest.mark.parametrize(
    ("recipe", "more", "words"),
    [
        # Nobody would choose.
        ("sht-wflw", ["data.held_out=0"], ["data.select is None and data.held_out 0", "give a split, or null"]),
        # Both would.
        ("sht-wflw", ["data.select=test"], ["data.select is 'test' and data.held_out 0.05"]),
        ("hallucinate-celeba", ["data.select=val"], ["data.select is 'val' and data.held_out 0.02"]),
        # The joint stage needs landmarks.
        (
            "sht-wflw",
            ["data.layout=helen"],
            ["helen/train has no landmarks", "give a labelled set as --data", "--set unlabelled.folder=DIR"],
        ),
        # Points that cannot be had.
        ("sht-cofw", ["network.scheme=ibug68"], ["cofw29 cannot be turned into points of ibug68"]),
        ("sht-300w", ["network.scheme=wflw98"], ["ibug68 cannot be turned into points of wflw98"]),
        ("sht-wflw", ["network.scheme=wflw89"], ["wflw89", "wflw98"]),
        # Other faces, from where?
        (
            "sht-wflw",
            ["unlabelled.use=true", "unlabelled.folder=celeba"],
            ["unlabelled.folder needs unlabelled.layout and unlabelled.split"],
        ),
        ("sht-wflw", ["unlabelled.use=true"], ["wflw/train has no unlabelled face", "unlabelled.use=false"]),
        ("sht-wflw", ["unlabelled.folder=celeba"], ["unlabelled.use is false; add --set unlabelled.use=true"]),
        # Nothing to learn, nobody to learn from, nothing to compare with.
        ("hallucinate-helen", ["network.detail=false"], ["helen/train has no landmarks, and network.detail is false"]),
        ("sht-wflw", ["data.held_out=0.99"], ["data.held_out is 0.99", "none of 6 people"]),
        ("sht-wflw", ["validate_sizes=[16,256]"], ["validate_sizes has 256, but network.size is 64"]),
        # No face of WFLW says whose it is, and there are no other faces.
        ("sht-wflw", ["pairs.kind=video"], ["pairs.kind is 'video'", "pairs.kind=warp"]),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(recipe, more, words, tiny, tmp_path):
    layout = "helen" if "data.layout=helen" in more else (LANDMARKS | HALLUCINATION)[recipe]
    error, _ = train(recipe, tiny(layout), tmp_path / "run", *more)
    assert isinstance(error, ConfigError)
    for text in words:
        assert text in str(error)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_two_faces_of_one_picture_are_not_one_person(tmp_path):
    """WFLW names nobody: its unit of people is the picture."""
    TINY_SETS["wflw"].write(tmp_path)
    listed = tmp_path / WFLW_LISTS / "list_98pt_rect_attr_train.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([*lines, *lines]) + "\n")
    error, _ = train("sht-wflw", tmp_path, tmp_path / "run", "pairs.kind=person")
    assert isinstance(error, ConfigError)
    assert "pairs.kind is 'person', but no two of the 10 faces are of one person" in str(error)
