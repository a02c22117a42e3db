"""Reports of federations: one run, and several side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from veilmark.federation.tasks.loading import TASKS
from veilmark.report import FederationRound, FederationSummary
from veilmark.report.audit import BUNDLED, AuditSummary, read_audit
from veilmark.report.federation_plots import SCORES, plot_cost, plot_losses, plot_partition, plot_score
from veilmark.report.html import read_metrics, read_record, read_text, write_page
from veilmark.report.verdicts import Verdict
from veilmark.run.config import flat
from veilmark.run.errors import DataError
from veilmark.run.folder import write_json

_OWNED = {
    "classify": "Pictures: client by class",
    "landmarks": "People and frames of each client",
}
"""Titles of the chart of the partition, by task."""

_SAME = ("task", "dataset", "partition", "alpha", "clients", "rounds", "seed", "test_images")
"""What runs must share for their figures to be compared."""

_SAID = ("data.layout", "data.partition", "data.alpha")
"""Settings that ``_SAME`` has under another name."""

_NOT_SAID = "not said"
"""In place of a setting that a run's ``summary.json`` does not have."""


@dataclass(frozen=True)
class ComparedRun:
    """A run's row in a comparison; accuracy or NME in percent, megabytes of one client and round.

    Attributes:
        name: The run folder's name.
        method: What was shared.
        options: Options of the method in which it differs from the other runs of that method, and settings of data and
            training that not all runs have in common, in words.
        dataset: The pictures.
        partition: How they were dealt.
        clients: How many owners.
        rounds: How many rounds.
        seed: The run's seed.
        mean: Mean score of the clients.
        min: That of the worst.
        max: That of the best.
        own_distribution: Mean accuracy on the clients' own mixes of classes; None for landmarks.
        megabytes_up: What a client sends in a round.
        seconds: Of the whole run.
        peak_rss_mb: Largest resident memory.
    """

    name: str
    method: str
    options: str
    dataset: str
    partition: str
    clients: int
    rounds: int
    seed: int
    mean: float
    min: float
    max: float
    own_distribution: float | None
    megabytes_up: float
    seconds: float
    peak_rss_mb: float


@dataclass(frozen=True)
class ComparedAudit:
    """What the audits of several runs found.

    Attributes:
        questions: What each attack asks, by its name, in order.
        verdicts: Run to attack to verdict; empty for a run of which nothing travelled.
        sheets: Run to rung to a contact sheet's name beside the page, of data that anybody may see.
    """

    questions: dict[str, str]
    verdicts: dict[str, dict[str, Verdict]]
    sheets: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, the task of the first, and in which words they cannot be compared."""

    rows: list[ComparedRun]
    warnings: list[str]
    task: str = "classify"


def write_federation_report(run: Path) -> Path:
    """The report of ``veilmark federate``; its charts are left beside it.

    Args:
        run: Run folder with ``summary.json``, ``metrics.jsonl``, and if there ``config.yaml`` and ``samples.png``.

    Returns:
        The report that was written.

    Raises:
        DataError: If a file is missing, unreadable or lacks a value; the message names it.
    """
    summary, rounds = read_record(run / "summary.json", FederationSummary), _rounds(run)
    words = SCORES[summary.task]
    charts = {"score": plot_score({summary.method: rounds}, words, run / "score.png").name}
    if losses := plot_losses(rounds, run / "losses.png"):
        charts["losses"] = losses.name
    charts["partition"] = plot_partition(
        summary.counts, summary.classes, _OWNED[summary.task], run / "partition.png"
    ).name
    return write_page(
        run,
        "federation.html.j2",
        name=run.resolve().name,
        summary=summary,
        rounds=rounds,
        scored=[sum(value is not None for value in record.score.per_client) for record in rounds],
        words=words,
        charts=charts,
        samples=(run / "samples.png").exists(),
        shown_words=TASKS[summary.task].shown_words,
        config=read_text(run / "config.yaml") if (run / "config.yaml").exists() else None,
    )


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Figures of runs side by side.

    Args:
        runs: Run folders.

    Raises:
        DataError: If a folder holds no finished federation; the message names the file.
    """
    summaries = [read_record(Path(run) / "summary.json", FederationSummary) for run in runs]
    names = _names(runs)
    settings = [_settings(summary) for summary in summaries]
    one_task = len({summary.task for summary in summaries}) == 1
    # Two tasks have few settings in common, and one warning says so.
    unlike = _unlike([found for found in settings if found]) if one_task else []
    rows = [
        ComparedRun(
            Path(run).resolve().name,
            summary.method,
            _differing(summary, [other for other in summaries if other.method == summary.method], found, unlike),
            summary.dataset,
            summary.partition if summary.alpha is None else f"{summary.partition}({summary.alpha:g})",
            summary.clients,
            summary.rounds,
            summary.seed,
            summary.score.mean,
            summary.score.min,
            summary.score.max,
            summary.score.own_distribution,
            summary.bytes_up_per_client_round / 1e6,
            summary.seconds,
            summary.peak_rss_mb,
        )
        for run, summary, found in zip(runs, summaries, settings, strict=True)
    ]
    return Comparison(rows, _warnings(names, summaries, settings, unlike), summaries[0].task)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """The page of ``veilmark compare``, with ``comparison.json`` and its charts beside it.

    Runs that were audited stand there with their verdicts, too, and bundled data with what attackers made of them.

    Args:
        runs: Run folders.
        out: Folder of the page.

    Returns:
        The page.

    Raises:
        DataError: As :func:`compare_runs`.
    """
    comparison = compare_runs(runs)
    out.mkdir(parents=True, exist_ok=True)
    labels = _labels(comparison.rows)
    words = SCORES[comparison.task]
    plot_score(dict(zip(labels, map(_rounds, map(Path, runs)), strict=True)), words, out / "score.png")
    points = {label: (row.megabytes_up, row.mean) for label, row in zip(labels, comparison.rows, strict=True)}
    plot_cost(points, words, out / "cost.png")
    write_json(out / "comparison.json", asdict(comparison))
    folders = {label: Path(run) / "audit" for label, run in zip(labels, runs, strict=True)}
    audits = {label: folder for label, folder in folders.items() if (folder / "audit.json").exists()}
    return write_page(
        out,
        "comparison.html.j2",
        labels=labels,
        comparison=comparison,
        words=words,
        audit=_compared_audits(audits, out) if audits else None,
    )


