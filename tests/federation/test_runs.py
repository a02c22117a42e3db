"""A federation from config to run folder: what it writes, that it resumes to the same bits, what it refuses."""

import json
import re
import stat

import numpy as np
import pytest
import torch

from tiny_federations import config, play
from veilmark.federation import engine, recipes, runs
from veilmark.federation.messages import Update
from veilmark.federation.tasks.classify import load_classify
from veilmark.federation.tasks.task import Data
from veilmark.federation.transcript import CHAIN, Transcript, TranscriptError
from veilmark.run.checkpoints import read_tensors
from veilmark.run.errors import ConfigError, VeilmarkError
from veilmark.run.folder import RunError, RunFolder
from veilmark.run.memory import forget_peak, give_back, peak_rss_mb


def without_time(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize("method", ["none", "ppidsg"])
def test_a_run_folder_holds_what_it_promises(tmp_path, method):
    run = play(tmp_path / "run", config(method=method))
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["method"] == method
    assert (summary["clients"], summary["rounds"], summary["seed"], summary["engine"]) == (2, 2, 0, "in-process")
    accuracy = summary["accuracy"]
    assert len(accuracy["per_client"]) == 2
    assert accuracy["min"] <= accuracy["mean"] <= accuracy["max"]
    shared = read_tensors(run.path / "checkpoints/server-0002.safetensors")[0]
    assert summary["bytes_up_per_client_round"] == sum(4 * value.numel() for value in shared.values())
    assert summary["peak_rss_mb"] > 50
    assert summary["precision"] == "32-true"
    records = run.read_log()
    assert [record["step"] for record in records] == [1, 2]
    assert records[-1]["accuracy"] == accuracy
    assert (run.path / "samples.png").stat().st_size > 100
    assert summary["samples"] == {"none": ["x"], "ppidsg": ["x", "scramble(x)", "G(x)"]}[method]
    assert [sum(counts) for counts in summary["counts"]] == [8, 8]
    played = config(method=method).model_dump(mode="json")
    assert (summary["data"], summary["training"]) == (played["data"], played["training"])


@pytest.mark.parametrize("asked", ["auto", "bf16-mixed", "32-true"])
def test_a_method_says_in_what_its_layers_learn(monkeypatch, asked):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    method = config(method="ppidsg", options={"ppidsg": {"precision": asked}}).made_method()
    assert method.computes_in(torch.device("cpu")) == {"auto": "32-true"}.get(asked, asked)


def test_secrets_stay_out_of_the_run_folder(tmp_path):
    run = play(tmp_path / "run", config(method="ppidsg"))
    beside = tmp_path / "run.secrets"
    for file in beside.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        value = file.read_text().split()[-1]
        for other in run.path.rglob("*"):
            if other.is_file():
                data = other.read_bytes()
                assert value.encode() not in data, other
                assert bytes.fromhex(value) not in data, other
    assert sorted(file.name for file in beside.iterdir()) == ["client-0.key", "client-1.key", "federation.key"]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("none", {}),
        ("local", {}),
        ("ppidsg", {}),
        ("ppidsg", {"share": ["generator", "discriminator"], "clip": 1.0, "noise": 0.001}),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch, method, options):
    changes = {f"options__{method}__{name}": value for name, value in options.items()}
    made, secrets = config(method=method, rounds=3, record="all", **changes), tmp_path / "secrets"
    unbroken = play(tmp_path / "a", made, secrets=secrets)
    train = runs.ClientSide.train

    def killed(self, number, broadcast, round_number):
        if (number, round_number) == (1, 3):
            raise KeyboardInterrupt
        return train(self, number, broadcast, round_number)

    monkeypatch.setattr(runs.ClientSide, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "b", made, secrets=secrets)
    monkeypatch.undo()
    with pytest.raises(RunError, match="--resume"):
        play(tmp_path / "b", made, secrets=secrets)
    again = play(tmp_path / "b", made, secrets=secrets, resume=True)
    assert without_time(again.read_log()) == without_time(unbroken.read_log())
    files = Transcript(unbroken.path / "transcript").verify()
    assert Transcript(again.path / "transcript").verify() == files
    assert len(files) == 1 + 3 * 4
    for file in files[1:]:
        (one, said), (other, before) = (read_tensors(run.path / "transcript" / file) for run in (again, unbroken))
        assert said == before
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_was_refused_before_a_kill_is_said_in_the_end(tmp_path, monkeypatch):
    made = config(method="none", rounds=2)
    train = engine.InProcess.train

    def lossy(self, clients, broadcast, round_number):
        if round_number == 2:
            raise KeyboardInterrupt
        return train(self, clients, broadcast, round_number) | {1: "connection lost"}

    monkeypatch.setattr(engine.InProcess, "train", lossy)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "run", made)
    monkeypatch.undo()
    run = play(tmp_path / "run", made, resume=True)
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["refused"] == ["round 1, client 1: connection lost"]


