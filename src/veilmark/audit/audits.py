"""An audit of a run, from its transcript to ``audit.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veilmark import __version__
from veilmark.audit.attack import Attack, Finding, Scene, Truth
from veilmark.audit.candidates import CandidatesOfGenerator
from veilmark.audit.cipher_audit import CipherJigsaw, CipherKnownPlaintext, key_obstacle
from veilmark.audit.class_mix import ClassMix
from veilmark.audit.client_inference import Linking, LinkingByFigures
from veilmark.audit.completed_share import MembershipByClient, MembershipByServer
from veilmark.audit.face_inversion import FaceInversion
from veilmark.audit.faces import people_of
from veilmark.audit.feature_inversion import PicturesFromHead
from veilmark.audit.generator_attacks import KeyOracle
from veilmark.audit.inverse_network import PicturesFromGenerated
from veilmark.audit.inversion_ladder import InversionOfClassifier, InversionOfGenerator
from veilmark.audit.label_inference import LabelCounts
from veilmark.audit.membership import MembershipByLoss
from veilmark.audit.noise_through_generator import NoiseThroughGenerator
from veilmark.audit.people import PersonMembership
from veilmark.audit.person_owner import OwnerOfPerson
from veilmark.audit.record import Record, ThreatModel, read_record
from veilmark.audit.released_share import DetectorFromShare
from veilmark.audit.score_mix import ClassMixOfScores
from veilmark.audit.shadow_membership import MembershipByLiRA, MembershipByPredictions
from veilmark.audit.shadows_behind_share import MembershipByLiRABehindShare
from veilmark.federation.config import LandmarksFederation
from veilmark.federation.finished import check_owners, secrets_of
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of
from veilmark.federation.samples import SHOWN, write_sheet
from veilmark.federation.tasks.classify import load_classify, without_owner
from veilmark.federation.tasks.landmarks import load_landmarks
from veilmark.federation.tasks.loading import TASKS
from veilmark.federation.tasks.owned_faces import load_aside, load_strangers, with_landmarks
from veilmark.federation.tasks.task import Data
from veilmark.federation.transcript import CHAIN, Transcript, TranscriptError
from veilmark.ppidsg.client_training import to_bytes
from veilmark.run.devices import choose_device
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunError, write_json
from veilmark.run.progress import progress_bar
from veilmark.run.seeds import rng_for

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        LabelCounts(),
        PicturesFromHead(),
        MembershipByLoss(),
        KeyOracle(),
        Linking(),
        LinkingByFigures(),
        MembershipByClient(),
        MembershipByServer(),
        CandidatesOfGenerator(),
        InversionOfClassifier(),
        InversionOfGenerator(),
        PicturesFromGenerated(),
        CipherKnownPlaintext(),
        CipherJigsaw(),
        MembershipByLiRA(),
        MembershipByPredictions(),
        ClassMix(),
        NoiseThroughGenerator(),
        ClassMixOfScores(),
        MembershipByLiRABehindShare(federations=6),
    )
}
"""Every attack, in the order in which a budget is spent: quick and telling ones first."""

FACE_ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (Linking(), OwnerOfPerson(), FaceInversion(), PersonMembership(), DetectorFromShare())
}
"""Those on federations of landmark detectors, in the same order."""

NOT_TRIED_ON_FACES = (
    "a malicious server that changes what it sends",
    "inversion that follows all steps of a round one by one, or with a generative model of faces as its prior",
    "membership with shadow federations of the very method",
    "what the scores say that owners send for the table of rounds",
    "faces of a person that the clients do not have: those asked about are the ones that were learned",
)
"""What an audit of a landmark federation does not do."""

NOT_TRIED = (
    "a malicious server that changes what it sends",
    "gradient inversion that follows all steps of a round one by one",
    "what a simulation draws from the run's public seed and a server could draw again: first weights of networks that "
    "stay with clients, the order of pictures, the transforms of ats",
    "members found at 0.1 % of false alarms: that takes 10,000 strangers, and 1,000 are asked about at most",
    "what the scores of clients, which they send for the table of rounds, say of who is in the training",
    "candidates that are only like a picture, or whose label is not known, held against the generator",
    "membership with more than nine shadow federations, or with others of as many clients as the run; where only a "
    "head travels, with any",
)
"""What an audit does not do, said in its report."""

_PUBLIC = 1000
"""Public pictures that attacks have at most."""
_PEOPLE = 4
"""Public people without whom attacks on landmark detectors have nobody to compare with."""
_STRANGERS = 1000
"""Pictures without an owner that are asked about beside members, at most: enough for 1 % of false alarms."""


class Sheets:
    """Writes what an attack shows: true pictures, and below them what the attack made of them.

    Args:
        folder: Where the PNGs go.
        attack: The attack's name.

    Attributes:
        written: Names of the files, in the audit's folder, by rung.
    """

    def __init__(self, folder: Path, attack: str) -> None:
        self.folder, self.attack = folder, attack
        self.written: dict[str, str] = {}

    def show(self, rung: str, true: Tensor, made: Tensor) -> None:
        """Writes one sheet; pictures are ``(n, c, s, s)`` in [-1, 1]."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.attack.replace(' ', '-')}-{len(self.written)}.png"
        write_sheet(path, [to_bytes(some[:SHOWN]) for some in (true, made)])
        self.written[rung] = f"{self.folder.name}/{path.name}"


