"""The charts of a federation: score by round, losses, who owns what, and what a score costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from veilmark.report import FederationRound
from veilmark.report.plots import COLOURS, INK, LEGEND, MARKERS, TEXT, new_axes, new_figure, save_figure

_KILOBYTE = 1e-3


@dataclass(frozen=True)
class ScoreWords:
    """How a task's score is spoken of.

    Attributes:
        short: For a table's head, with its unit.
        title: For a chart.
        best: What the best client has: the most or the least.
    """

    short: str
    title: str
    best: Literal["most", "least"]


SCORES = {
    "classify": ScoreWords("accuracy, %", "Accuracy on the test pictures, %", "most"),
    "landmarks": ScoreWords("NME at 16 px, %", "NME at 16 px on other people, %", "least"),
}
"""By task."""


def plot_score(runs: Mapping[str, Sequence[FederationRound]], words: ScoreWords, path: Path) -> Path:
    """Mean score of the clients by round, with a band from the worst to the best of them.

    Args:
        runs: Label to the rounds.
        words: What is scored.
        path: PNG to write.

    Returns:
        ``path``.
    """
    figure = new_figure()
    axes = new_axes(figure, 0, 1, words.title, "round")
    for i, (label, rounds) in enumerate(runs.items()):
        steps = [record.step for record in rounds]
        colour = COLOURS[i % len(COLOURS)]
        axes.fill_between(
            steps,
            [record.score.min for record in rounds],
            [record.score.max for record in rounds],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(
            steps,
            [record.score.mean for record in rounds],
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            linewidth=2.2,
            label=label,
        )
    _limit(axes, words)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    return save_figure(figure, path)


def plot_losses(rounds: Sequence[FederationRound], path: Path) -> Path | None:
    """The losses that clients declare, means over clients by round; percentages are left out.

    Args:
        rounds: The rounds.
        path: PNG to write.

    Returns:
        ``path``; None where nothing but percentages was declared.
    """
    names = [name for name in rounds[-1].losses if name != "accuracy"]
    if not names:
        return None
    figure = new_figure()
    axes = new_axes(figure, 0, 1, "Losses in training, mean over clients", "round")
    for i, name in enumerate(names):
        axes.plot(
            [record.step for record in rounds],
            [record.losses[name] for record in rounds],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=2,
            label=name,
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    figure.legend(loc="outside lower center", ncols=3, **LEGEND)
    return save_figure(figure, path)


def plot_partition(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str, path: Path) -> Path:
    """Who owns what: a row a client, a column a class, the number of pictures in each field.

    Args:
        counts: ``(clients, classes)``.
        classes: Names of the classes.
        title: Of the chart.
        path: PNG to write.

    Returns:
        ``path``.
    """
    table = np.asarray(counts)
    figure = new_figure()
    figure.set_figheight(1.2 + 0.32 * len(table))
    axes = new_axes(figure, 0, 1, title, "")
    axes.imshow(table, cmap="Blues", vmin=0, vmax=max(1, int(table.max())), aspect="auto")
    axes.grid(visible=False)
    axes.set_yticks(range(len(table)), [str(number) for number in range(len(table))])
    axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
    # Numbers are what people compare; past some dozens of fields they would only be noise.
    if table.size <= 200:
        for (row, column), count in np.ndenumerate(table):
            dark = count > 0.6 * table.max()
            axes.text(
                column, row, str(count), ha="center", va="center", fontsize=TEXT - 3, color="white" if dark else INK
            )
    return save_figure(figure, path)


def _limit(axes: Axes, words: ScoreWords) -> None:
    """Percentages of right answers end at 100; errors begin at 0 and end where they end."""
    axes.set_ylim(0, 100 if words.best == "most" else None)


def plot_cost(points: Mapping[str, tuple[float, float]], words: ScoreWords, path: Path) -> Path:
    """Score against what a client sends in a round.

    Args:
        points: Label to (megabytes a client and round, score in percent).
        words: What is scored.
        path: PNG to write.

    Returns:
        ``path``.
    """
    figure = new_figure()
    axes = new_axes(figure, 0, 1, f"{words.short}, against what is sent", "MB up per client and round")
    for i, (label, (megabytes, score)) in enumerate(points.items()):
        axes.plot(
            max(megabytes, _KILOBYTE),
            score,
            linestyle="none",
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=10,
            label=label if megabytes else f"{label} (nothing sent)",
        )
    axes.set_xscale("log")
    _limit(axes, words)
    if words.best != "most":
        # Room for the marker of the worst.
        axes.set_ylim(0, 1.1 * max(score for _, score in points.values()))
    figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    return save_figure(figure, path)