def test_a_finished_run_is_not_played_again(tmp_path, monkeypatch):
    run = play(tmp_path / "run")
    before = run.read_log()
    monkeypatch.setattr(runs.ClientSide, "train", lambda *_: pytest.fail("a finished run was played again"))
    play(tmp_path / "run", resume=True)
    assert run.read_log() == before


def test_a_run_without_its_secrets_is_refused_and_gets_no_others(tmp_path, monkeypatch):
    train = runs.ClientSide.train

    def killed(self, number, broadcast, round_number):
        if round_number == 2:
            raise KeyboardInterrupt
        return train(self, number, broadcast, round_number)

    monkeypatch.setattr(runs.ClientSide, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "run")
    monkeypatch.undo()
    secrets, away = tmp_path / "run.secrets", tmp_path / "away"
    secrets.rename(away)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"run\.secrets/federation\.key is not there.*put it back.*--secrets.*--out"):
        play(tmp_path / "run", resume=True)
    assert not secrets.exists()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    away.rename(secrets)
    (secrets / "client-1.key").rename(tmp_path / "client-1.key")
    with pytest.raises(RunError, match=r"client-1\.key is not there"):
        play(tmp_path / "run", resume=True)
    assert not (secrets / "client-1.key").exists()
    (tmp_path / "client-1.key").rename(secrets / "client-1.key")
    assert [record["step"] for record in play(tmp_path / "run", resume=True).read_log()] == [1, 2]


def test_other_secrets_are_refused(tmp_path):
    play(tmp_path / "run")
    runs.SecretFolder(tmp_path / "others").make_missing(2)
    with pytest.raises(RunError, match=r"federation\.key is not the secret"):
        play(tmp_path / "run", resume=True, secrets=tmp_path / "others")


def test_secrets_in_the_run_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--secrets .*run/keys lies in the run folder"):
        play(tmp_path / "run", secrets=tmp_path / "run/keys")
    assert not (tmp_path / "run/keys").exists()


@pytest.mark.parametrize(("part", "option"), [("extractor", "extractor"), ("classifier", "head")])
def test_a_network_as_the_secret_says_is_not_kept(tmp_path, part, option):
    changes = {f"options__ppidsg__{option}": "fixed"}
    run = play(tmp_path / "run", config(method="ppidsg", **changes))
    kept = read_tensors(run.path / "clients/client-0/round-0002.safetensors")[0]
    assert not [name for name in kept if name.startswith(f"{part}.")]
    other = {"extractor": "classifier", "classifier": "extractor"}[part]
    assert [name for name in kept if name.startswith(f"{other}.")]


def test_half_a_line_of_a_killed_run_is_forgotten(tmp_path):
    made = config(rounds=1, record="all")
    run = play(tmp_path / "run", made)
    chain = run.path / "transcript" / CHAIN
    whole = chain.read_text()
    chain.write_text(whole + '{"file": "round-0002/bro')
    play(tmp_path / "run", made, resume=True)
    assert chain.read_text() == whole


def test_a_chain_that_lost_finished_rounds_is_refused(tmp_path):
    made = config(rounds=1, record="all")
    run = play(tmp_path / "run", made)
    chain = run.path / "transcript" / CHAIN
    chain.write_text(chain.read_text()[:-20])
    with pytest.raises(TranscriptError, match=r"chain\.jsonl, line 5 is damaged"):
        play(tmp_path / "run", made, resume=True)


def test_memory_is_of_this_run(tmp_path):
    ballast = torch.ones(100_000_000)
    forget_peak()
    with_ballast = peak_rss_mb()
    del ballast
    give_back()
    summary = json.loads((play(tmp_path / "run").path / "summary.json").read_text())
    assert summary["peak_rss_mb"] < with_ballast - 200


