"""Ways of letting only an image generator travel: what is sent, what stays, that a killed run goes on to the same bits."""

import json

import pytest
import torch

from veilmark.audit.record import read_record
from veilmark.federation.config import federation_from
from veilmark.federation.engine import Rounds
from veilmark.federation.methods import METHODS, fedavg
from veilmark.federation.methods.keyed import start_detector
from veilmark.federation.methods.method import ClientView, Secrets, ServerView
from veilmark.federation.runs import run_federation
from veilmark.federation.tasks.loading import load_task
from veilmark.ppidsg.secret import Secret
from veilmark.report.federation import write_federation_report
from veilmark.run.checkpoints import read_tensors
from veilmark.run.config import override
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunFolder
from veilmark.sht.generated_detector import GeneratedDetector

TINY = {
    "task": "landmarks",
    "clients": 2,
    "rounds": 2,
    "record": "all",
    "data": {
        "layout": "synthetic",
        "people": 2,
        "frames": 2,
        "test_people": 2,
        "network": {"size": 32, "trunk_stride": 4, "map_stride": 2, "structure_widths": [16, 16]}
        | {"detail_widths": [16, 16], "painter_width": 16},
    },
    "training": {"batch": 2, "optimizer": "adamw", "lr": 0.002, "clip": 1.0},
}
LEARNING = [name for name, kind in METHODS.items() if "landmarks" in kind.tasks]
HALF = "options.keyed.precision=half"
ALWAYS = {"dpsgd": ("options.dpsgd.noise=1",)}
"""To fit a noise takes seconds, and its own tests."""
PERSONAL = {
    "hallucinator": ("detail", "paint", "finish", "guide"),
    "keyed": ("generator.",),
    "ppidsg-landmarks": ("generator.",),
}


def config(*changes, **values):
    settings = [*changes, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
    return federation_from(override(TINY, settings), "test")


def play(path, made, **options):
    run = RunFolder(path)
    with run.hold():
        run_federation(made, None, run, secrets=path.parent / "secrets", **options)
    return run


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (method, (*ALWAYS.get(method, ()), *changes))
        for method in LEARNING
        for changes in ((), ("data.labelled=0.5",), (HALF,))
        if changes != (HALF,) or method == "keyed"
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, method, changes):
    made = config(*changes, method=method)
    whole = play(tmp_path / "whole", made)
    one_round = Rounds.one_round

    def killed(self, link, number, recorded):
        if number == 2:
            raise KeyboardInterrupt
        return one_round(self, link, number, recorded)

    with monkeypatch.context() as patched:
        patched.setattr(Rounds, "one_round", killed)
        with pytest.raises(KeyboardInterrupt):
            play(tmp_path / "cut", made)
    cut = play(tmp_path / "cut", made, resume=True)
    for one, other in zip(whole.read_log(), cut.read_log(), strict=True):
        assert one["losses"] == other["losses"]
        assert one["nme"]["per_client"] == other["nme"]["per_client"]
    path = "checkpoints/server-0002.safetensors"
    one, other = (read_tensors(run.path / path)[0] for run in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", PERSONAL)
def test_only_the_generator_travels(tmp_path, method):
    run = play(tmp_path / "run", config(method=method, rounds=1))
    sent = read_tensors(run.path / "transcript/round-0001/client-0.safetensors")[0]
    assert sent
    assert all(name.startswith(PERSONAL[method]) for name in sent)
    started = read_tensors(run.path / "transcript/round-0001/broadcast.safetensors")[0]
    assert any(not torch.equal(sent[name], started[name]) for name in sent)
    summary = json.loads((run.path / "summary.json").read_text())
    whole = play(tmp_path / "none", config(method="none", rounds=1))
    everything = json.loads((whole.path / "summary.json").read_text())["bytes_up_per_client_round"]
    assert summary["bytes_up_per_client_round"] < everything
    page = write_federation_report(run.path).read_text()
    assert "NME at 16 px" in page
    assert "Accuracy" not in page


def test_without_labels_the_generator_learns_and_the_heads_do_not(tmp_path):
    made = config("data.labelled=0.5", method="hallucinator", rounds=1)
    task, owners, _, _ = load_task(made, None)
    number = next(i for i, owner in enumerate(owners) if bool(owner.targets.isnan().all()))
    run = play(tmp_path / "run", made)
    kept = read_tensors(run.path / f"clients/client-{number}/round-0001.safetensors")[0]
    start = task.network(made.seed).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in start.items() if name.startswith("heatmap"))
    sent = read_tensors(run.path / f"transcript/round-0001/client-{number}.safetensors")[0]
    assert float((sent["finish.mix.weight"] - start["finish.mix.weight"]).abs().max()) > 0
    assert json.loads((run.path / "summary.json").read_text())["nme"]["unlabelled"] is not None
    moved = play(tmp_path / "all", config("data.labelled=0.5", "data.unlabelled=all", method="hallucinator", rounds=1))
    kept = read_tensors(moved.path / f"clients/client-{number}/round-0001.safetensors")[0]
    assert not torch.equal(kept["heatmap.1.2.weight"], start["heatmap.1.2.weight"])


