"""Both stages of SHT from a data set to weights, broken off anywhere and gone on with."""

import json
import re
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from veilmark.faces.datasets import load_faces
from veilmark.faces.images import read_image
from veilmark.faces.synthetic import write_dataset
from veilmark.run.checkpoints import read_tensors, write_tensors
from veilmark.run.errors import ConfigError, WeightsError
from veilmark.run.folder import RunFolder
from veilmark.sht.dhln import DHLN
from veilmark.sht.dhln_training import DHLNTraining, start_from
from veilmark.sht.fptn import FPTN
from veilmark.sht.inference import predict
from veilmark.sht.pretrained import load_dhln
from veilmark.sht.protocol import ReferenceFaces, prepare_faces
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.sht_training import Drift, SHTTraining, train_sht
from veilmark.sht.training import Interrupted, Trainer
from veilmark.sht.training_sets import open_sets

NETWORK = {"size": 64, "structure_widths": (16, 32, 32), "detail_widths": (16, 32), "painter_width": 16}
SCHEDULE = {"epochs": 2, "batch": 2, "validate_epochs": 1, "precision": "32-true"}
# 8 labelled faces in batches of 2: 4 steps an epoch, 8 a stage.


def tiny(**changes):
    values = {
        "network": NETWORK,
        "fptn": {"channels": 16, "painter_width": 16, "blocks": 2},
        "schedule": SCHEDULE,
        "joint_schedule": SCHEDULE,
        "pairs": {"per_step": 2},
        "joint": {"confident": 1.0},
        "unlabelled": {"error": 1.0, "trust": 0.0},
        "validate_sizes": (16, 64),
    }
    return SHTTraining.model_validate(values | changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(synthetic_ytf68, cache, tmp_path_factory):
    """An unbroken run."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    train_sht(tiny(), synthetic_ytf68, run, cache, resume=False)
    return run


def tensors(run, folder="weights"):
    return read_tensors(run.path / folder / "model.safetensors")[0]


def records(run, key="loss"):
    return [(record["step"], record["stage"]) for record in run.read_log() if key in record]


LOGGED = [(4, "detector"), (8, "detector"), (12, "joint"), (16, "joint")]


def test_both_stages_leave_weights_that_load_and_a_log(whole):
    assert load_dhln(whole.path / "weights").size == 64
    assert FPTN.from_pretrained(whole.path / "weights-transfer").size == 64
    assert records(whole) == records(whole, "validation") == LOGGED
    joint = next(record for record in whole.read_log() if record["stage"] == "joint" and "loss" in record)
    for part in ("points", "face", "transfer", "structure", "confident", "adversarial", "critic"):
        assert np.isfinite(joint[f"loss_{part}"]), part
    summary = json.loads((whole.path / "summary.json").read_text())
    assert summary["unlabelled"]["pictures"] == 4
    assert summary["pairs"] == "video"
    assert set(summary["drift"]) == {"drift", "common_drift"}
    transfer = FPTN.from_pretrained(whole.path / "weights-transfer")
    assert summary["transfer_parameters"] == sum(p.numel() for p in transfer.parameters())


def test_both_networks_learn_in_the_joint_stage(whole):
    before, _ = read_tensors(whole.checkpoints / "detector.safetensors")
    after, _ = read_tensors(whole.checkpoints / "joint.safetensors")
    moved = [name for name in before if name.startswith("average.") and name != "average.mean_shape"
             and not torch.equal(before[name], after[name.replace("average.", "average.dhln.")])]  # fmt: skip
    assert len(moved) > 0.9 * sum(name.startswith("average.") for name in before)
    assert after["average.fptn.correct.weight"].any()


def test_drift_and_sheets_are_written(whole):
    drawn = sorted(path.name for path in (whole.path / "transfers").iterdir())
    assert drawn == ["000012.png", "000016.png"]
    # Two pairs, one on either half: four faces of 64 px each.
    assert read_image(whole.path / "transfers" / drawn[0]).shape == (64, 2 * 4 * 64, 3)
    for record in whole.read_log():
        if "validation" in record:
            figures = record["validation"]
            joint = record["stage"] == "joint"
            assert ({"drift", "common_drift", "transfer_psnr", "copy_psnr"} <= set(figures["16"])) == joint
            assert "drift" not in figures["64"]
    assert figures["16"]["drift"] >= figures["16"]["common_drift"] > 0


class _StopAt:
    """Ctrl-C after some steps of a stage: the signal that a person's keyboard sends."""

    def __init__(self, monkeypatch, stage, step):
        original = Trainer._learn

        def learn(trainer, batch):
            losses = original(trainer, batch)
            if (trainer.stage, trainer.step) == (stage, step):
                signal.raise_signal(signal.SIGINT)
            return losses

        monkeypatch.setattr(Trainer, "_learn", learn)


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("detector", 3),  # in the middle of the first stage
        ("detector", 8),  # at the seam
        ("joint", 5),  # after the first validation of the second stage
    ],
)
def test_an_interrupted_training_resumes_to_the_same_weights(
    whole, synthetic_ytf68, cache, tmp_path, monkeypatch, stage, step
):
    assert threading.current_thread() is threading.main_thread()
    run = RunFolder(tmp_path / "broken")
    with monkeypatch.context() as patch:
        _StopAt(patch, stage, step)
        with pytest.raises(Interrupted):
            train_sht(tiny(), synthetic_ytf68, run, cache, resume=False)
    assert read_tensors(run.checkpoints / f"{stage}.safetensors")[1]["step"] == str(step)
    assert (run.checkpoints / "joint.safetensors").exists() == (stage == "joint")
    train_sht(tiny(), synthetic_ytf68, run, cache, resume=True)
    for folder in ("weights", "weights-transfer"):
        one, other = tensors(whole, folder), tensors(run, folder)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name
    assert records(run) == LOGGED
    assert records(run, "validation") == LOGGED