def test_only_the_named_rounds_are_recorded(tmp_path):
    run = play(tmp_path / "run", config(rounds=3, record=["last"]))
    folder = run.path / "transcript"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Transcript(folder).verify() == [
        "manifest.json",
        "round-0003/broadcast.safetensors",
        "round-0003/client-0.safetensors",
        "round-0003/client-1.safetensors",
        "round-0003/scores.safetensors",
    ]
    scores, _ = read_tensors(folder / "round-0003/scores.safetensors")
    per_client = run.read_log()[-1]["accuracy"]["per_client"]
    assert [float(scores[f"{client}/accuracy"]) for client in (0, 1)] == per_client
    assert set(scores) == {f"{client}/{name}" for client in (0, 1) for name in ("accuracy", "of_classes")}
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors, said = read_tensors(folder / "round-0003/client-1.safetensors")
    assert {name: list(value.shape) for name, value in tensors.items()} == manifest["shared"]
    assert said["examples"] == "8"
    assert sorted(json.loads(said["metrics"])) == sorted(manifest["metrics"])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return play(tmp_path_factory.mktemp("recorded") / "run", config(rounds=1)).path / "transcript"


def _flip(folder):
    file = folder / "round-0001/client-1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def _drop_line(folder):
    lines = (folder / "chain.jsonl").read_text().splitlines()
    (folder / "chain.jsonl").write_text("\n".join([lines[0], *lines[2:]]) + "\n")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_flip, "was changed"),
        (lambda folder: (folder / "round-0001/broadcast.safetensors").unlink(), "not in the transcript"),
        (lambda folder: (folder / "round-0001/extra.txt").write_text("x"), "put in afterwards"),
        (lambda folder: (folder / "chain.jsonl").unlink(), r"holds no chain\.jsonl"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "was changed"),
        (_drop_line, "does not follow"),
        (lambda folder: (folder / "chain.jsonl").write_text("{"), "damaged"),
    ],
)
def test_a_transcript_that_was_changed_is_found_out(recorded, tmp_path, harm, words):
    import shutil

    folder = shutil.copytree(recorded, tmp_path / "copy")
    Transcript(folder).verify()
    harm(folder)
    with pytest.raises(TranscriptError, match=words):
        Transcript(folder).verify()


class Answers(engine.Link):
    """Clients that answer what they are told to; those of ``unscored`` are not scored."""

    def __init__(self, updates, unscored=()):
        self.updates, self.unscored = updates, unscored

    def train(self, clients, broadcast, round_number):
        return self.updates

    def score(self, clients, broadcast, round_number):
        scores = {n: {"accuracy": [50.0 + n], "of_classes": [50.0 + n, 50.0 + n]} for n in clients}
        return scores | dict.fromkeys(self.unscored, "out of memory")


def rounds_of(tmp_path, bench, how):
    from veilmark.federation.methods.method import ServerView

    task = bench.task
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    made = config(clients=3, rounds=1, method="none", record=[])
    server = how.server(ServerView(task, 3, 1, 0, made.training))
    transcript = Transcript(tmp_path / "transcript")
    transcript.start({}, 0)
    return engine.Rounds(made, server, task, run, transcript)


def test_a_round_goes_on_without_those_that_fail(tmp_path, bench):
    how = config(method="none").made_method()
    rounds = rounds_of(tmp_path, bench(), how)
    start = rounds.server.broadcast()
    good = {name: value + 1 for name, value in start.items()}
    bad = {name: value * float("nan") for name, value in start.items()}
    figures = {"loss": 1.0, "accuracy": 50.0}
    replies = {0: Update(good, figures, 5), 1: Update(bad, figures, 5), 2: "connection lost"}
    record = rounds.one_round(Answers(replies), 1, recorded=False)
    assert record["clients"] == [0]
    assert [words.split(":")[0] for words in rounds.refused] == ["round 1, client 1", "round 1, client 2"]
    assert "holds nan" in rounds.refused[0]
    assert record["refused"] == rounds.refused
    for name, value in rounds.server.broadcast().items():
        assert torch.allclose(value, good[name])
    with pytest.raises(engine.FederationError, match="no update could be accepted"):
        rounds.one_round(Answers({2: "connection lost"}), 1, recorded=False)


