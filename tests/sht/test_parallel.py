"""Several processes train one network: the weights of one process, a common end, and refusals before any starts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from veilmark.cli import main
from veilmark.run.checkpoints import read_tensors
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.folder import RunError, RunFolder
from veilmark.sht.dhln import DHLN
from veilmark.sht.discriminators import Discriminators
from veilmark.sht.fptn import FPTN
from veilmark.sht.joint import SHT, JointBatch, JointLoss, JointWeights
from veilmark.sht.losses import Batch, DHLNLoss, Weights
from veilmark.sht.parallel import any_process, ending_together, means, range_of
from veilmark.sht.recipes import start_training
from veilmark.sht.schedule import Schedule
from veilmark.sht.training import Trainer, make_fabric

TINY = {"size": 64, "structure_widths": (16, 32, 32), "detail_widths": (16, 32)}
SCHEDULE = {"epochs": "1", "batch": "4", "precision": "32-true", "device": "cpu", "lr": "0.001"}
COMMON = [
    "network.size=64", "network.structure_widths=[16,32,32]", "network.detail_widths=[16,32]", "validate_sizes=[16]",
    "samples.no_face=0.5", *(f"schedule.{key}={value}" for key, value in SCHEDULE.items()),
]  # fmt: skip
JOINT = [
    "fptn.channels=16", "fptn.blocks=2", "fptn.painter_width=16", "pairs.per_step=2",
    # Every pair and every pseudo label counts, however unsure this network is.
    "joint.confident=10", "joint.teacher=0.1",
    *(f"joint_schedule.{key}={value}" for key, value in SCHEDULE.items()),
]  # fmt: skip
LIMIT = 240
"""Seconds after which processes that hang are ended and fail their test."""


pytestmark = pytest.mark.usefixtures("one_thread")


def verb(recipe, data, out, cache, settings, *more):
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["train", recipe, "--data", str(data), "--out", str(out), "--cache", str(cache), *sets, *more]


def train_alone(recipe, data, out, cache, settings, resume=False):
    _, start = start_training(recipe, settings)
    start(data, RunFolder(out), cache, resume)


@contextmanager
def started(command, **environment):
    """A command in a process group of its own, of which nothing is left at the end, however it ends."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    try:
        yield process
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def group_lives(leader):
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def distance(one, other, stage, part, suffix=""):
    """Distance of two runs' checkpoints as a share of their length."""
    vectors = []
    for run in (one, other):
        tensors, _ = read_tensors(run / "checkpoints" / f"{stage}.safetensors")
        chosen = [tensors[key].flatten() for key in sorted(tensors) if key.startswith(part) and key.endswith(suffix)]
        vectors.append(torch.cat(chosen).double())
    return float((vectors[0] - vectors[1]).norm() / vectors[0].norm())


def test_two_processes_reach_the_weights_of_one(synthetic_ytf68, tmp_path):
    """Detector and joint stage with its critic; about half the crops show no face, so that labels lie unevenly."""
    given = ("sht-ytf68", synthetic_ytf68)
    train_alone(*given, tmp_path / "one", tmp_path / "cache", COMMON + JOINT)
    # Caches of their own: two processes must make them together.
    command = verb(*given, tmp_path / "two", tmp_path / "other", COMMON + JOINT, "--devices", "2")
    with started([sys.executable, "-m", "veilmark.cli", *command]) as process:
        said, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, said
    assert said.count("weights:") == 1, said
    assert said.count("last validation") == 1, said
    # Rounding differs, since sums have another order. The joint stage magnifies it about 500 times (the landmarks
    # of a new network nearly coincide, and the spline through them is ill-conditioned), and Adam's first steps take
    # the sign of gradients that are nearly zero. An error in averaging shows as 1e-2 and more.
    for stage, part, suffix, tolerance in [
        ("detector", "model.", "", 1e-5),
        ("detector", "average.", "", 1e-5),
        ("detector", "optimizer.", "exp_avg", 1e-5),
        ("joint", "model.", "", 1e-3),
        ("joint", "average.", "", 1e-3),
        ("joint", "optimizer.", "exp_avg", 2e-3),
        ("joint", "judge.", "", 1e-4),
        ("joint", "judge_optimizer.", "exp_avg", 1e-4),
    ]:
        apart = distance(tmp_path / "one", tmp_path / "two", stage, part, suffix)
        assert apart < tolerance, (stage, part, apart)
    logs = [[r for r in RunFolder(tmp_path / name).read_log() if "loss" in r] for name in ("one", "two")]
    for alone, shared in zip(*logs, strict=True):
        for key in ("loss", "loss_points", "loss_face", "loss_trust"):
            assert shared[key] == pytest.approx(alone[key], rel=1e-3), key


