"""What an attacker has: the messages that the server saw, the public config, the public architecture. Nothing else.

A record is built from a transcript through an allow-list. The clients' pictures and secrets cannot be in it: they go
to the scorer of an attack, by an argument of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilmark.federation.config import FederationConfig, LandmarksFederation, federation_from
from veilmark.federation.messages import Declared, Update, UpdateRefused
from veilmark.federation.methods.fedavg import weighted_mean
from veilmark.federation.methods.method import Method, Server, ServerView
from veilmark.federation.tasks.classify import ClassifierNetwork, Classify
from veilmark.federation.tasks.landmarks import LandmarksTask
from veilmark.federation.tasks.task import Data, Task
from veilmark.federation.transcript import SCORES, VERSION, Transcript, TranscriptError
from veilmark.run.checkpoints import Tensors, read_tensors
from veilmark.run.errors import ConfigError, VeilmarkError
from veilmark.run.seeds import rng_for
from veilmark.sht.training_sets import NetworkConfig


class ThreatModel(StrEnum):
    """Who attacks, and what that somebody has."""

    server = "honest-but-curious server"
    """The record."""
    client = "curious client"
    """The broadcasts, its own pictures and networks, and a secret of the federation's scope."""
    outsider = "outsider"
    """The released weights and public data."""

    @property
    def words(self) -> str:
        """Who that is, for a reader who does not know the field."""
        return {
            ThreatModel.server: "The server, which follows the rules and looks at what it was sent",
            ThreatModel.client: "Another client, which follows the rules and looks at what it was sent",
            ThreatModel.outsider: "Anybody with the finished model and public pictures",
        }[self]


class _Architecture(BaseModel):
    """The public measures of the task ``classify``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    channels: int = Field(ge=1, le=3)
    side: int = Field(ge=1)
    head_widths: list[int] = Field(min_length=2, max_length=2)
    classes: list[str] = Field(min_length=1)


class _Manifest(BaseModel):
    """What ``manifest.json`` may hold, and all of it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: int
    config: dict[str, Any]
    architecture: _Architecture
    shared: dict[str, list[int]]
    metrics: list[str]


class _FacesManifest(_Manifest):
    """The same, of a federation of landmark detectors."""

    architecture: NetworkConfig  # type: ignore[assignment]


class _Said(BaseModel):
    """What may stand beside the tensors of an update."""

    model_config = ConfigDict(extra="forbid")
    metrics: str
    examples: int


