"""The report of an audit: a verdict in plain words, the figures behind it, the controls, and what was not tried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError
from rich.markup import escape
from rich.table import Table

from veilmark.report.audit_plots import plot_verdicts
from veilmark.report.html import read_record, read_text, write_page
from veilmark.report.plain_words import in_plain_words, score_words
from veilmark.report.verdicts import AuditFinding, Verdict, figure_words, verdict
from veilmark.run.errors import DataError

BUNDLED = ("digits", "synthetic")
"""Data that anybody may see: only of these does a page that others read show what attackers made of pictures."""


_ORDER = ("leaks", "not shown to work", "nothing to attack", "not found")
"""In short, what a reader must not miss comes first."""
_COLOURS = {"leaks": "bold red", "not shown to work": "yellow", "nothing to attack": "default", "not found": "default"}


class AuditSummary(BaseModel):
    """``summary.json`` of an audit."""

    created: str
    version: str
    run: str
    method: str
    dataset: str
    clients: int
    rounds: list[int]
    seed: int
    score: float
    score_words: str
    shared: list[str]
    metrics: list[str]
    scores: list[str] = []
    public: int
    threat_models: dict[str, str]
    questions: dict[str, str]
    needs: dict[str, str]
    obstacles: dict[str, str]
    skipped: list[str]
    pictures: dict[str, dict[str, str]]
    not_tried: list[str]


def read_audit(folder: Path) -> list[Verdict]:
    """The verdicts of an audit, in its order.

    Raises:
        DataError: If ``audit.json`` is missing or damaged.
    """
    path = folder / "audit.json"
    try:
        found = [AuditFinding.model_validate(line) for line in json.loads(read_text(path))]
    except (json.JSONDecodeError, ValidationError, TypeError) as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}; run the audit again") from None
    names = list(dict.fromkeys(finding.attack for finding in found))
    return [verdict([finding for finding in found if finding.attack == name]) for name in names]


def audit_table(verdicts: Sequence[Verdict]) -> Table:
    """The verdicts of an audit for the terminal, gravest first; rungs and controls are in the report."""
    table = Table("who attacks", "attack", "verdict", "what it got (95 %)", "chance")
    for model, items in in_short(verdicts).items():
        for item in items:
            tells = item.real if item.kind in ("leaks", "not found") else None
            table.add_row(
                model,
                item.attack,
                f"[{_COLOURS[item.kind]}]{item.kind}[/]",
                "-" if tells is None else escape(figure_words(tells)),
                "-" if tells is None else f"{tells.chance:.1f}",
            )
    return table


def in_short(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts by who attacks, gravest first, leaks by how far they went; who found most comes first."""

    def grave(item: Verdict) -> tuple[int, float]:
        return _ORDER.index(item.kind), -item.gone if item.kind == "leaks" else 0.0

    models = list(dict.fromkeys(item.threat_model for item in verdicts))
    found = {model: sorted((item for item in verdicts if item.threat_model == model), key=grave) for model in models}
    return dict(sorted(found.items(), key=lambda pair: -sum(item.kind == "leaks" for item in pair[1])))


def write_audit_report(folder: Path) -> Path:
    """The report of ``veilmark audit``.

    Args:
        folder: Folder with ``audit.json`` and ``summary.json``.

    Returns:
        The report that was written.

    Raises:
        DataError: If a file is missing, unreadable or lacks a value; the message names it.
    """
    verdicts, summary = read_audit(folder), read_record(folder / "summary.json", AuditSummary)
    shown = bool(summary.pictures) and summary.dataset not in BUNDLED
    short = in_short(verdicts)
    chart = plot_verdicts([item for items in short.values() for item in items], folder / "verdicts.png")
    return write_page(
        folder,
        "audit.html.j2",
        summary=summary,
        verdicts=verdicts,
        in_short=short,
        plainly={item.attack: in_plain_words(item.real or item.findings[-1]) for item in verdicts},
        figures=[*summary.metrics, "number of pictures", *map(score_words, summary.scores)],
        shows_owners=shown,
        chart=None if chart is None else chart.name,
    )
