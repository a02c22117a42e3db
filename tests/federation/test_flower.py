"""Flower's engine: what it sends is what the in-process one hands over; real runs are marked slow (Ray takes seconds)."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_federations import config, play

pytest.importorskip("flwr")
pytest.importorskip("ray")

import psutil
from flwr.app import Context, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from veilmark.federation import client_app, flower, runs
from veilmark.federation.client_app import CLIENT, FIGURES, TENSORS, Place, to_record, to_tensors
from veilmark.federation.config import federation_from
from veilmark.federation.engine import FederationError
from veilmark.federation.server_app import GridLink
from veilmark.run.errors import ConfigError, VeilmarkError


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch):
    """Flower makes messages only where a run is under way."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Nodes(Grid):
    """A grid without network: nodes with odd ids answer with the client app, in the order in which they are asked."""

    def __init__(self, app, clients, broken=()):
        self.app, self.broken, self.replies = app, broken, {}
        self.contexts = {
            1000 + 7 * n: Context(1, 1000 + 7 * n, {"partition-id": n}, RecordDict(), {}) for n in range(clients)
        }

    def get_node_ids(self):
        return list(reversed(self.contexts))

    def push_messages(self, messages):
        names = []
        for number, message in enumerate(messages):
            node = message.metadata.dst_node_id
            name = f"{message.metadata.message_type} {node} {number} {len(self.replies)}"
            received = Message(
                message.content,
                metadata=Metadata(1, name, 0, node, "", "", time.time(), 3600.0, message.metadata.message_type),
            )
            if node in self.broken and message.metadata.message_type != "query":
                answer = Message(
                    Error(code=2, reason="Traceback\n  at line 1\nOSError: disk full\n   ^^^\n"), reply_to=received
                )
            else:
                answer = self.app(received, self.contexts[node])
            self.replies[name] = answer
            names.append(name)
        return names

    def pull_messages(self, message_ids):
        return [self.replies.pop(name) for name in message_ids]

    def get_nodes(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError


def without_ray(monkeypatch):
    """Plays Flower's engine on :class:`Nodes`."""

    def simulate(place, clients, log, play):
        client_app._side.cache_clear()
        play(Nodes(client_app.client_app(place), clients), lambda: False)

    monkeypatch.setattr(flower, "simulate", simulate)


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(3, 4), torch.tensor(5), torch.arange(6, dtype=torch.int32), torch.randn(2, 3).T, torch.zeros(0)],
)
def test_records_keep_values_names_order_shapes_and_types(tensor):
    tensors = {"b.weight": tensor, "a": torch.ones(2, dtype=torch.float64)}
    back = to_tensors(to_record(tensors))
    assert list(back) == ["b.weight", "a"]
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert torch.equal(back[name], value)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ["none", "local", "ppidsg"])
def test_messages_change_nothing(tmp_path, monkeypatch, method):
    made, secrets = config(method=method, rounds=1), tmp_path / "secrets"
    here = play(tmp_path / "a", made, secrets=secrets)

    without_ray(monkeypatch)
    there = play(tmp_path / "b", made, secrets=secrets, engine="flower")
    assert json.loads((there.path / "summary.json").read_text())["engine"] == "flower"
    for one, other in zip(here.read_log(), there.read_log(), strict=True):
        assert one["accuracy"] == other["accuracy"]
        assert one["losses"] == other["losses"]


def test_a_client_that_fails_is_named_and_the_round_goes_on(tmp_path):
    made = config(method="none")
    play(tmp_path / "a", made, secrets=tmp_path / "secrets")
    place = Place(made.model_dump_json(), None, tmp_path / "secrets", tmp_path / "b")
    client_app._side.cache_clear()
    side = client_app._side(place)
    grid = Nodes(client_app.client_app(place), 2, broken={1007})
    link = GridLink(grid, made)
    broadcast = made.made_method().server(runs.ServerView(side.task, 2, 2, 0, made.training)).broadcast()
    updates = link.train([0, 1], broadcast, 1)
    assert updates[1] == "OSError: disk full"
    assert updates[0].examples == 8
    scores = link.score([0, 1], broadcast, 1)
    assert scores[1] == "OSError: disk full"
    assert scores[0]["accuracy"]


def test_a_problem_that_has_words_travels_as_words(tmp_path, monkeypatch):
    made = config()
    place = Place(made.model_dump_json(), None, tmp_path / "nobody", tmp_path / "b")
    client_app._side.cache_clear()
    link = GridLink(Nodes(client_app.client_app(place), 2), made)
    updates = link.train([0, 1], {"x": torch.zeros(1)}, 1)
    assert "federation.key" in updates[0]