@pytest.mark.parametrize("detector", ["kept", "restart", "fixed"])
def test_without_labels_ppidsg_trains_the_generator_alone(tmp_path, detector):
    option = f"options.ppidsg-landmarks.detector={detector}"
    made = config("data.labelled=0.5", option, method="ppidsg-landmarks")
    _, owners, _, _ = load_task(made, None)
    run = play(tmp_path / "run", made)
    for number, owner in enumerate(owners):
        before, after = (
            read_tensors(run.path / f"clients/client-{number}/round-000{round_number}.safetensors")[0]
            for round_number in (1, 2)
        )
        # A detector that restarts has learned for one round in both, but from another G.
        learns = detector != "fixed" and not bool(owner.targets.isnan().all())
        assert torch.equal(*(kept["detector.heatmap.1.2.weight"] for kept in (before, after))) != learns
        sent = read_tensors(run.path / f"transcript/round-0001/client-{number}.safetensors")[0]
        started = read_tensors(run.path / "transcript/round-0001/broadcast.safetensors")[0]
        assert any(not torch.equal(sent[name], started[name]) for name in sent)


def test_detectors_of_one_secret_start_alike_and_of_another_not():
    task, _, _, _ = load_task(config(), None)
    network = task.config.network.model_dump(mode="json")
    one, other, third = (GeneratedDetector(network=network, blocks=1) for _ in range(3))
    secret = Secret(bytes(32))
    for made, of in ((one, secret), (other, secret), (third, Secret(bytes(range(32))))):
        start_detector(made, of, fixed=False)
    pairs = zip(one.detector.parameters(), other.detector.parameters(), third.detector.parameters(), strict=True)
    for a, b, c in pairs:
        assert torch.equal(a, b)
        assert a.ndim <= 1 or not a.any() or not torch.equal(a, c)
    # Blocks that learn start as the identity; in one that stays so they would be none at all.
    assert not one.detector.structure[0].enter[0].conv2.weight.any()
    start_detector(other, secret, fixed=True)
    assert other.detector.structure[0].enter[0].conv2.weight.any()


@pytest.mark.parametrize("body", ["detail", "hourglass"])
def test_a_generator_starts_as_the_identity(body):
    task, _, _, _ = load_task(config(), None)
    faces = torch.rand(2, 3, 32, 32)
    network = GeneratedDetector(network=task.config.network.model_dump(mode="json"), blocks=2, body=body)
    assert torch.equal(network.generator(faces), faces)


def test_a_thin_detector_sees_a_few_pixels_and_a_generator_of_hourglasses_the_whole_face():
    network = config().data.network.model_dump(mode="json") | {"size": 64, "structure_widths": [16, 16, 16]}
    made = GeneratedDetector(network=network, blocks=1, body="hourglass", thin=True)
    start_detector(made, Secret(bytes(32)), fixed=True)
    torch.nn.init.normal_(made.generator.finish.mix.weight, generator=torch.Generator().manual_seed(0))
    for module in made.generator.modules():
        if hasattr(module, "conv2"):
            torch.nn.init.normal_(module.conv2.weight, generator=torch.Generator().manual_seed(1))
    faces = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    other = faces.clone()
    other[..., :4, :4] = 1 - other[..., :4, :4]
    # In DHLN's detector GroupNorm carries a little of every pixel to every other; convolutions do not.
    with torch.no_grad():
        seen, changed = (made.detector.structure_stem(4 * (some - 0.5)) for some in (faces, other))
        painted, repainted = made.generator(faces), made.generator(other)
    assert torch.equal(seen[..., 4:, 4:], changed[..., 4:, 4:])
    assert not torch.equal(painted[..., -8:, -8:], repainted[..., -8:, -8:])


@pytest.mark.parametrize("detector", ["kept", "restart", "fixed"])
def test_what_of_a_detector_lasts(tmp_path, detector):
    run = play(tmp_path / "run", config(f"options.keyed.detector={detector}", method="keyed"))
    kept = [
        read_tensors(run.path / f"clients/client-0/round-000{number}.safetensors")[0]["detector.heatmap.1.2.weight"]
        for number in (1, 2)
    ]
    assert torch.equal(*kept) == (detector == "fixed")


