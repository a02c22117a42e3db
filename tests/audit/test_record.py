import hashlib
import json
import shutil

import pytest
import torch

from tiny_federations import config, play
from veilmark.audit.generator_attacks import generator_in, released
from veilmark.audit.record import Record, read_record
from veilmark.federation.methods import METHODS
from veilmark.federation.transcript import Transcript, TranscriptError
from veilmark.run.checkpoints import read_tensors, write_tensors


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    return play(folder / "run", config(method="none", record="all")).path / "transcript"


@pytest.fixture
def transcript(played, tmp_path):
    return shutil.copytree(played, tmp_path / "transcript")


def rechained(path):
    """Writes the chain anew, as somebody would who changes files and knows the format."""
    old = Transcript(path)
    files = [json.loads(line)["file"] for line in (path / "chain.jsonl").read_text().splitlines()]
    previous, lines = "0" * 64, []
    for file in files:
        lines.append(old._line(file, previous))
        previous = hashlib.sha256(lines[-1].encode()).hexdigest()
    (path / "chain.jsonl").write_text("".join(line + "\n" for line in lines))


def test_record_holds_every_message(transcript):
    record = read_record(transcript)
    assert [recorded.number for recorded in record.rounds] == [1, 2]
    assert [list(recorded.updates) for recorded in record.rounds] == [[0, 1], [0, 1]]
    sent, _ = read_tensors(transcript / "round-0002" / "client-1.safetensors")
    kept = record.rounds[1].updates[1].tensors
    assert all(torch.equal(kept[name], value) for name, value in sent.items())
    assert record.rounds[0].updates[0].examples == 8
    assert set(record.rounds[0].updates[0].metrics) == {"loss", "accuracy"}
    scores, _ = read_tensors(transcript / "round-0002" / "scores.safetensors")
    assert record.rounds[1].scores == {
        client: {name: tuple(scores[f"{client}/{name}"].tolist()) for name in ("accuracy", "of_classes")}
        for client in (0, 1)
    }


def test_a_round_without_its_scores_is_refused(transcript):
    (transcript / "round-0002" / "scores.safetensors").unlink()
    lines = (transcript / "chain.jsonl").read_text().splitlines()
    (transcript / "chain.jsonl").write_text("".join(f"{line}\n" for line in lines if "0002/scores" not in line))
    rechained(transcript)
    with pytest.raises(TranscriptError, match=r"round-0002 has no scores\.safetensors"):
        read_record(transcript)


def test_record_holds_no_example(transcript):
    record = read_record(transcript)
    assert len(record.task.test) == 0
    with pytest.raises(AttributeError):
        record.config = None
    assert set(Record.__dataclass_fields__) == {"config", "method", "server", "declared", "start", "rounds"}


@pytest.mark.parametrize(
    "method", [name for name, kind in METHODS.items() if "classify" in kind.tasks and name not in ("none", "dpsgd")]
)
def test_record_of_every_method(tmp_path, method):
    run = play(tmp_path / "run", config(method=method, rounds=1))
    assert read_record(run.path / "transcript").config.method == method


def test_record_of_ppidsg_whose_discriminator_travels(tmp_path):
    shared = {"options__ppidsg__share": ["generator", "discriminator"], "options__ppidsg__clip": 1.0}
    run = play(tmp_path / "run", config(method="ppidsg", rounds=1, options__ppidsg__noise=0.1, **shared))
    record = read_record(run.path / "transcript")
    assert record.declared.metrics == ("epsilon",)
    message = record.rounds[0].updates[1].tensors
    assert any(name.startswith("discriminator.") for name in message)
    made = generator_in(record, message).state_dict()
    assert all(torch.equal(value, message[name]) for name, value in made.items())
    ended = read_tensors(run.path / "checkpoints/server-0001.safetensors")[0]
    for name, value in released(record).state_dict().items():
        assert torch.allclose(value, ended[name])
        assert not torch.equal(value, record.rounds[0].broadcast[name])
    path = run.path / "transcript" / "round-0001" / "client-0.safetensors"
    rewritten(path, lambda t, m: t.pop("discriminator.layers.0.weight"))
    with pytest.raises(TranscriptError, match=r"discriminator\.layers\.0\.weight"):
        read_record(run.path / "transcript")


