"""A federation that is over: its clients as they were at the end, newcomers, and what a client takes home."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from veilmark.federation.client_side import ClientSide, SecretFolder
from veilmark.federation.config import FederationConfig, federation_from
from veilmark.federation.methods.method import Client, ClientView, Secrets, ServerView
from veilmark.federation.tasks.landmarks import HEADS, LandmarksTask
from veilmark.federation.tasks.loading import load_task
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors, read_tensors
from veilmark.run.devices import choose_device
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunError
from veilmark.run.local_training import Training
from veilmark.run.seeds import rng_for
from veilmark.sht.dhln import DHLN
from veilmark.sht.generated_detector import GeneratedDetector


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run folder whose last round is done.

    Attributes:
        config: What was played.
        side: The clients with their data, secrets and memory.
        share: What the server holds.
    """

    config: FederationConfig
    side: ClientSide
    share: Tensors

    def client(self, number: int) -> Client:
        """One client as it was at the end.

        Raises:
            ConfigError: If there is none of that number.
        """
        if not 0 <= number < self.config.clients:
            raise ConfigError(f"client {number}: the run has clients 0 to {self.config.clients - 1}")
        return self.side.built(number, self.config.rounds)

    def join(self, data: Data, place: int, training: Training | None = None) -> Client:
        """A newcomer: gets the share and the clients' common secret, and trains what stays with a client.

        Args:
            data: Its examples.
            place: Its number among newcomers, from 0; its own secret is drawn from it and the run's seed.
            training: How long and how fast it learns, in as many rounds as the run had; the run's by default.

        Returns:
            The client, trained; ``predict(share, inputs)`` answers.

        Raises:
            ConfigError: If nobody can join with the run's method.
        """
        config = self.config
        own = Secret(rng_for(config.seed, 66, place).bytes(SECRET_BYTES))
        secrets = Secrets(self.side.secrets.common(), own)
        view = ClientView(
            config.clients + place, self.side.task, data, training or config.training, config.rounds, config.seed,
            secrets, self.side.device,
        )  # fmt: skip
        client = self.side.method.client(view)
        client.join(self.share)
        return client


def open_finished(
    run: Path, data: Path | None, secrets: Path | None = None, device: torch.device | str = "cpu"
) -> FinishedRun:
    """Opens a run folder of ``veilmark federate``.

    Args:
        run: The folder.
        data: Folder of the run's data set; None for one that is bundled or drawn.
        secrets: Folder of its secrets; ``<run>.secrets``, or ``secrets`` beside the run, by default.
        device: Where clients compute.

    Raises:
        RunError: If it is no such folder, or its last round is not done.
        ConfigError: If its secrets are not there, or the data are not those of the run.
        DataError: If files of the data are missing or damaged.
    """
    file = run / "config.yaml"
    if not file.exists():
        raise RunError(f"{run} is no run folder of veilmark federate: it has no config.yaml")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "clients" not in values:
        raise RunError(f"{file} is not of a federation; give a run folder of veilmark federate")
    config = federation_from(values, str(file))
    checkpoint = run / f"checkpoints/server-{config.rounds:04d}.safetensors"
    if not checkpoint.exists():
        raise RunError(f"{run} is not finished: no {checkpoint.name}; go on with veilmark federate --resume")
    method = config.made_method()
    task, owners, _, _ = load_task(config, data)
    check_owners(run, owners, data)
    side = ClientSide(config, method, task, owners, secrets_of(run, secrets), run / "clients", device)
    server = method.server(ServerView(task, config.clients, config.rounds, config.seed, config.training))
    state = read_tensors(checkpoint)[0]
    return FinishedRun(config, side, {name: state[name] for name in server.broadcast()})


def check_owners(run: Path, owners: Sequence[Data], data: Path | None) -> None:
    """Refuses data that are not those of a run.

    Args:
        run: The run folder.
        owners: The owners' examples as they were loaded.
        data: Where from.

    Raises:
        ConfigError: If an owner has other examples now.
    """
    file = run / "summary.json"
    before = json.loads(file.read_text(encoding="utf-8")).get("owners") if file.exists() else None
    now = [owned.fingerprint for owned in owners]
    if before is not None and before != now:
        number = next((place for place, pair in enumerate(zip(before, now, strict=False)) if len(set(pair)) > 1), 0)
        raise ConfigError(
            f"{data or 'the bundled data'}: not what {run} was played with (client {number} had other examples); give "
            "the folder of that run with --data"
        )


def secrets_of(run: Path, secrets: Path | None = None) -> SecretFolder:
    """The folder of a run's secrets.

    Args:
        run: The run folder.
        secrets: Where they are said to be; ``<run>.secrets``, or ``secrets`` beside the run, by default.

    Raises:
        ConfigError: If they are not there.
    """
    places = [secrets] if secrets else [run.with_name(run.name + ".secrets"), run.parent / "secrets"]
    for place in places:
        if (place / "federation.key").exists():
            return SecretFolder(place)
    raise ConfigError(f"{places[0]} has no federation.key; give the folder of the run's secrets with --secrets")


def export_client(
    run: Path, number: int, out: Path, data: Path | None, *, secrets: Path | None = None, device: str = "cpu"
) -> Path:
    """Writes a client's detector as a weight folder for ``detect``, ``evaluate`` and ``Landmarker``.

    The mean face of its people goes with it: the floor in ``evaluate``'s tables.

    Args:
        run: Run folder of a federation of landmark detectors.
        number: The client.
        out: The new folder.
        data: Folder of the run's data set; None for synthetic faces.
        secrets: Folder of the run's secrets; beside the run by default.
        device: Where to compute.

    Returns:
        The folder.

    Raises:
        ConfigError: If the run learned something else, there is no such client, it has no labels and so no detector of
            its own, or the folder is taken.
        RunError: If it is no finished run.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another --out")
    finished = open_finished(run, data, secrets, choose_device(device))
    task = finished.side.task
    if not isinstance(task, LandmarksTask):
        raise ConfigError(f"{run} learned the task {task.name}; a detector comes from the task landmarks")
    owned = finished.side.owners[min(max(number, 0), finished.config.clients - 1)]
    client = finished.client(number)
    sent = any(name.startswith(HEADS) for name in finished.share)
    if bool(owned.targets.isnan().all()) and not sent:
        raise ConfigError(
            f"client {number} has no labels, and with the method {finished.config.method} no detector; choose another"
        )
    network = client.network_with(finished.share).cpu().float()
    assert isinstance(network, DHLN | GeneratedDetector)
    shape = task.mean_shape(owned)
    if shape is not None:
        network.mean_shape.copy_(torch.from_numpy(shape.astype(np.float32)))
    out.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(out)
    return out