def _compared_audits(folders: Mapping[str, Path], out: Path) -> ComparedAudit:
    """Audits side by side; their contact sheets are copied to ``out``, where data are bundled."""
    summaries = {label: read_record(folder / "summary.json", AuditSummary) for label, folder in folders.items()}
    verdicts = {label: {verdict.attack: verdict for verdict in read_audit(folder)} for label, folder in folders.items()}
    asked = dict.fromkeys(attack for found in verdicts.values() for attack in found)
    questions = {
        attack: next(summary.questions[attack] for summary in summaries.values() if attack in summary.questions)
        for attack in asked
    }
    sheets: dict[str, dict[str, str]] = {}
    for number, (label, summary) in enumerate(summaries.items()):
        if summary.dataset not in BUNDLED:
            continue
        for attack, pictures in summary.pictures.items():
            if not any(found.value > found.chance for found in verdicts[label][attack].findings if found.n > 1):
                # Nowhere better than a guess: noise, which nobody needs to see. Verdicts are by intervals, not by this.
                continue
            for rung, name in pictures.items():
                copied = out / "pictures" / f"{number}-{Path(name).name}"
                copied.parent.mkdir(exist_ok=True)
                shutil.copyfile(folders[label] / name, copied)
                sheets.setdefault(label, {})[f"{attack}: {rung}"] = f"pictures/{copied.name}"
    return ComparedAudit(questions, verdicts, sheets)


def comparison_table(comparison: Comparison) -> Table:
    """A comparison for the terminal."""
    short = SCORES[comparison.task].short
    heads = ("run", "method", "options", short, "min", "max", "own mix", "MB up", "seconds", "peak MB")
    table = Table(*heads, title="the clients on the same test pictures; MB of one client and round")
    for row in comparison.rows:
        figures = (row.mean, row.min, row.max, row.own_distribution, row.megabytes_up, row.seconds, row.peak_rss_mb)
        shown = ("" if figure is None else f"{figure:.1f}" for figure in figures)
        table.add_row(row.name, row.method, row.options, *shown)
    return table


def _rounds(run: Path) -> list[FederationRound]:
    path = run / "metrics.jsonl"
    try:
        return [FederationRound.model_validate(record) for record in read_metrics(path)]
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(f"{path}: {key}: {problem['msg']}; is {run} the folder of a federation?") from None


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names are not enough."""
    names = [Path(run).resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _settings(summary: FederationSummary) -> dict[str, Any]:
    """Settings of data and training by their whole key; none of a run whose summary does not say them."""
    if summary.data is None or summary.training is None:
        return {}
    found = flat({"data": summary.data, "training": summary.training})
    return {key: value for key, value in found.items() if key not in _SAID}


def _unlike(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the settings that are not the same everywhere."""
    keys = dict.fromkeys(key for found in settings for key in found)
    return [key for key in keys if len({_shown(found.get(key, _NOT_SAID)) for found in settings}) > 1]


def _warnings(
    names: Sequence[str],
    summaries: Sequence[FederationSummary],
    settings: Sequence[Mapping[str, Any]],
    unlike: Sequence[str],
) -> list[str]:
    """In which words runs cannot be compared, and what else differs."""

    def said(values: Sequence[Any]) -> str:
        return ", ".join(f"{name}: {_shown(value)}" for name, value in zip(names, values, strict=True))

    warnings = []
    for key in _SAME:
        values = [getattr(summary, key) for summary in summaries]
        if len(set(map(str, values))) > 1:
            warnings.append(f"not the same {key.replace('_', ' ')} ({said(values)}): figures cannot be compared")
    for key in unlike:
        values = [found.get(key, _NOT_SAID) for found in settings]
        warnings.append(f"not the same {key} ({said(values)}): figures may differ by that alone")
    silent = [name for name, found in zip(names, settings, strict=True) if not found]
    if silent and len(names) > 1:
        warnings.append(
            f"summary.json of {', '.join(silent)} is of an older version and says nothing of data and training: look "
            "into config.yaml for what differs"
        )
    return warnings


def _labels(rows: Sequence[ComparedRun]) -> list[str]:
    """What tells the runs apart: the method, or the folder's name where that is not enough."""
    methods = [row.method for row in rows]
    labels = methods if len(set(methods)) == len(methods) else [row.name for row in rows]
    return labels if len(set(labels)) == len(labels) else [f"{i}: {row.name}" for i, row in enumerate(rows, 1)]


def _differing(
    summary: FederationSummary,
    same_method: Sequence[FederationSummary],
    settings: Mapping[str, Any],
    unlike: Sequence[str],
) -> str:
    options = [
        f"{key}={_shown(value)}"
        for key, value in summary.options.items()
        if len({json.dumps(other.options.get(key)) for other in same_method}) > 1
    ]
    return ", ".join([*options, *(f"{key}={_shown(settings[key])}" for key in unlike if key in settings)])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
