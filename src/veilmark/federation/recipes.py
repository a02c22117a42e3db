"""Federations by recipe: the config, and the run with its progress on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from veilmark.federation.config import FederationConfig
from veilmark.federation.runs import Engine, run_federation
from veilmark.run.config import load_recipe, override, recipe_names, resolve
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunFolder
from veilmark.run.progress import console, say


def federation_config(recipe: str, settings: list[str]) -> FederationConfig:
    """The config of a packaged recipe.

    Args:
        recipe: Its name.
        settings: ``path.to.key=value`` each.

    Raises:
        ConfigError: If there is no such recipe, it is of another kind, or a key or value is not allowed.
    """
    values = load_recipe(recipe)
    if values.get("kind") != "federation":
        ours = [name for name in recipe_names() if load_recipe(name).get("kind") == "federation"]
        raise ConfigError(f"{recipe} is no federation but a recipe of veilmark train; federations: {', '.join(ours)}")
    config = resolve(FederationConfig, override(values, settings), f"recipe {recipe}")
    config.made_method()
    return config


def start_federation(
    config: FederationConfig,
    data: Path | None,
    out: Path,
    *,
    engine: Engine = "in-process",
    secrets: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
) -> dict[str, str]:
    """Plays a federation, with a line on the terminal for each round.

    Args:
        config: What is played.
        data: Folder of the data set; None for a bundled one.
        out: The run folder.
        engine: ``in-process`` or ``flower``.
        secrets: Folder of the secrets; beside the run folder by default.
        resume: Go on from the last finished round.
        device: Where clients compute: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        Pictures that could not be read, with the reason.

    Raises:
        VeilmarkError: As :func:`~veilmark.federation.runs.run_federation`.
    """
    run = RunFolder(out)
    with run.hold():
        skipped = run_federation(
            config, data, run, engine=engine, secrets=secrets, resume=resume, device=device, told=_tell
        )
        console.print(rounds_table(config, run.read_log()))
    return skipped


def _tell(record: dict[str, Any]) -> None:
    accuracy = record["accuracy"]
    say(
        f"round {record['step']}: accuracy {accuracy['mean']:.1f} % ({accuracy['min']:.1f} to {accuracy['max']:.1f}), "
        f"{record['bytes_up'] / 1e6:.1f} MB up, {record['seconds']:.0f} s"
    )


def rounds_table(config: FederationConfig, records: list[dict[str, Any]]) -> Table:
    """A table of a run's rounds.

    Args:
        config: The run's config.
        records: Lines of ``metrics.jsonl``.
    """
    losses = list(records[-1]["losses"])
    heads = ("round", "accuracy %", "min", "max", "own mix", *losses, "MB up", "MB down", "seconds")
    table = Table(*heads, title=f"{config.method}, {config.clients} clients; accuracy on the same test images")
    for record in records:
        accuracy = [record["accuracy"][name] for name in ("mean", "min", "max", "own_distribution")]
        megabytes = [record["bytes_up"] / 1e6, record["bytes_down"] / 1e6]
        table.add_row(
            str(record["step"]),
            *(f"{value:.1f}" for value in accuracy),
            *(f"{record['losses'][name]:.3g}" for name in losses),
            *(f"{value:.1f}" for value in megabytes),
            f"{record['seconds']:.1f}",
        )
    return table