def test_a_client_that_cannot_be_scored_is_named_and_leaves_its_place_empty(tmp_path, bench):
    how = config(method="none").made_method()
    rounds = rounds_of(tmp_path, bench(), how)
    updates = {n: Update(rounds.server.broadcast(), {"loss": 1.0, "accuracy": 50.0}, 5) for n in range(3)}
    record = rounds.one_round(Answers(updates, unscored=[1]), 1, recorded=False)
    assert record["clients"] == [0, 1, 2]
    assert record["refused"] == ["round 1, client 1, not scored: out of memory"]
    assert record["accuracy"]["per_client"] == [50.0, None, 52.0]
    assert (record["accuracy"]["mean"], record["accuracy"]["min"]) == (51.0, 50.0)
    whole = rounds.one_round(Answers(updates), 2, recorded=False)
    table = recipes.rounds_table(rounds.config, [record, whole])
    (column,) = [column for column in table.columns if column.header == "scored"]
    assert list(column.cells) == ["2 of 3", "3 of 3"]
    assert "scored" not in [column.header for column in recipes.rounds_table(rounds.config, [whole]).columns]


def test_a_round_without_any_score_ends_the_run_with_the_reasons(tmp_path, bench):
    rounds = rounds_of(tmp_path, bench(), config(method="none").made_method())
    updates = {0: Update(rounds.server.broadcast(), {"loss": 1.0, "accuracy": 50.0}, 5)}
    words = "round 1: no score came .*client 0: out of memory; client 1: out of memory.*--resume"
    with pytest.raises(engine.FederationError, match=words):
        rounds.one_round(Answers(updates, unscored=[0, 1, 2]), 1, recorded=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clients": 2000, "data__per_client": None}, "2000 clients"),  # more clients than images
        ({"data__per_client": 2000}, "the set has 1442"),
        ({"data__partition": "dirichlet"}, "needs alpha"),
        ({"data__alpha": 0.5}, "belongs to partition = dirichlet"),
        (
            {"data__partition": "dirichlet", "data__alpha": 0.001, "data__per_client": None, "clients": 40},
            "got 0 images",
        ),
        ({"data__test": 5000}, "test = 5000"),
        ({"data__test": 100, "data__test_part": 3}, "test_part = 3: of 355 test pictures 3 draws of 100 can be made"),
        ({"data__test": None, "data__test_part": 1}, "test_part = 1 needs test"),
        ({"data__layout": "mnist"}, "read from a folder"),
        ({"method": "none", "options__none__share": ["encoder"]}, "no tensor 'encoder'"),
        ({"options__ppidsg__blok": 4}, "options.ppidsg: unknown key 'blok'; allowed: block"),
        ({"options__ppidsg__head": "new"}, "options.ppidsg.head"),
        ({"options__ppidgs__head": "key"}, "options.ppidgs: no method"),
        ({"method": "ppidsg", "options__ppidsg__block": 16}, "no whole number of blocks"),
        ({"record": [3]}, "record = 3"),
        ({"options__ppidsg__block": 3}, r"options\.ppidsg\.block = 3: no side of a block; known: 2, 4, 8, 16"),
        ({"method": "ppidsg", "training__optimizer": "adamw"}, r"training\.optimizer = adamw.* method ppidsg trains"),
        ({"method": "fedcg", "training__clip": 1.0}, r"training\.clip = 1\.0: method fedcg"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        play(tmp_path / "run", config(**changes))
    assert not (tmp_path / "run/clients").exists()
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "nune"}, "known: none, local"),
        ({"data__layout": "minst"}, "known: mnist"),
        ({"rounds": 0}, "rounds = 0"),
        ({"clients_": 3}, "unknown key 'clients_'"),
        ({"data__partition": "even"}, "known: iid, dirichlet"),
        ({"record": "last"}, r"record = 'last': rounds stand in a list, e\.g\. record=\[last\]"),
        ({"data__head_widths": [0, 8]}, "data.head_widths.0 = 0"),
    ],
)
def test_bad_values_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        config(**changes)