def edited(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    rechained(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(version=1), "version 1"),
        (lambda m: m.update(labels=[1]), "labels"),
        (lambda m: m["architecture"].update(secret="x"), "architecture.secret"),
        (lambda m: m["config"].update(key="x"), "key"),
        (lambda m: m["shared"].update(more=[1]), "does not send"),
        (lambda m: m["metrics"].append("labels"), "does not send"),
        (lambda m: m["architecture"].update(side=30), "does not fit"),
    ],
)
def test_manifest_with_anything_else_is_refused(transcript, change, words):
    edited(transcript, change)
    with pytest.raises(TranscriptError, match=words) as error:
        read_record(transcript)
    assert "manifest.json" in str(error.value)


def rewritten(path, change):
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)
    rechained(path.parent.parent)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("client-0", lambda t, m: t.update(images=torch.zeros(2)), "images"),
        ("client-0", lambda t, m: t.pop("extractor.0.weight"), "extractor.0.weight"),
        ("client-0", lambda t, m: t.update({"extractor.0.weight": torch.zeros(2)}), "extractor.0.weight"),
        ("client-0", lambda t, m: m.update(labels="[1]"), "beside the tensors"),
        ("client-0", lambda t, m: m.update(metrics='{"loss": 1, "accuracy": 2, "labels": 3}'), "'labels'"),
        ("client-0", lambda t, m: m.update(examples="many"), "beside the tensors"),
        ("broadcast", lambda t, m: t.update(images=torch.zeros(2)), "images"),
        ("broadcast", lambda t, m: m.update(labels="[1]"), "'labels'"),
        ("scores", lambda t, m: t.update({"0/labels": torch.zeros(1).double()}), "'0/labels'"),
        ("scores", lambda t, m: t.update({"2/accuracy": torch.zeros(1).double()}), "clients 0 to 1"),
        ("scores", lambda t, m: t.update({"0/accuracy": torch.zeros(2).double()}), "not 1 float64"),
        ("scores", lambda t, m: t.update({"0/accuracy": torch.zeros(1)}), "not 1 float64"),
        ("scores", lambda t, m: t.pop("1/of_classes"), "client 1 lacks the score 'of_classes'"),
        ("scores", lambda t, m: m.update(labels="[1]"), "'labels'"),
    ],
)
def test_message_with_anything_else_is_refused(transcript, file, change, words):
    path = transcript / "round-0001" / f"{file}.safetensors"
    rewritten(path, change)
    with pytest.raises(TranscriptError, match=words) as error:
        read_record(transcript)
    assert str(path) in str(error.value)


def test_tampered_truncated_and_empty_transcripts_are_refused(transcript, tmp_path):
    path = transcript / "round-0001" / "client-0.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(TranscriptError, match="was changed"):
        read_record(transcript)
    path.write_bytes(whole)
    path.rename(tmp_path / "away")
    with pytest.raises(TranscriptError, match=r"client-0\.safetensors"):
        read_record(transcript)
    with pytest.raises(TranscriptError, match="no chain"):
        read_record(tmp_path / "nothing")


def test_a_transcript_that_was_cut_short_is_refused(transcript):
    lines = (transcript / "chain.jsonl").read_text().splitlines()
    whole = Transcript(transcript).end()
    assert len(whole) == 64
    shutil.rmtree(transcript / "round-0002")
    (transcript / "chain.jsonl").write_text("".join(f"{line}\n" for line in lines if "round-0002" not in line))
    assert Transcript(transcript).end() != whole
    with pytest.raises(TranscriptError, match="lacks round 2, which the config says is recorded"):
        read_record(transcript)


def test_transcript_without_rounds_says_how_to_record(tmp_path):
    run = play(tmp_path / "run", config(method="none", rounds=1, record=[]))
    with pytest.raises(TranscriptError, match="record=all"):
        read_record(run.path / "transcript")