def audit_run(
    run: Path,
    data: Path | None,
    out: Path,
    *,
    secrets: Path | None = None,
    seed: int = 0,
    budget: float | None = None,
    without: Collection[str] = (),
    device: str = "cpu",
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Plays the attacks on what the server of a run saw.

    Attacks get the record and the public test pictures. The clients' pictures and secrets, read from where the run
    has them, go to the scorers. A finished attack is not played again: an audit that was stopped goes on.

    Args:
        run: Folder of a federation's run.
        data: Folder of its data set; None for a bundled one.
        out: Folder of the audit.
        secrets: Folder of the run's secrets; ``<run>.secrets``, or ``secrets`` beside the run, by default.
        seed: Of everything that attacks draw.
        budget: Minutes after which no further attack is begun.
        without: Names of attacks that are left out, and listed like those that the budget left out.
        device: Where networks compute: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``. Figures of two devices are the same
            to rounding only, which a search for pictures enlarges.
        told: Called with what is said of each attack.

    Returns:
        The summary that was written beside ``audit.json``.

    Raises:
        RunError: If the run is not finished.
        TranscriptError: If the transcript is damaged; the message says where.
        ConfigError: If the device is not there, before any work; or if the data are not those of the run.
        DataError: If a file of the data is missing or damaged.
    """
    computes = choose_device(device)
    played = _summary_of(run)
    record = read_record(run / "transcript")
    transcript = Transcript(run / "transcript")
    if played.get("transcript", transcript.end()) != transcript.end():
        raise TranscriptError(
            f"{transcript.path} does not end as {run / 'summary.json'} says: it was cut short or changed"
        )
    truth, public = _truth(record, run, data, secrets)
    out.mkdir(parents=True, exist_ok=True)
    about = {"transcript": transcript.end(), "seed": seed, "version": __version__, "device": str(computes)}
    kept, pictures, seconds = _kept(out / "attacks.json", about)
    findings: list[dict[str, Any]] = []
    obstacles: dict[str, str] = {}
    skipped: list[str] = []
    started = time.monotonic()
    attacks = attacks_on(record)
    todo = [
        name
        for name, attack in attacks.items()
        if name not in kept and name not in without and not attack.obstacle(record)
    ]
    with progress_bar("") as bar:
        # By what attacks cost, so that the time left is more than a count of them.
        work = sum(attacks[name].cost for name in todo)
        whole = bar.add_task("attacks", total=100, note="% of the work")
        for name, attack in attacks.items():
            if why := attack.obstacle(record):
                obstacles[name] = why
                continue
            if name not in kept:
                if name in without or (budget is not None and time.monotonic() - started >= 60 * budget):
                    skipped.append(name)
                    continue
                line = bar.add_task(name, total=None, note="pieces of work")
                sheets, began = Sheets(out / "pictures", name), time.monotonic()
                scene = Scene(
                    record, public, truth, seed, lambda line=line: bar.advance(line), sheets.show, computes  # type: ignore[misc]
                )  # fmt: skip
                with _undisturbed(computes):
                    torch.manual_seed(seed)
                    kept[name] = [asdict(found) for found in attack.findings(scene)]
                pictures[name], seconds[name] = sheets.written, round(time.monotonic() - began, 1)
                bar.remove_task(line)
                bar.advance(whole, 100 * attack.cost / work)
                file = {**about, "findings": kept, "pictures": pictures, "seconds": seconds}
                write_json(out / "attacks.json", file)
            findings += kept[name]
            told(name)
    write_json(out / "audit.json", findings)
    task = TASKS[record.config.task]
    summary = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "run": run.resolve().name,
        "method": record.config.method,
        "dataset": record.config.data.layout,
        "clients": record.config.clients,
        "rounds": [recorded.number for recorded in record.rounds],
        "seed": seed,
        "device": str(computes),
        "score": played[task.score_name]["mean"],
        "score_words": task.score_words,
        "shared": sorted(record.declared.tensors),
        "metrics": list(record.declared.metrics),
        "scores": list(record.server.task.scored()),
        "public": len(public),
        "threat_models": {model.value: model.words for model in ThreatModel},
        "questions": {name: attack.question for name, attack in attacks.items()},
        "needs": {name: attack.needs for name, attack in attacks.items()},
        "obstacles": obstacles,
        "skipped": skipped,
        "seconds": {name: seconds[name] for name in kept if name in seconds},
        "pictures": {name: pictures[name] for name in kept if pictures.get(name)},
        "not_tried": list(NOT_TRIED_ON_FACES if attacks is FACE_ATTACKS else NOT_TRIED),
    }
    write_json(out / "summary.json", summary)
    return summary


def attacks_on(record: Record) -> dict[str, Attack]:
    """The attacks on what a record's clients learned, by name."""
    return FACE_ATTACKS if isinstance(record.config, LandmarksFederation) else ATTACKS


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """What is drawn meanwhile leaves no trace, and convolutions on a GPU are exact: gradients are compared closely."""
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        # By default a GPU rounds what it multiplies to 10 bits, and may add up in another order each time.
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        yield


def newest_run(folder: Path) -> Path | None:
    """The newest folder below ``folder`` with a transcript of a finished federation; None if there is none."""
    found = [path.parent for path in folder.glob("**/summary.json") if (path.parent / "transcript" / CHAIN).exists()]
    return max(found, key=lambda path: (path / "summary.json").stat().st_mtime, default=None)


def _truth(record: Record, run: Path, data: Path | None, secrets: Path | None) -> tuple[Truth, Data]:
    config = record.config
    if isinstance(config, LandmarksFederation):
        # Of owners without labels the scorer knows where landmarks are, all the same.
        _, everything, _, _ = load_landmarks(config.data, data, config.clients, config.seed, truth=True)
        check_owners(run, everything, data)
        owners = [with_landmarks(owned) for owned in everything]
        public = load_aside(config.data, data)
        if (people := len(set(people_of(public)))) < _PEOPLE:
            raise ConfigError(
                f"data.aside = {config.data.aside}: {people} people in that split; attacks need {_PEOPLE} public "
                "people at least: play the run with a larger one"
            )
        return Truth(owners, strangers=load_strangers(config.data, data)), public
    task, owners, _, _ = load_classify(config.data, data, config.clients, config.seed)
    if task.description() != record.task.description():
        raise ConfigError(f"the pictures in {data} are not those of {run}: {task.description()}")
    check_owners(run, owners, data)
    rows = np.sort(rng_for(0, 35).permutation(len(task.test))[:_PUBLIC])
    chosen = torch.from_numpy(rows)
    public = Data(task.test.inputs[chosen], task.test.targets[chosen], tuple(task.test.names[row] for row in rows))
    strangers = None
    if not MembershipByClient().obstacle(record):
        strangers = without_owner(config.data, data, owners, _STRANGERS)
    options = record.method.options
    known = secrets_of(run, secrets).of_client(0) if isinstance(options, PPIDSGOptions) else None
    truth = Truth(owners, strangers=strangers, first=known)
    if key_obstacle(record):
        return truth, public
    folder = secrets_of(run, secrets)
    same = PPIDSGOptions(scope=options.scope, block=options.block, without=options.without)
    everybody = [folder.of_client(number) for number in range(config.clients if same.scope == "client" else 1)]
    tables = [
        cipher_of(same, some.federation, some.own).table(task.channels, task.side, task.side) for some in everybody
    ]
    if same.scope == "client":
        return replace(truth, first=everybody[0], keys=tables), public
    return replace(truth, first=everybody[0], key=tables[0]), public


def _summary_of(run: Path) -> dict[str, Any]:
    """A finished run's ``summary.json``."""
    file = run / "summary.json"
    if not (run / "transcript").exists():
        raise TranscriptError(f"{run / 'transcript'} is not there; give a run folder of veilmark federate")
    if not file.exists():
        raise RunError(f"{run} is not finished: it has no {file.name}; go on with veilmark federate --resume")
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{file} is damaged: {error}; play the run again") from None
    return found


def _kept(
    path: Path, about: dict[str, Any]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, str]], dict[str, float]]:
    """Findings, names of sheets, and seconds, by attack."""
    if not path.exists():
        return {}, {}, {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        kept: dict[str, list[dict[str, Any]]] = said.pop("findings")
        pictures: dict[str, dict[str, str]] = said.pop("pictures")
        # Not there in audits that were begun before it was noted.
        seconds: dict[str, float] = said.pop("seconds", {})
        for found in (found for findings in kept.values() for found in findings):
            Finding(**found)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise TranscriptError(f"{path} is damaged; remove it, and the audit begins anew") from None
    # Of another transcript, seed, version or device: played anew.
    return (kept, pictures, seconds) if said == about else ({}, {}, {})