def test_a_stage_that_was_killed_before_its_first_checkpoint_logs_nothing_twice(
    synthetic_ytf68, cache, tmp_path, whole
):
    """The detector is done, the joint stage had begun to log, but left no checkpoint: it starts over."""
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/detector.safetensors"):
        (run.path / name).write_bytes((whole.path / name).read_bytes())
    train_sht(tiny(), synthetic_ytf68, run, cache, resume=True)
    assert records(run) == LOGGED
    assert torch.equal(tensors(run)["trust.weight"], tensors(whole)["trust.weight"])


# What is refused before any work


@pytest.fixture(scope="module")
def all_labelled(tmp_path_factory):
    """Every frame has its points."""
    root = tmp_path_factory.mktemp("labelled")
    write_dataset(root, "train", people=2, frames=2, size=96)
    write_dataset(root, "val", people=1, frames=1, first_person=250, size=96)
    return root


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, r"ytf68/train has no unlabelled face; .*--set unlabelled\.use=false"),
        ({"unlabelled": {"folder": "elsewhere"}}, r"unlabelled\.folder needs unlabelled\.layout and unlabelled\.split"),
        ({"network": NETWORK | {"detail": False}}, r"network\.detail is false.*train kind dhln"),
        ({"schedule": SCHEDULE | {"epochs": 0}}, r"schedule\.epochs is 0 and init is null"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(all_labelled, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        train_sht(tiny(**changes), all_labelled, RunFolder(tmp_path / "run"), tmp_path / "cache", resume=False)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_video_pairs_of_a_set_without_people_are_refused_and_warps_offered(all_labelled, tmp_path):
    """One frame of each person: nobody has a partner."""
    lonely = tmp_path / "lonely"
    write_dataset(lonely, "train", people=3, frames=1, size=96)
    write_dataset(lonely, "val", people=1, frames=1, first_person=250, size=96)
    config = tiny(unlabelled={"use": False})
    with pytest.raises(ConfigError, match=r"pairs\.kind is 'video', but .*use pairs\.kind=warp"):
        train_sht(config, lonely, RunFolder(tmp_path / "run"), tmp_path / "cache", resume=False)
    assert not (tmp_path / "run").exists()
    config = tiny(unlabelled={"use": False}, pairs={"kind": "warp", "per_step": 1},
                  schedule=SCHEDULE | {"epochs": 1}, joint_schedule=SCHEDULE | {"epochs": 1})  # fmt: skip
    trained = train_sht(config, lonely, RunFolder(tmp_path / "run"), tmp_path / "cache", resume=False)
    assert "transfer_psnr" in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert np.isfinite(trained.figures["16"]["nme"])


def test_another_set_can_bring_the_unlabelled_faces(all_labelled, synthetic_ytf68, tmp_path):
    """Its labels are not used: all of its faces take part without."""
    other = {"folder": synthetic_ytf68, "layout": "ytf68", "split": "train", "error": 1.0, "trust": 0.0}
    short = SCHEDULE | {"epochs": 1}
    config = tiny(unlabelled=other, schedule=short, joint_schedule=short, joint={"confident": 1.0, "teacher": 0.5})
    run = RunFolder(tmp_path / "run")
    train_sht(config, all_labelled, run, tmp_path / "cache", resume=False)
    assert json.loads((run.path / "summary.json").read_text())["unlabelled"]["pictures"] == 12
    assert "loss_teacher" in (run.path / "metrics.jsonl").read_text()


# What experiments change


def test_drift_tells_what_all_faces_have_in_common(synthetic_ytf68, cache, tiny_weights, monkeypatch):
    faces = ReferenceFaces.from_cache(
        prepare_faces(load_faces("ytf68", synthetic_ytf68, "train").labelled, cache, "train"), 64
    )
    model = load_dhln(tiny_weights)
    drift = Drift(faces, 16)
    with pytest.raises(RuntimeError, match="begin"):
        drift.figures(model)
    drift.begin(model)
    assert drift.figures(model) == {"drift": 0, "common_drift": 0}
    inter_ocular = np.linalg.norm(faces.points[:, 36] - faces.points[:, 45], axis=1)
    start = predict(model, faces.shrunk(16), mirror=False)

    def moved(steps):
        """All points of a face moved right, by these shares of its inter-ocular distance."""
        points = start.points + (np.asarray(steps) * inter_ocular)[:, None, None] * [1, 0]
        monkeypatch.setattr("veilmark.sht.sht_training.predict", lambda *args, **options: replace(start, points=points))
        return drift.figures(model)

    assert moved(np.full(8, 0.03)) == pytest.approx({"drift": 3, "common_drift": 3})
    assert moved(np.tile([0.03, -0.03], 4)) == pytest.approx({"drift": 3, "common_drift": 0}, abs=1e-6)


def faces_with(root, cache, **config):
    prepared = prepare_faces(load_faces("ytf68", root, "train").labelled, cache, "train")
    still = {"rotation": 0, "zoom": 0, "shift": 0, "mirror": False, "colour": 0, "cover": 0}
    options = {"augmentation": still, "no_face": 0, **config}
    return TrainingFaces(prepared, SampleConfig.model_validate(options), "ibug68", 64, seed=3)


def test_jittered_labels_are_wrong_by_what_was_asked_and_always_alike(synthetic_ytf68, cache):
    plain, jittered = (faces_with(synthetic_ytf68, cache, label_jitter=j) for j in (0, 4))
    everything = np.arange(8)
    error = jittered.batch(0, everything).points - plain.batch(0, everything).points
    # 4 px of a 128-px crop are 2 px of this grid.
    assert float(error.std()) == pytest.approx(2, rel=0.1)
    assert abs(float(error.mean())) < 0.2
    later = jittered.batch(7, everything[::-1].copy()).points.flip(0) - plain.batch(7, everything).points
    torch.testing.assert_close(later, error, atol=1e-3, rtol=0)
    assert not torch.allclose(error[0], error[1], atol=0.5)


@pytest.mark.parametrize(("share", "people"), [(1.0, 4), (0.5, 2), (0.25, 1), (0.01, 1)])
def test_labels_are_withheld_by_person(synthetic_ytf68, share, people):
    sets = open_sets(DHLNTraining.model_validate({"data": {"labelled_people": share}}), synthetic_ytf68)
    assert len(sets.people) == len({face.person for face in sets.labelled}) == people
    assert len(sets.labelled) == 2 * people
    # The others' faces go on without their points, beside the four that never had any.
    assert len(sets.withheld) == 2 * (4 - people) + 4
    assert all(face.points is None for face in sets.withheld)
    hidden = {face.person for face in sets.withheld if re.search("_a", face.name)}
    assert not hidden & set(sets.people)
    again = open_sets(DHLNTraining.model_validate({"data": {"labelled_people": share}}), synthetic_ytf68)
    assert again.people == sets.people


def test_who_is_labelled_follows_the_seed(synthetic_ytf68):
    chosen = {
        tuple(
            open_sets(
                DHLNTraining.model_validate({"seed": s, "data": {"labelled_people": 0.5}}), synthetic_ytf68
            ).people
        )
        for s in range(6)
    }
    assert len(chosen) > 1


def test_a_training_can_start_from_other_weights(tmp_path, capsys):
    torch.manual_seed(0)
    source, model = DHLN(**NETWORK), DHLN(**NETWORK | {"painter_width": 32})
    source.save_pretrained(tmp_path / "weights")
    start_from(model, str(tmp_path / "weights"))
    own = source.state_dict()
    taken = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, own[name])]
    assert "structure_stem.layers.1.weight" in taken
    assert "finish.look.0.weight" not in taken
    assert f"{len(own)} tensors" in " ".join(capsys.readouterr().err.split())
    write_tensors(tmp_path / "strange" / "model.safetensors", {"trust.weight": torch.zeros(3, 5)})
    with pytest.raises(WeightsError, match=r"init: \d+ of this network's \d+ tensors fit"):
        start_from(model, str(tmp_path / "strange"))