def test_clients_that_do_not_come_or_come_twice_are_named(tmp_path):
    place = Place(config().model_dump_json(), None, tmp_path, tmp_path)
    grid = Nodes(client_app.client_app(place), 2)
    with pytest.raises(FederationError, match="2 of 3 clients came within 0 seconds"):
        GridLink(grid, config(clients=3), patience=0)
    for context in grid.contexts.values():
        context.node_config["partition-id"] = 1
    with pytest.raises(FederationError, match=r"numbered \[1\]; expected 0 to 1"):
        GridLink(grid, config())


@pytest.mark.parametrize(
    ("there", "key"),
    [
        ({"data": {"network": {"scheme": "wflw98"}}}, "data.network.scheme is 'wflw98' there and 'ibug68' here"),
        ({"data": {"network": {"size": 64}}}, "data.network.size is 64 there and 32 here"),
        ({"method": "local"}, "method is 'local' there and 'none' here"),
        ({"options": {"gc": {"keep": 0.2}}}, "options.gc.keep is 0.2 there and None here"),
    ],
)
def test_a_client_with_another_scheme_or_size_is_refused_before_the_first_round(tmp_path, there, key):
    same = {"task": "landmarks", "method": "none", "clients": 1, "data": {"network": {"size": 32}}}
    made = federation_from(same, "here")
    other = federation_from({**same, **there}, "there")
    with pytest.raises(FederationError, match=f"client 0 plays another federation: .*{key}; give it this server's"):
        GridLink(Nodes(client_app.client_app(Place(other.model_dump_json(), None, tmp_path, tmp_path)), 1), made)


def test_a_client_that_does_not_say_what_it_plays_is_refused():
    def silent(message, context):
        return Message(RecordDict({FIGURES: MetricRecord({CLIENT: 0})}), reply_to=message)

    with pytest.raises(FederationError, match="client 0 plays another federation: kind is None there"):
        GridLink(Nodes(silent, 1), config(clients=1))


def test_an_answer_that_never_comes_is_a_sentence(tmp_path):
    place = Place(config().model_dump_json(), None, tmp_path, tmp_path)
    grid = Nodes(client_app.client_app(place), 2)
    link = GridLink(grid, config(), timeout=0.01)
    grid.pull_messages = lambda message_ids: []
    assert link.train([0, 1], {}, 1) == dict.fromkeys((0, 1), "no answer came in time")


def test_ctrl_c_ends_the_wait_for_answers(tmp_path):
    place = Place(config().model_dump_json(), None, tmp_path, tmp_path)
    grid = Nodes(client_app.client_app(place), 2)
    pressed = []
    link = GridLink(grid, config(), interrupted=lambda: bool(pressed))
    grid.pull_messages = lambda message_ids: []
    pressed.append(True)
    with pytest.raises(KeyboardInterrupt):
        link.train([0, 1], {}, 1)


def test_an_answer_without_tensors_is_a_sentence(tmp_path):
    made = config(clients=1)
    place = Place(made.model_dump_json(), None, tmp_path, tmp_path)
    app = client_app.client_app(place)

    def empty(message, context):
        if message.metadata.message_type == "query":
            return app(message, context)
        return Message(RecordDict({FIGURES: MetricRecord({CLIENT: 0})}), reply_to=message)

    assert f"no {TENSORS}" in GridLink(Nodes(empty, 1), made).train([0], {}, 1)[0]


def test_an_answer_without_scores_is_a_sentence(tmp_path):
    made = config(clients=1)
    app = client_app.client_app(Place(made.model_dump_json(), None, tmp_path, tmp_path))

    def empty(message, context):
        if message.metadata.message_type == "query":
            return app(message, context)
        return Message(RecordDict(), reply_to=message)

    assert GridLink(Nodes(empty, 1), made).score([0], {}, 1) == {0: f"its answer has no {FIGURES}"}


def unwell(monkeypatch, clients):
    """Lets clients train and not be scored."""
    score = client_app.ClientSide.score

    def fail(side, number, broadcast, round_number):
        if number in clients:
            raise VeilmarkError(f"client {number} is unwell")
        return score(side, number, broadcast, round_number)

    monkeypatch.setattr(client_app.ClientSide, "score", fail)


