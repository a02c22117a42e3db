"""Federations by recipe: the config, and the run with its progress on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from veilmark.federation.config import FederationConfig, federation_from
from veilmark.federation.runs import Engine, run_federation
from veilmark.federation.tasks.loading import TASKS
from veilmark.run.config import load_recipe, override, recipe_names
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
    config = federation_from(override(values, settings), f"recipe {recipe}")
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
            config,
            data,
            run,
            engine=engine,
            secrets=secrets,
            resume=resume,
            device=device,
            told=lambda record: _tell(config, record),
        )
        console.print(rounds_table(config, run.read_log()))
    return skipped


def _tell(config: FederationConfig, record: dict[str, Any]) -> None:
    task = TASKS[config.task]
    score = record[task.score_name]
    scored = f"{_scored(score)} of {config.clients} clients scored, " if _scored(score) < config.clients else ""
    say(
        f"round {record['step']}: {task.score_words} {score['mean']:.1f} ({score['min']:.1f} to {score['max']:.1f}), "
        f"{scored}{record['bytes_up'] / 1e6:.1f} MB up, {record['seconds']:.0f} s"
    )


def _scored(score: dict[str, Any]) -> int:
    """How many clients a score is of."""
    return sum(value is not None for value in score["per_client"])


def rounds_table(config: FederationConfig, records: list[dict[str, Any]]) -> Table:
    """A table of a run's rounds; if a client could not be scored in one of them, it says how many were.

    Args:
        config: The run's config.
        records: Lines of ``metrics.jsonl``.
    """
    losses = list(records[-1]["losses"])
    task = TASKS[config.task]
    columns = score_columns(records[-1][task.score_name])
    # What clients say of the pictures that they learn from; the score is of the test pictures.
    declared = ("accuracy in training" if name == "accuracy" else name for name in losses)
    scored = [_scored(record[task.score_name]) for record in records]
    said = ["scored"] if min(scored) < config.clients else []
    heads = ("round", task.score_words, *list(columns)[1:], *said, *declared, "MB up", "MB down", "seconds")
    table = Table(*heads, title=f"{config.method}, {config.clients} clients; scored on the same test pictures")
    for count, record in zip(scored, records, strict=True):
        megabytes = [record["bytes_up"] / 1e6, record["bytes_down"] / 1e6]
        table.add_row(
            str(record["step"]),
            *(f"{value:.1f}" for value in score_columns(record[task.score_name]).values()),
            *(f"{count} of {config.clients}" for _ in said),
            *(f"{record['losses'][name]:.3g}" for name in losses),
            *(f"{value:.1f}" for value in megabytes),
            f"{record['seconds']:.1f}",
        )
    return table


def score_columns(score: dict[str, Any]) -> dict[str, float]:
    """The figures of a score that stand in a table, by their headings; the mean first.

    Args:
        score: What a task's ``summary`` says.
    """
    columns = {name: score[name] for name in ("mean", "min", "max")}
    if score.get("own_distribution") is not None:
        columns["own mix"] = score["own_distribution"]
    for size, figures in list(score.get("sizes", {}).items())[1:]:
        columns[f"{size} px"] = figures["mean"]
    if "psnr" in score:
        columns["PSNR, dB"] = score["psnr"]["mean"]
    return columns
