import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from veilmark.faces.datasets import load_faces
from veilmark.run.checkpoints import read_tensors
from veilmark.run.errors import DataError
from veilmark.run.folder import RunError, RunFolder
from veilmark.sht.dhln_training import DHLNTraining, fit_calibration, mean_shape, train_dhln
from veilmark.sht.inference import predict
from veilmark.sht.pretrained import load_dhln
from veilmark.sht.protocol import ReferenceFaces, prepare_faces
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.training import Interrupted, Schedule, Trainer, learning_rate

NETWORK = {"size": 64, "structure_widths": (16, 32, 32), "detail_widths": (16, 32)}


def tiny(**schedule):
    return DHLNTraining.model_validate(
        {
            "network": NETWORK,
            "schedule": {"epochs": 3, "batch": 2, "validate_epochs": 3, "precision": "32-true", **schedule},
            "validate_sizes": (16, 64),
        }
    )


def test_a_training_leaves_weights_that_load_and_a_log(synthetic_ytf68, tmp_path):
    run = RunFolder(tmp_path / "run")
    trained = train_dhln(tiny(), synthetic_ytf68, run, tmp_path / "cache", resume=False)
    model = load_dhln(trained.weights)
    assert model.size == 64
    assert set(trained.figures) == {"16", "64"}
    assert 0 < trained.figures["16"]["nme"] < 100
    assert "psnr_gain" in trained.figures["16"]
    steps = [record["step"] for record in run.read_log() if "loss" in record]
    assert steps == [4, 8, 12]
    assert all(0 <= r["waiting_percent"] <= 100 for r in run.read_log() if "loss" in r)
    # The mean face of the training people is what the table's floor uses.
    cache = prepare_faces(load_faces("ytf68", synthetic_ytf68, "train").labelled, tmp_path / "cache", "train")
    torch.testing.assert_close(model.mean_shape, mean_shape(cache), atol=1e-3, rtol=0)


class _StopAt:
    """Ctrl-C after some steps: the signal that a person's keyboard sends."""

    def __init__(self, monkeypatch, step):
        original = Trainer._learn

        def learn(trainer, batch):
            losses = original(trainer, batch)
            if trainer.step == step:
                signal.raise_signal(signal.SIGINT)
            return losses

        monkeypatch.setattr(Trainer, "_learn", learn)