def test_a_client_that_trained_and_cannot_be_scored_is_in_the_summary(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    unwell(monkeypatch, [0])
    run = play(tmp_path / "run", config(method="local", rounds=1), engine="flower")
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["refused"] == ["round 1, client 0, not scored: client 0 is unwell"]
    assert summary["accuracy"]["per_client"] == [None, summary["accuracy"]["mean"]]
    assert run.read_log()[0]["clients"] == [0, 1]


def test_a_run_of_which_nobody_can_be_scored_ends_with_the_reasons_and_goes_on(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    unwell(monkeypatch, [0, 1])
    with pytest.raises(FederationError, match=r"client 0: client 0 is unwell; client 1: client 1 is unwell"):
        play(tmp_path / "run", config(method="none", rounds=1), engine="flower")
    monkeypatch.undo()
    assert len(play(tmp_path / "run", config(method="none", rounds=1), resume=True).read_log()) == 1


def test_flower_computes_on_the_processor(tmp_path):
    with pytest.raises(ConfigError, match="not on cuda; take --engine in-process"):
        play(tmp_path / "run", config(), secrets=tmp_path / "secrets", engine="flower", device="cuda")
    assert not (tmp_path / "run/config.yaml").exists()


def test_without_flower_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'veilmark\[federation\]'"):
        play(tmp_path / "run", config(), secrets=tmp_path / "secrets", engine="flower")
    assert not (tmp_path / "run/config.yaml").exists()


def test_processes_that_stay_are_ended():
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n"
    flower.end({process := psutil.Process(child.pid)}, patience=0.2)
    assert not process.is_running()
    child.communicate()


def close(one, other):
    return np.allclose(one, other, atol=1e-3)


def processes():
    """Of Ray and Flower, by id, with when they began: an id may be given again."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline", "create_time", "status"]):
        words = " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])[:3]]).lower()
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(
            w in words for w in ("ray::", "raylet", "gcs_server", "flower-", "/ray/")
        ):
            found.add((process.pid, process.info["create_time"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "local", "ppidsg"])
def test_flower_and_one_process_agree_and_nothing_is_left(tmp_path, method):
    made, secrets = config(method=method), tmp_path / "secrets"
    here = play(tmp_path / "a", made, secrets=secrets)
    before = processes()
    there = play(tmp_path / "b", made, secrets=secrets, engine="flower")
    assert processes() <= before
    for one, other in zip(here.read_log(), there.read_log(), strict=True):
        assert close(one["accuracy"]["per_client"], other["accuracy"]["per_client"])
        assert one["losses"].keys() == other["losses"].keys()
        assert all(np.isclose(one["losses"][name], other["losses"][name], rtol=1e-3) for name in one["losses"])
    assert (there.path / "flower.log").stat().st_size > 0


@pytest.mark.slow
def test_resume_on_flower_equals_unbroken(tmp_path, monkeypatch):
    made, secrets = config(rounds=2), tmp_path / "secrets"
    unbroken = play(tmp_path / "a", made, secrets=secrets, engine="flower")
    train = GridLink.train

    def killed(self, clients, broadcast, round_number):
        if round_number == 2:
            raise KeyboardInterrupt
        return train(self, clients, broadcast, round_number)

    before = processes()
    monkeypatch.setattr(GridLink, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "b", made, secrets=secrets, engine="flower")
    monkeypatch.undo()
    assert processes() <= before
    again = play(tmp_path / "b", made, secrets=secrets, engine="flower", resume=True)
    for one, other in zip(unbroken.read_log(), again.read_log(), strict=True):
        assert one["accuracy"] == other["accuracy"]
        assert one["losses"] == other["losses"]


@pytest.mark.slow
def test_a_client_without_its_secret_is_left_out_and_named(tmp_path, monkeypatch):
    secrets = tmp_path / "secrets"
    monkeypatch.setattr(runs, "_same_secrets", lambda run, checks: (secrets / "client-1.key").unlink())
    monkeypatch.setattr(runs, "write_samples", lambda *_: [])
    run = play(tmp_path / "run", config(rounds=1, method="none"), secrets=secrets, engine="flower")
    assert run.read_log()[0]["clients"] == [0]
    said = json.loads((run.path / "summary.json").read_text())["refused"]
    assert said[0].startswith("round 1, client 1: ")
    # Where the process has scored another client it answers for this one, too: the method has one model for all.
    assert all("client 1" in words and "client-1.key" in words for words in said)


@pytest.mark.slow
def test_ctrl_c_ends_a_run_on_flower(tmp_path):
    tiny = ["data.head_widths=[16,8]", "data.per_client=8", "data.test=20", "method=local"]
    command = [Path(sys.executable).with_name("veilmark"), "federate", "ppidsg-digits", "--engine", "flower"]
    command += ["--rounds", "500", "--out", tmp_path / "run", *(word for value in tiny for word in ("--set", value))]
    before = processes()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "run/metrics.jsonl"
    for _ in range(1200):
        if log.exists() and log.read_text().count("\n") >= 2:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=120)[0]
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert processes() <= before
