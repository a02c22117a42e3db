"""Recipes by kind: which training a recipe asks for, checked before any work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from veilmark.run.config import load_recipe, override, resolve
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunFolder
from veilmark.sht.dhln_training import DHLNTraining, LandmarkTraining, Trained, train_dhln
from veilmark.sht.sht_training import SHTTraining, train_sht

KINDS: dict[str, tuple[type[LandmarkTraining], Callable[..., Trained]]] = {
    "dhln": (DHLNTraining, train_dhln),
    "sht": (SHTTraining, train_sht),
}


def resolve_recipe(values: dict[str, Any], source: str) -> tuple[LandmarkTraining, Callable[..., Trained]]:
    """The config that the values describe, and what trains by it.

    Args:
        values: What a recipe and the settings say; ``kind`` names the training.
        source: Where they came from, for the message.

    Raises:
        ConfigError: If the kind is unknown, or a key or value is not allowed.
    """
    kind = values.get("kind", "dhln")
    if kind not in KINDS:
        raise ConfigError(f"{source}: kind = {kind!r}; known: {', '.join(KINDS)}")
    model, train = KINDS[kind]
    return resolve(model, values, source), train


def start_training(recipe: str, settings: list[str]) -> Callable[[Path, RunFolder, Path, bool], Trained]:
    """A training that is ready to start: call it with data folder, run folder, cache folder and ``resume``.

    Args:
        recipe: Name of a packaged recipe.
        settings: ``path.to.key=value`` each.

    Raises:
        ConfigError: If the recipe is unknown, or a key or value is not allowed.
    """
    source = f"recipe {recipe}" + (" with --set" if settings else "")
    config, train = resolve_recipe(override(load_recipe(recipe), settings), source)
    return partial(train, config)