def test_a_device_that_is_not_there_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="cuda:99"):
        play(tmp_path / "run", device="cuda:99")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_transcript_that_does_not_fit_the_disk_is_refused(tmp_path, monkeypatch):
    from veilmark.federation import transcript

    monkeypatch.setattr(transcript.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(VeilmarkError, match="record fewer rounds"):
        play(tmp_path / "run")


def test_parts_of_the_test_pictures_have_none_in_common():
    parts = [load_classify(config(data__test_part=part).data, None, 2, 0)[0].test_inputs for part in (0, 1, 2)]
    assert [len(pictures) for pictures in parts] == [20, 20, 20]
    # No two of the digits' pictures are alike.
    assert len({picture.numpy().tobytes() for pictures in parts for picture in pictures}) == 60


@pytest.fixture
def threads():
    """Sets PyTorch's threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["none", "ppidsg", "fedcg"])
def test_clients_side_by_side_learn_what_they_learn_in_turns(tmp_path, threads, method):
    made, results = config(method=method, options__fedcg__distillation_steps=3), []
    for count in (1, 2):
        threads(count)
        # Secrets are drawn anew for each folder, so both runs have the same ones.
        run = play(tmp_path / str(count), made, secrets=tmp_path / "secrets")
        assert torch.get_num_threads() == count
        results.append(
            (without_time(run.read_log()), read_tensors(run.path / "checkpoints/server-0002.safetensors")[0])
        )
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name]), name


@pytest.mark.parametrize("turn", ["train", "score"])
def test_a_client_that_fails_stops_the_run_and_leaves_the_threads_alone(tmp_path, threads, monkeypatch, turn):
    threads(2)

    def fail(side, number, broadcast, round_number):
        assert torch.get_num_threads() == 1
        raise VeilmarkError(f"client {number} is unwell")

    monkeypatch.setattr(engine.ClientSide, turn, fail)
    with pytest.raises(VeilmarkError, match="client 0 is unwell"):
        play(tmp_path / "run", config(method="none"))
    assert torch.get_num_threads() == 2


def test_scores_say_nothing_of_a_clients_own_mix(bench):
    """A server that knows the accuracies of classes could solve the mix from a few weighted figures."""
    task = bench().task
    answers = task.test.targets.clone()
    answers[::3] += 1
    mixes = [torch.tensor([0] * 9 + [1]), torch.tensor([1] * 10)]
    owners = [Data(torch.zeros(10, 1, 16, 16, dtype=torch.uint8), mix, ("x",) * 10) for mix in mixes]
    said = [task.score(answers, owner) for owner in owners]
    assert said[0] == said[1]
    assert task.summary({0: said[0], 1: said[1]}, 2)["own_distribution"] is None
    task.counts = [np.bincount(mix.numpy(), minlength=len(task.classes)).tolist() for mix in mixes]
    of_classes = said[0]["of_classes"]
    expected = (0.9 * of_classes[0] + 0.1 * of_classes[1] + of_classes[1]) / 2
    assert task.summary({0: said[0], 1: said[1]}, 2)["own_distribution"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"accuracy": [50.0]}, r"its scores are \['accuracy'\], declared are \['accuracy', 'of_classes'\]"),
        ({"accuracy": [50.0, 1.0], "of_classes": [50.0] * 10}, "'accuracy' has 2 figures, not 1"),
        ({"accuracy": [50.0], "of_classes": [50.0] * 10, "labels": [1.0]}, "labels"),
    ],
)
def test_scores_that_were_not_declared_are_none(tmp_path, bench, wrong, words):
    rounds = rounds_of(tmp_path, bench(), config(method="none").made_method())
    fair = {"accuracy": [50.0], "of_classes": [50.0] * len(rounds.task.classes)}
    assert set(rounds._scored({0: fair, 1: wrong}, 1)) == {0}
    assert re.search(words, rounds.refused[-1])


def test_clients_may_keep_their_accuracies_of_classes(tmp_path):
    run = play(tmp_path / "run", config(method="local", rounds=1, data__class_scores=False))
    scores, _ = read_tensors(run.path / "transcript/round-0001/scores.safetensors")
    assert set(scores) == {"0/accuracy", "1/accuracy"}
    said = run.read_log()[0]["accuracy"]
    assert said["own_distribution"] is None
    assert said["mean"] == pytest.approx(np.mean(said["per_client"]))


def test_dp_does_not_send_how_well_a_client_fits_its_pictures(tmp_path):
    run = play(tmp_path / "run", config(method="dp", rounds=1))
    assert json.loads((run.path / "transcript/manifest.json").read_text())["metrics"] == []
    assert run.read_log()[0]["losses"] == {}