@pytest.mark.parametrize("detector", ["kept", "restart"])
def test_a_detector_that_restarts_forgets_the_steps_before(tmp_path, monkeypatch, detector):
    """What AdamW remembers of a detector must not outlive it."""
    remembered = []

    def note(learner, *_):
        state = learner_client[0].lasting.state
        remembered.append({name: bool(state.get(p)) for name, p in learner.model.named_parameters()})
        return train(learner, *_)

    train, learner_client = fedavg.train_locally, []
    monkeypatch.setattr(fedavg, "train_locally", note)
    made = config(f"options.keyed.detector={detector}", method="keyed")
    task, owners, _, _ = load_task(made, None)
    client = made.made_method().client(
        ClientView(0, task, owners[0], made.training, 2, 0, Secrets(Secret.generate(), Secret.generate()))
    )
    learner_client.append(client)
    broadcast = {name: client.learner.model.state_dict()[name].clone() for name in client.shared}
    for number in (0, 1):
        client.train_round(broadcast, number)
    second = remembered[1]
    assert all(second[name] for name in second if name.startswith("generator"))
    assert all(second[name] == (detector == "kept") for name in second if name.startswith("detector.heatmap"))


@pytest.mark.parametrize("method", ["keyed", "ppidsg-landmarks"])
@pytest.mark.parametrize("detector", ["kept", "restart"])
def test_a_detector_that_restarts_has_the_full_rate_in_every_round(method, detector):
    """In the last round it has as far to go as in the first."""
    made = config(f"options.{method}.detector={detector}", "training.decay_after=1", method=method)
    task, owners, _, _ = load_task(made, None)
    client = made.made_method().client(
        ClientView(0, task, owners[0], made.training, 4, 0, Secrets(Secret.generate(), Secret.generate()))
    )
    server = made.made_method().server(ServerView(task, 2, 4, 0, made.training))
    client.train_round(server.broadcast(), 3)
    optimizers = [client.lasting] if method == "keyed" else client.optimizers.values()
    network = client.network
    of = {id(p): name for name, p in network.named_parameters()}
    rates = {
        of[id(p)].split(".")[0]: group["lr"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
        if id(p) in of
    }
    assert rates["generator"] == pytest.approx(made.training.lr / 3)
    assert rates["detector"] == pytest.approx(made.training.lr / (1 if detector == "restart" else 3))


@pytest.mark.parametrize("method", ["keyed", "hallucinator"])
def test_half_precision_halves_the_bytes(tmp_path, method):
    made = config(f"options.{method}.precision=half", method=method)
    run = play(tmp_path / "run", made)
    sent, single = (
        read_tensors(path / "transcript/round-0001/client-0.safetensors")[0]
        for path in (run.path, play(tmp_path / "single", config(method=method)).path)
    )
    assert {value.dtype for value in sent.values()} == {torch.float16}
    for name, value in sent.items():
        # The same training from a start that was rounded.
        torch.testing.assert_close(value.float(), single[name], atol=0.02, rtol=0.02)
    sizes = [sum(value.nbytes for value in tensors.values()) for tensors in (sent, single)]
    assert 2 * sizes[0] == sizes[1]
    record = read_record(run.path / "transcript")
    assert {value.dtype for value in record.rounds[0].updates[0].tensors.values()} == {torch.float32}


@pytest.mark.parametrize("method", ["none", "gc"])
def test_who_has_no_labels_does_not_hold_the_detector_back(tmp_path, method):
    """What the detector becomes depends on those who have labels; the other one's number of faces does not matter."""
    run = play(tmp_path / "run", config("data.labelled=0.5", method=method, rounds=1))
    record = read_record(run.path / "transcript")
    before, updates = record.rounds[0].broadcast, record.rounds[0].updates
    after = read_tensors(run.path / "checkpoints/server-0001.safetensors")[0]
    detector = "heatmap.0.2.weight"
    moved = [n for n in updates if not torch.equal(updates[n].tensors[detector], before[detector])]
    assert len(moved) == 1
    torch.testing.assert_close(after[detector], updates[moved[0]].tensors[detector])
    assert not torch.equal(after["finish.mix.bias"], updates[moved[0]].tensors["finish.mix.bias"])


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("ppidsg-landmarks", "options.ppidsg-landmarks.block=3", "allowed: 2, 4, 8, 16"),
        ("ppidsg-landmarks", 'options.ppidsg-landmarks.without=["paint"]', "no step of the cipher"),
        ("hallucinator", 'options.hallucinator.share=["mouth"]', "no tensor 'mouth'; its parts: again"),
        ("hallucinator", "data.network.detail=false", "no tensor 'detail'"),
        ("hallucinator", "options.hallucinator.share=[]", "at least 1 item"),
        ("none", "data.network.detail=false; data.labelled=0.5", "would have nothing to train"),
        ("dpsgd", "data.network.structure_widths=[256, 256, 256]", "structure_widths="),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path, method, setting, words):
    with pytest.raises(ConfigError, match=words):
        play(tmp_path / "run", config(*setting.split("; "), method=method))
    assert not (tmp_path / "run/config.yaml").exists()