def test_ctrl_c_ends_both_at_one_step_and_one_goes_on(synthetic_ytf68, tmp_path):
    settings = [*COMMON, "schedule.epochs=5", "schedule.checkpoint_minutes=1e-6", "schedule.validate_epochs=5"]
    given = ("dhln-ytf68", synthetic_ytf68)
    train_alone(*given, tmp_path / "whole", tmp_path / "cache", settings)
    command = verb(*given, tmp_path / "run", tmp_path / "cache", settings, "--devices", "2")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.safetensors"
    script = str(Path(sys.executable).with_name("veilmark"))
    with started([script, *command]) as process:
        end = time.monotonic() + LIMIT
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        # To the first process alone: it must tell the other.
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 130, said
        assert "go on with --resume" in said
        for _ in range(100):
            if not group_lives(process.pid):
                break
            time.sleep(0.1)
        assert not group_lives(process.pid)
    step = int(read_tensors(checkpoint)[1]["step"])
    assert 0 < step < 10
    train_alone(*given, tmp_path / "run", tmp_path / "cache", settings, resume=True)
    assert read_tensors(checkpoint)[1]["step"] == "10"
    for part in ("model.", "average."):
        assert distance(tmp_path / "whole", tmp_path / "run", "last", part) < 1e-4


LAUNCHED = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("recipe", "settings", "devices", "nodes", "environment", "words"),
    [
        # A batch that cannot be halved.
        ("dhln-ytf68", ["schedule.batch=15"], 2, 1, {}, "schedule.batch is 15, the whole batch, which 2 processes"),
        # The remedy is named.
        ("dhln-ytf68", ["schedule.batch=15"], 2, 2, {"NODE_RANK": "0", "MASTER_ADDR": "a"}, "--set schedule.batch=16"),
        # Nor the batch of the joint stage, nor its pairs.
        ("sht-ytf68", ["joint_schedule.batch=9"], 2, 1, {}, "joint_schedule.batch is 9"),
        ("sht-ytf68", ["pairs.per_step=3"], 2, 1, {}, "pairs.per_step is 3, the whole batch, which 2 processes"),
        # Several machines, and nobody says which this is.
        ("dhln-ytf68", [], 1, 2, {}, "--nodes 2: nothing says which machine this is; start the command by torchrun"),
        # Another number of processes than was asked for.
        ("dhln-ytf68", [], 2, 1, {**LAUNCHED, "WORLD_SIZE": "4"}, "torchrun has started 4 processes, but --devices 2"),
        ("dhln-ytf68", [], 1, 1, {**LAUNCHED, "WORLD_SIZE": "2"}, "torchrun has started 2 processes, but --devices 1"),
        (
            "dhln-ytf68", [], 1, 1, {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0"},
            "SLURM has started 4 processes, but --devices 1 x --nodes 1 = 1",
        ),
        # More GPUs than there are (one, says the test).
        ("dhln-ytf68", [], 2, 1, {}, "--devices 2 with schedule.device=auto, but this machine has 1 CUDA devices"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(monkeypatch, recipe, settings, devices, nodes, environment, words):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError) as caught:
        start_training(recipe, settings, devices, nodes)
    assert words in str(caught.value)


def _broken_folder(tmp_path, data):
    return data, RunFolder(tmp_path / "run"), [], "in use by another process"


def _no_data(tmp_path, data):
    return tmp_path / "nothing", None, [], "nothing"


def _odd_batch(tmp_path, data):
    return data, None, ["--set", "schedule.batch=3"], "2 processes"


@pytest.mark.parametrize("case", [_broken_folder, _no_data, _odd_batch])
def test_no_process_starts_where_something_is_wrong(synthetic_ytf68, tmp_path, monkeypatch, capsys, case):
    data, held, more, words = case(tmp_path, synthetic_ytf68)

    def start(*arguments, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    command = verb("dhln-ytf68", data, tmp_path / "run", tmp_path / "cache", COMMON, "--devices", "2", *more)
    monkeypatch.setattr(sys, "argv", ["veilmark", *command])

    def run():
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    if held is None:
        code = run()
    else:
        with held.hold():
            code = run()
    assert code == 1
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "config.yaml").exists()


def faces(count, labelled, shown):
    """A batch of noise."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, count, 3, 64, 64, generator=generator)
    flags = torch.full((count,), labelled), torch.full((count,), shown)
    return Batch(pictures[0], pictures[1], 64 * torch.rand(count, 68, 2, generator=generator), *flags)


@pytest.mark.parametrize(("labelled", "shown"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize(
    ("network", "weights"),
    [
        ({}, {}),
        ({"detail": False}, {}),  # heatmaps only
        ({"heatmap_guidance": False, "detail_guidance": False}, {}),  # two streams that do not meet
        ({"stages": 1}, {}),
        ({}, {"face": 0, "claim": 0, "trust": 0}),  # heads that count for nothing
    ],
)
def test_every_weight_of_the_detector_takes_part_in_every_step(network, weights, labelled, shown):
    """Distributed training waits for the gradient of every weight, in every process."""
    model, batch = DHLN(**TINY | network), faces(2, labelled, shown)
    DHLNLoss(Weights(**weights), "ibug68", 64, model.map_stride)(model(*batch.inputs), batch).total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("adversarial", [0.0, 0.01])
@pytest.mark.parametrize("sure", [True, False])  # whether any pair passes the gate
def test_every_weight_of_the_joint_stage_takes_part_in_every_step(adversarial, sure):
    torch.manual_seed(0)
    model = SHT(DHLN(**TINY), FPTN(size=64, channels=16, blocks=2, painter_width=16))
    with torch.no_grad():
        model.dhln.trust.bias.fill_(5.0 if sure else -5.0)
    judge = Discriminators(68, 64)
    weights = JointWeights(adversarial=adversarial, confident=10)
    loss = JointLoss(DHLNLoss(Weights(), "ibug68", 64, model.dhln.map_stride), weights, judge)
    batch = JointBatch(faces(2, False, True), faces(2, False, True))
    output = model(*batch.inputs)
    losses = loss(output, batch)
    assert bool(losses.parts["confident"]) is sure
    losses.total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    # The network's own step leaves the critic alone.
    assert all(p.grad is None for p in judge.parameters())
    loss.loss(judge, output, batch).backward()
    assert [name for name, p in judge.named_parameters() if p.grad is None] == []


def test_the_failure_of_the_first_ends_the_others():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    launcher = SimpleNamespace(procs=[other])
    fabric = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    with ending_together(fabric):
        pass
    assert other.poll() is None
    with pytest.raises(RunError, match="full"), ending_together(fabric):
        raise RunError("full")
    assert other.wait(timeout=30) == -signal.SIGKILL
    # Whoever watches the list sees no crash.
    assert launcher.procs == []


def test_one_process_agrees_with_itself():
    cpu = torch.device("cpu")
    assert [any_process(flag, cpu) for flag in (True, False)] == [True, False]
    assert range_of(7, cpu) == (7, 7)
    assert means({"a": torch.tensor(1.5), "b": torch.tensor(2)}) == {"a": 1.5, "b": 2.0}


class _Faces:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


@pytest.mark.parametrize(
    ("seen", "count", "error", "words"),
    [
        ((6, 8), 8, DataError, "one process finds 6 training faces, another 8"),  # another copy of the data
        ((7, 7), 7, ConfigError, "a step has 7 of 7 training faces, which 2 processes cannot share evenly"),
    ],
)
def test_faces_that_cannot_be_shared_are_refused(tmp_path, monkeypatch, seen, count, error, words):
    monkeypatch.setattr("veilmark.sht.training.range_of", lambda number, device: seen)
    fabric = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    with pytest.raises(error, match=words):
        Trainer(RunFolder(tmp_path), torch.nn.Linear(1, 1), None, _Faces(count), Schedule(), None, fabric=fabric)


def test_a_checkpoint_that_not_all_see_is_refused(tmp_path, monkeypatch):
    fabric = make_fabric(Schedule(device="cpu", precision="32-true"))
    trainer = Trainer(RunFolder(tmp_path), torch.nn.Linear(1, 1), None, _Faces(16), Schedule(), None, fabric=fabric)
    monkeypatch.setattr("veilmark.sht.training.range_of", lambda number, device: (0, 12))
    with pytest.raises(RunError, match="one process sees step 12, another step 0; the run folder must lie on a disk"):
        trainer.restore()


def _by_torchrun(command):
    return [([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", *command], {})]


def _by_slurm(command):
    """What srun sets; there is no SLURM where tests run."""
    common = {
        "SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000), "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "train",
    }  # fmt: skip
    ranks = ({**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1))
    return [([sys.executable, "-m", *command], environment) for environment in ranks]


@pytest.mark.slow
@pytest.mark.parametrize("start", [_by_torchrun, _by_slurm])
def test_others_may_start_the_processes(synthetic_ytf68, tmp_path, start):
    given = ("dhln-ytf68", synthetic_ytf68)
    cache = tmp_path / "cache"
    train_alone(*given, tmp_path / "one", cache, COMMON)
    shutil.rmtree(cache)
    command = ["veilmark.cli", *verb(*given, tmp_path / "two", cache, COMMON, "--devices", "2")]
    commands = start(command)
    with started(commands[0][0], **commands[0][1]) as first:
        if len(commands) == 2:
            with started(commands[1][0], **commands[1][1]) as second:
                said, _ = second.communicate(timeout=LIMIT)
                assert second.returncode == 0, said
        said, _ = first.communicate(timeout=LIMIT)
        assert first.returncode == 0, said
    assert distance(tmp_path / "one", tmp_path / "two", "last", "model.") < 1e-5
