"""A federation from its recipe to its run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from veilmark import __version__
from veilmark.federation.client_side import ClientSide, SecretFolder
from veilmark.federation.config import FederationConfig
from veilmark.federation.engine import InProcess, Rounds
from veilmark.federation.methods.method import Secrets, ServerView
from veilmark.federation.samples import write_samples
from veilmark.federation.tasks.loading import load_task
from veilmark.federation.transcript import Transcript, check_room, forecast
from veilmark.ppidsg.secret import Secret
from veilmark.run.config import dump
from veilmark.run.devices import choose_device
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunError, RunFolder, write_json
from veilmark.run.memory import forget_peak, give_back, peak_rss_mb
from veilmark.run.progress import progress_bar, say

Engine = Literal["in-process", "flower"]

_SECRETS_OF_RUN = "secrets.json"
"""File of a run folder that says with which secrets the run was begun."""


def run_federation(
    config: FederationConfig,
    data: Path | None,
    run: RunFolder,
    *,
    engine: Engine = "in-process",
    secrets: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    told: Callable[[dict[str, Any]], None] = lambda record: None,
) -> dict[str, str]:
    """Plays a federation on this machine; writes all of its run folder but the report.

    Args:
        config: What is played.
        data: Folder of the data set; None for a bundled one.
        run: The run folder, held by the caller.
        engine: ``in-process``, clients side by side in threads; ``flower``, in Flower's simulation.
        secrets: Folder of the secrets, made for a new run where they are missing; ``<run folder>.secrets`` by default.
        resume: Go on from the last finished round.
        device: Where clients compute: ``auto``, ``cpu`` or ``cuda``. On a GPU no two runs are the same to the last bit.
        told: Called after each round with its record.

    Returns:
        Pictures that could not be read, with the reason.

    Raises:
        ConfigError: If a setting does not fit; before any work.
        DataError: If a file of the data is missing or damaged.
        RunError: If the folder holds another run, or the secrets of the first start are not there.
    """
    forget_peak()
    method = config.made_method()
    computes = _flower_device(device) if engine == "flower" else choose_device(device)
    recorded = config.recorded()
    task, owners, partition, skipped = load_task(config, data)
    server = method.server(ServerView(task, config.clients, config.rounds, config.seed, config.training))
    secret_folder = SecretFolder(secrets or run.path.with_name(run.path.name + ".secrets"))
    if secret_folder.path.resolve().is_relative_to(run.path.resolve()):
        raise ConfigError(
            f"--secrets {secret_folder.path} lies in the run folder {run.path}, which may be shown to others; choose a "
            "folder beside it"
        )
    side = ClientSide(config, method, task, owners, secret_folder, run.path / "clients", computes)
    needed = forecast(server.broadcast(), server.declared(), config.clients, len(recorded))
    _build_once(side)
    if not (run.path / "config.yaml").exists():
        check_room(run.path, needed)
    run.start(dump(config), resume)
    _have_secrets(run, secret_folder, config.clients)
    _same_secrets(run, secret_folder.checks(config.clients))
    transcript = Transcript(run.path / "transcript")
    rounds = Rounds(config, server, task, run, transcript, told)
    done = rounds.resume()
    if not done:
        say(f"transcript: {len(recorded)} of {config.rounds} rounds, {needed / 1e6:.1f} MB")
    public = config.model_dump(mode="json")
    declared = {name: list(shape) for name, (shape, _) in server.declared().tensors.items()}
    manifest = {
        "config": public,
        "architecture": task.description(),
        "shared": declared,
        "metrics": list(server.declared().metrics),
    }
    transcript.start(manifest, done)
    if done < config.rounds:
        _play(engine, rounds, side, data, done)
    records = run.read_log()
    summary = {
        "title": f"{config.method}: {config.task} on {config.data.layout}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "method": config.method,
        "task": config.task,
        "dataset": config.data.layout,
        "partition": partition["kind"],
        "alpha": partition["alpha"],
        "clients": config.clients,
        "rounds": config.rounds,
        "seed": config.seed,
        "engine": engine,
        "device": str(computes),
        "precision": method.computes_in(computes),
        "options": method.options.model_dump(mode="json"),
        "data": public["data"],
        "training": public["training"],
        task.score_name: records[-1][task.score_name],
        "bytes_up_per_client_round": server.declared().size(),
        "bytes_down_per_client_round": records[-1]["bytes_down"] // config.clients,
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "peak_rss_mb": peak_rss_mb(children=engine == "flower"),
        "torch_threads": torch.get_num_threads(),
        "test_images": len(task.test_inputs),
        "classes": partition["classes"],
        "counts": partition["counts"],
        "owners": [owned.fingerprint for owned in owners],
        "refused": [said for record in records for said in record.get("refused", [])],
        "transcript": transcript.end(),
    }
    summary["samples"] = write_samples(side, server.broadcast(), config.rounds, run.path / "samples.png")
    write_json(run.path / "summary.json", summary)
    return skipped


def check_settings(config: FederationConfig, data: Path | None = None) -> None:
    """Builds what a run would build, and forgets it.

    Args:
        config: What would be played.
        data: Folder of the data set; None for a bundled one.

    Raises:
        ConfigError: If a setting does not fit.
        DataError: If a file of the data is missing or damaged.
    """
    method = config.made_method()
    task, owners, _, _ = load_task(config, data)
    method.server(ServerView(task, config.clients, config.rounds, config.seed, config.training))
    nowhere = Path("nowhere")
    _build_once(ClientSide(config, method, task, owners, SecretFolder(nowhere), nowhere, torch.device("cpu")))


def _build_once(side: ClientSide) -> None:
    """Builds a client of each kind: what does not fit (a block, say) is found now, not in the first round."""
    kinds = {bool(owned.targets.isnan().all()): number for number, owned in reversed(list(enumerate(side.owners)))}
    for number in kinds.values():
        side.method.client(side.view(number, Secrets(Secret.generate(), Secret.generate())))
    give_back()


def _have_secrets(run: RunFolder, secrets: SecretFolder, clients: int) -> None:
    """Makes the secrets of a new run; of one that was begun they must be there, for others would not open its share."""
    if not (run.path / _SECRETS_OF_RUN).exists():
        secrets.make_missing(clients)
        return
    if missing := secrets.missing(clients):
        raise RunError(
            f"{missing[0]} is not there, and {run.path} was begun with it; put it back, give the folder of the run's "
            "secrets with --secrets, or begin a new run with another --out"
        )


def _same_secrets(run: RunFolder, checks: dict[str, str]) -> None:
    """Notes which secrets a run has (four bytes that open nothing), and refuses to go on with others."""
    file = run.path / _SECRETS_OF_RUN
    if not file.exists():
        write_json(file, checks)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for name, check in checks.items():
        if before.get(name) != check:
            raise RunError(
                f"{name} is not the secret that {run.path} was begun with ({check}, then {before.get(name)}); give its "
                "folder with --secrets, or choose another --out"
            )


def _flower_device(device: str) -> torch.device:
    """The CPU, if Flower is installed."""
    if find_spec("flwr") is None or find_spec("ray") is None:
        raise ConfigError("engine flower: Flower is not installed; pip install 'veilmark[federation]'")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"engine flower computes on the CPU, not on {device}; take --engine in-process for that")
    return torch.device("cpu")


def _play(
    engine: Engine,
    rounds: Rounds,
    side: ClientSide,
    data: Path | None,
    done: int,
) -> None:
    config, run = rounds.config, rounds.run
    turns = 2 * config.clients
    with progress_bar("clients' turns") as bar:
        task = bar.add_task("federating", total=turns * config.rounds, completed=turns * done, note="")

        def advance() -> None:
            bar.advance(task)

        if engine == "in-process":
            rounds.play(InProcess(side, advance), done + 1)
            return
        # Flower is an optional dependency.
        from veilmark.federation.client_app import Place
        from veilmark.federation.flower import simulate
        from veilmark.federation.server_app import GridLink

        place = Place(
            config.model_dump_json(),
            data and data.resolve(),
            side.secrets.path.resolve(),
            side.folder.resolve(),
        )
        simulate(
            place,
            config.clients,
            run.path / "flower.log",
            lambda grid, interrupted: rounds.play(
                GridLink(grid, config, advance=advance, interrupted=interrupted), done + 1
            ),
        )