@pytest.mark.parametrize("step", [1, 4, 7])  # the first step, the end of an epoch, the middle of one
def test_an_interrupted_training_resumes_to_the_same_weights(synthetic_ytf68, tmp_path, monkeypatch, step):
    assert threading.current_thread() is threading.main_thread()
    cache = tmp_path / "cache"
    whole = train_dhln(tiny(), synthetic_ytf68, RunFolder(tmp_path / "whole"), cache, resume=False)
    with monkeypatch.context() as patch:
        _StopAt(patch, step)
        with pytest.raises(Interrupted):
            train_dhln(tiny(), synthetic_ytf68, RunFolder(tmp_path / "broken"), cache, resume=False)
    _, metadata = read_tensors(tmp_path / "broken" / "checkpoints" / "last.safetensors")
    assert metadata["step"] == str(step)
    again = train_dhln(tiny(), synthetic_ytf68, RunFolder(tmp_path / "broken"), cache, resume=True)
    one, _ = read_tensors(whole.weights / "model.safetensors")
    other, _ = read_tensors(again.weights / "model.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    steps = [record["step"] for record in RunFolder(tmp_path / "broken").read_log() if "loss" in record]
    assert steps == [4, 8, 12]


def test_any_number_of_readers_trains_the_same_weights(synthetic_ytf68, tmp_path):
    weights = []
    for readers in (1, 3, 20):
        run = RunFolder(tmp_path / str(readers))
        train_dhln(tiny(readers=readers), synthetic_ytf68, run, tmp_path / "cache", resume=False)
        weights.append(read_tensors(run.path / "weights" / "model.safetensors")[0])
    for other in weights[1:]:
        assert all(torch.equal(value, other[name]) for name, value in weights[0].items())


def test_a_killed_training_loses_at_most_the_last_interval(synthetic_ytf68, tmp_path):
    """SIGKILL at no chosen moment, as often as it takes: the run still ends with the unbroken run's weights."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    whole = train_dhln(
        tiny(checkpoint_minutes=1e-6, epochs=4), synthetic_ytf68, RunFolder(tmp_path / "whole"), cache, resume=False
    )
    sets = [
        f"network.size={NETWORK['size']}", "network.structure_widths=[16,32,32]", "network.detail_widths=[16,32]",
        "schedule.epochs=4", "schedule.batch=2", "schedule.validate_epochs=3", "schedule.precision=32-true",
        "schedule.checkpoint_minutes=1e-6", "validate_sizes=[16,64]", "schedule.lr=0.001", "schedule.ema=0.999",
    ]  # fmt: skip
    command = [sys.executable, "-m", "veilmark.cli", "train", "dhln-ytf68", "--data", str(synthetic_ytf68)]
    command += ["--out", str(run), "--cache", str(cache), *(part for s in sets for part in ("--set", s))]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = run / "checkpoints" / "last.safetensors"
    for _ in range(1200):
        if checkpoint.exists() or first.poll() is not None:
            break
        time.sleep(0.1)
    assert checkpoint.exists()
    first.kill()
    first.wait()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, _ = read_tensors(whole.weights / "model.safetensors")
    other, _ = read_tensors(run / "weights" / "model.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)


def test_a_run_is_not_overwritten_and_not_resumed_as_another(synthetic_ytf68, tmp_path):
    run, cache = RunFolder(tmp_path / "run"), tmp_path / "cache"
    train_dhln(tiny(epochs=1), synthetic_ytf68, run, cache, resume=False)
    with pytest.raises(RunError, match="holds a run already; add --resume"):
        train_dhln(tiny(epochs=1), synthetic_ytf68, run, cache, resume=False)
    with pytest.raises(RunError, match="differs from the settings given"):
        train_dhln(tiny(epochs=2), synthetic_ytf68, run, cache, resume=True)


def test_people_of_the_validation_must_be_others(synthetic_ytf68, tmp_path):
    config = tiny().model_copy(update={"data": tiny().data.model_copy(update={"select": "train"})})
    with pytest.raises(DataError, match="4 people are in both 'train' and 'train'"):
        train_dhln(config, synthetic_ytf68, RunFolder(tmp_path / "run"), tmp_path / "cache", resume=False)
    assert not (tmp_path / "run").exists()


def samples(root, cache, **config):
    prepared = prepare_faces(load_faces("ytf68", root, "train").labelled, cache, "train")
    return TrainingFaces(prepared, SampleConfig.model_validate(config), "ibug68", 64, seed=3)


def test_a_face_is_drawn_from_seed_epoch_and_face_alone(synthetic_ytf68, tmp_path):
    faces = samples(synthetic_ytf68, tmp_path)
    together, alone = faces.batch(2, np.array([5, 1, 3])), faces.batch(2, np.array([3]))
    torch.testing.assert_close(together.grid[2:], alone.grid)
    torch.testing.assert_close(together.points[2:], alone.points)
    assert not torch.equal(faces.batch(3, np.array([3])).grid, alone.grid)
    assert sorted(faces.order(0)) == list(range(8))
    assert list(faces.order(0)) != list(faces.order(1))


def test_training_points_follow_the_pixels(synthetic_ytf68, tmp_path):
    """Without augmentation a training face is the crop of the protocol, with its points."""
    still = {"rotation": 0, "zoom": 0, "shift": 0, "mirror": False, "colour": 0, "cover": 0}
    faces = samples(synthetic_ytf68, tmp_path, augmentation=still, no_face=0)
    reference = ReferenceFaces.from_cache(faces.cache, 64)
    batch = faces.batch(0, np.arange(8))
    np.testing.assert_allclose(batch.points / 64, reference.points, atol=1e-5)


def test_share_of_no_faces(synthetic_ytf68, tmp_path):
    faces = samples(synthetic_ytf68, tmp_path, no_face=0.5)
    shown = torch.cat([faces.batch(epoch, np.arange(8)).is_face for epoch in range(12)])
    assert 0.3 < float(shown.float().mean()) < 0.7
    none = samples(synthetic_ytf68, tmp_path, no_face=0.0)
    assert bool(none.batch(0, np.arange(8)).is_face.all())


def test_calibration_makes_the_mean_claim_the_mean_error(synthetic_ytf68, tmp_path, tiny_weights):
    model = load_dhln(tiny_weights)
    cache = prepare_faces(load_faces("ytf68", synthetic_ytf68, "train").labelled, tmp_path, "train")
    faces = ReferenceFaces.from_cache(cache, 64)
    fit_calibration(model, faces, (16, 64))
    claimed, observed = [], []
    for size in (16, 64):
        prediction = predict(model, faces.shrunk(size))
        claimed.append(prediction.expected_error)
        observed.append(np.linalg.norm(prediction.points - faces.points, axis=2))
    assert np.mean(claimed) / np.mean(observed) == pytest.approx(1, abs=0.1)


def test_learning_rate_rises_then_falls_to_nearly_zero():
    schedule = Schedule(lr=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, schedule) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert rates[55] == pytest.approx(0.5)


def test_two_stages_that_share_one_cosine_fall_as_one_stage_does():
    whole = [learning_rate(step, 100, Schedule(lr=1.0, warmup=0.0)) for step in range(1, 101)]
    parts = [Schedule(lr=1.0, warmup=0.0, span=span) for span in ((0.0, 0.5), (0.5, 1.0))]
    first, second = ([learning_rate(step, 50, part) for step in range(1, 51)] for part in parts)
    # The rise of each stage takes its first step; from the second on, the rates are those of one long fall.
    assert first[:-1] + second[:-1] == pytest.approx(whole[:49] + whole[50:-1], abs=0.02)
    assert first[-2] == pytest.approx(second[0], abs=0.05)
    assert max(second) < 0.51


@pytest.mark.parametrize("span", [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_a_span_that_is_no_part_of_the_cosine_is_refused(span):
    with pytest.raises(ValueError, match="0 <= start < end <= 1"):
        Schedule(span=span)


def test_a_training_in_bfloat16_runs_and_stays_finite(synthetic_ytf68, tmp_path):
    config = tiny(epochs=1, precision="bf16-mixed")
    trained = train_dhln(config, synthetic_ytf68, RunFolder(tmp_path / "run"), tmp_path / "cache", resume=False)
    assert np.isfinite(trained.figures["16"]["nme"])