@dataclass(frozen=True, eq=False)
class RecordedRound:
    """The messages of one round.

    Attributes:
        number: From 1.
        broadcast: What every client was sent.
        updates: What clients sent, by client, in the terms of what was broadcast: a server rebuilds what travels in
            another form.
        scores: What clients said after the round of their answers to the public test set, by client: what the task
            declares, by name.
    """

    number: int
    broadcast: Tensors
    updates: Mapping[int, Update]
    scores: Mapping[int, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Record:
    """What an attacker has.

    Attributes:
        config: The public config. It holds the run's seed, as the server does.
        method: What clients do, with its public options.
        server: What the server knows: networks and settings, no example.
        declared: What an update looks like, in those terms.
        start: What the first round is sent: public, for it comes from the seed.
        rounds: The recorded rounds, oldest first.
    """

    config: FederationConfig
    method: Method[Any]
    server: ServerView
    declared: Declared
    start: Tensors
    rounds: tuple[RecordedRound, ...]

    @property
    def task(self) -> Classify:
        """The networks of the task, without a test set."""
        assert isinstance(self.server.task, Classify)
        return self.server.task

    @property
    def faces(self) -> LandmarksTask:
        """The same, of a federation of landmark detectors."""
        assert isinstance(self.server.task, LandmarksTask)
        return self.server.task


def read_record(path: Path) -> Record:
    """Reads a transcript, if it is whole and holds what a transcript may hold.

    Args:
        path: The folder ``transcript`` of a federation's run.

    Returns:
        The record.

    Raises:
        TranscriptError: If a file is missing, changed, of another version, or holds a key or tensor that was not
            declared; the message says where.
    """
    transcript = Transcript(path)
    files = transcript.verify()
    manifest = _manifest(transcript.path / "manifest.json")
    try:
        config = federation_from(manifest.config, "config")
        method = config.made_method()
        server = ServerView(
            _task(config, manifest.architecture), config.clients, config.rounds, config.seed, config.training
        )
        made = method.server(server)
        declared, sent = made.declared(), Declared.like(made.broadcast())
    except (ValidationError, ConfigError) as error:
        raise TranscriptError(f"{transcript.path / 'manifest.json'}: the config does not fit: {error}") from error
    shapes = {name: list(shape) for name, (shape, _) in declared.tensors.items()}
    if manifest.shared != shapes or manifest.metrics != list(declared.metrics):
        raise TranscriptError(
            f"{transcript.path / 'manifest.json'} declares tensors or metrics that the method {config.method} does not "
            "send; was it written by another version of Veilmark?"
        )
    rounds: dict[int, dict[str, Path]] = {}
    for file in files[1:]:
        folder, _, name = file.partition("/")
        number = folder.removeprefix("round-")
        if not (folder.startswith("round-") and number.isdecimal() and name.endswith(".safetensors")):
            raise TranscriptError(f"{transcript.path / file} is no message of a round")
        rounds.setdefault(int(number), {})[name.removesuffix(".safetensors")] = transcript.path / file
    if not rounds:
        raise TranscriptError(f"{transcript.path} holds no round; play the federation with --set record=all")
    if missing := sorted(set(config.recorded()) - set(rounds)):
        raise TranscriptError(
            f"{transcript.path} lacks round {missing[0]}, which the config says is recorded: it was cut short, or the "
            "run is not finished; go on with veilmark federate --resume"
        )
    read = [_round(number, found, declared, sent, made, server) for number, found in sorted(rounds.items())]
    declared_as = Declared.like(made.broadcast(), declared.metrics)
    return Record(config, method, server, declared_as, made.broadcast(), tuple(read))


def not_released(record: Record) -> str | None:
    """Why the record does not hold what the run released; None where it does."""
    if not record.declared.tensors:
        return "nothing is released"
    if (last := record.rounds[-1]).number < record.config.rounds or not last.updates:
        return f"the last of {record.config.rounds} rounds is not in the record, and with it what was released"
    return None


def finished_share(record: Record) -> Tensors:
    """What a run ends with, and hands out: the mean of the messages of its last round, as its server takes it.

    A server that does more (``fedcg`` distils, ``dp`` may add noise) hands out something near it.

    Args:
        record: What the server saw; :func:`not_released` says whether it holds that.
    """
    last = record.rounds[-1]
    before = {name: value.float() if value.is_floating_point() else value for name, value in last.broadcast.items()}
    means = weighted_mean(last.updates, before)
    return {name: value.to(last.broadcast[name].dtype) for name, value in means.items()}


def in_noise(record: Record, seed: int) -> Record:
    """The record with noise in place of what clients changed: what negative controls of the run itself are played on.

    Args:
        record: What the server saw.
        seed: Of the noise, which has the spread of each change, tensor by tensor, pruned where the method prunes.
    """
    rounds = []
    for recorded in record.rounds:
        updates = {}
        for client, update in recorded.updates.items():
            generator = torch.Generator().manual_seed(int(rng_for(seed, 75, recorded.number, client).integers(2**31)))
            tensors = dict(update.tensors)
            for name, value in update.tensors.items():
                if name in recorded.broadcast and value.is_floating_point():
                    before = recorded.broadcast[name].to(value.dtype)
                    spread = (value - before).square().mean().sqrt()
                    noise = spread * torch.randn(value.shape, generator=generator)
                    tensors[name] = before + record.method.sent_of(noise)
            updates[client] = replace(update, tensors=tensors)
        rounds.append(replace(recorded, updates=updates))
    return replace(record, rounds=tuple(rounds))


def network_of(record: Record, tensors: Tensors, device: torch.device | str = "cpu") -> ClassifierNetwork:
    """The shared classifier with the weights of a message; what does not travel stays at the public start.

    Args:
        record: What the server saw.
        tensors: A broadcast, or an update.
        device: Where it computes.
    """
    network = record.task.network(record.config.seed)
    network.load_state_dict({**network.state_dict(), **{k: v for k, v in tensors.items() if k in network.state_dict()}})
    return network.to(device)


def _manifest(path: Path) -> _Manifest:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        version = said.get("version") if isinstance(said, dict) else None
        if version != VERSION:
            raise TranscriptError(f"{path} is of version {version!r}; this Veilmark reads version {VERSION}")
        config = said.get("config")
        faces = isinstance(config, dict) and config.get("task") == LandmarksTask.name
        return (_FacesManifest if faces else _Manifest).model_validate(said)
    except json.JSONDecodeError as error:
        raise TranscriptError(f"{path} is not JSON: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise TranscriptError(f"{path}: {key}: {problem['msg']}; a record takes nothing but what is declared") from None


def _task(config: FederationConfig, architecture: _Architecture | NetworkConfig) -> Task:
    if isinstance(config, LandmarksFederation):
        if architecture != config.data.network:
            raise ConfigError("the architecture is not the one that data.network says")
        return LandmarksTask(config.data, [])
    assert isinstance(architecture, _Architecture)
    channels, side = architecture.channels, architecture.side
    nothing = Data(torch.zeros(0, channels, side, side, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ())
    if list(config.data.head_widths) != architecture.head_widths:
        raise ConfigError(f"head_widths are {architecture.head_widths} and {list(config.data.head_widths)}")
    return Classify(config.data, tuple(architecture.classes), channels, side, nothing)


def _round(
    number: int, files: Mapping[str, Path], declared: Declared, sent: Declared, server: Server, view: ServerView
) -> RecordedRound:
    for needed in ("broadcast", SCORES):
        if needed not in files:
            some = next(iter(files.values()))
            raise TranscriptError(f"{some.parent} has no {needed}.safetensors")
    broadcast, said = _read(files["broadcast"], sent)
    if said:
        raise TranscriptError(f"{files['broadcast']}: has {sorted(said)[0]!r} beside its tensors")
    updates = {}
    for name, path in files.items():
        if name in ("broadcast", SCORES):
            continue
        client = name.removeprefix("client-")
        if not (name.startswith("client-") and client.isdecimal() and int(client) < view.clients):
            raise TranscriptError(f"{path} is no message of clients 0 to {view.clients - 1}")
        update = _update(path, declared)
        try:
            server.check(update)
        except UpdateRefused as problem:
            raise TranscriptError(f"{path}: {problem}") from None
        updates[int(client)] = replace(update, tensors=server.rebuilt(broadcast, update.tensors))
    return RecordedRound(number, broadcast, dict(sorted(updates.items())), _scores(files[SCORES], view))


def _scores(path: Path, view: ServerView) -> dict[int, dict[str, tuple[float, ...]]]:
    try:
        tensors, said = read_tensors(path)
    except VeilmarkError as error:
        raise TranscriptError(str(error)) from error
    if said:
        raise TranscriptError(f"{path}: has {sorted(said)[0]!r} beside its tensors")
    known = view.task.scored()
    found: dict[int, dict[str, tuple[float, ...]]] = {}
    for name, value in tensors.items():
        client, _, what = name.partition("/")
        if not (client.isdecimal() and int(client) < view.clients and what in known):
            raise TranscriptError(f"{path}: {name!r} is no declared score of clients 0 to {view.clients - 1}")
        size = known[what]
        if value.dtype != torch.float64 or value.ndim != 1 or (size is not None and len(value) != size):
            raise TranscriptError(f"{path}: {name!r} is {tuple(value.shape)} {value.dtype}, not {size} float64")
        found.setdefault(int(client), {})[what] = tuple(value.tolist())
    for number, figures in found.items():
        if missing := sorted(set(known) - set(figures)):
            raise TranscriptError(f"{path}: client {number} lacks the score {missing[0]!r}")
    return dict(sorted(found.items()))


def _update(path: Path, declared: Declared) -> Update:
    tensors, metadata = _read(path, declared)
    try:
        said = _Said.model_validate(metadata)
        metrics = json.loads(said.metrics)
        figures = {name: float(metrics[name]) for name in declared.metrics}
    except (ValidationError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        raise TranscriptError(f"{path}: what was declared beside the tensors is damaged, or not all of it") from None
    if extra := sorted(set(metrics) - set(figures)):
        raise TranscriptError(f"{path}: has the metric {extra[0]!r}, which is not declared")
    return Update(tensors, figures, said.examples)


def _read(path: Path, declared: Declared) -> tuple[Tensors, dict[str, str]]:
    try:
        tensors, metadata = read_tensors(path)
    except VeilmarkError as error:
        raise TranscriptError(str(error)) from error
    found = Declared.like(tensors).tensors
    for name in sorted(set(found) | set(declared.tensors)):
        if found.get(name) != declared.tensors.get(name):
            raise TranscriptError(
                f"{path}: tensor {name!r} is {found.get(name, 'missing')}, declared {declared.tensors.get(name, 'not')}"
            )
    return tensors, metadata
