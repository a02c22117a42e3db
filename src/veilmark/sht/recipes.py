"""Recipes by kind: which training a recipe asks for, checked before any work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from veilmark.run.config import load_recipe, override, resolve
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunFolder
from veilmark.sht.dhln_training import DHLNTraining, Trained, train_dhln
from veilmark.sht.parallel import check_shares
from veilmark.sht.sht_training import SHTTraining, train_sht
from veilmark.sht.training import make_fabric
from veilmark.sht.training_sets import LandmarkTraining

KINDS: dict[str, tuple[type[LandmarkTraining], Callable[..., Trained | None]]] = {
    "dhln": (DHLNTraining, train_dhln),
    "sht": (SHTTraining, train_sht),
}


def resolve_recipe(values: dict[str, Any], source: str) -> tuple[LandmarkTraining, Callable[..., Trained | None]]:
    """The config that the values describe, and what trains by it.

    Args:
        values: What a recipe and the settings say; ``kind`` names the training.
        source: Where they came from, for the message.

    Raises:
        ConfigError: If the kind is unknown, or a key or value is not allowed.
    """
    kind = values.get("kind", "dhln")
    if kind == "federation":
        raise ConfigError(f"{source} is a federation; start it with: veilmark federate")
    if kind not in KINDS:
        raise ConfigError(f"{source}: kind = {kind!r}; known: {', '.join(KINDS)}")
    model, train = KINDS[kind]
    return resolve(model, values, source), train


def whole_batches(config: LandmarkTraining) -> dict[str, int]:
    """The settings that are divided among the processes of a training, and their sizes."""
    sizes = {"schedule.batch": config.schedule.batch}
    if isinstance(config, SHTTraining):
        sizes |= {"joint_schedule.batch": config.joint_schedule.batch, "pairs.per_step": config.pairs.per_step}
    return sizes


def start_training(
    recipe: str, settings: list[str], devices: int = 1, nodes: int = 1
) -> tuple[Fabric, Callable[[Path, RunFolder, Path, bool], Trained | None]]:
    """A training that is ready to start, and the devices and processes it will have.

    Args:
        recipe: Name of a packaged recipe.
        settings: ``path.to.key=value`` each.
        devices: Processes on each machine, one a GPU.
        nodes: Machines.

    Returns:
        The processes, not yet launched, and what trains: call it with data folder, run folder, cache folder and
        ``resume``. It launches the processes once these are known to fit, and gives None in all but the first.

    Raises:
        ConfigError: If the recipe is unknown, a key or value is not allowed, or the processes do not fit.
    """
    source = f"recipe {recipe}" + (" with --set" if settings else "")
    config, train = resolve_recipe(override(load_recipe(recipe), settings), source)
    check_shares(whole_batches(config), devices * nodes)
    fabric = make_fabric(config.schedule, devices, nodes)
    return fabric, partial(train, config, fabric=fabric)
