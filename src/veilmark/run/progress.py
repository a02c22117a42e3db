"""Progress bars and messages for people, on standard error so that results can be piped."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)
"""Where messages go. Results that a program may read go to standard output."""


def say(message: str) -> None:
    """Prints a line for people, unbroken: a path must stay whole to be copied. Rich markup counts."""
    console.print(message, soft_wrap=True)


@contextmanager
def speaking(aloud: bool) -> Iterator[None]:
    """Holds messages and bars back unless ``aloud``: of many processes that do the same, one speaks.

    What is said after the context, such as what went wrong in it, is heard again.
    """
    console.quiet = not aloud
    try:
        yield
    finally:
        console.quiet = False


def figures_table(title: str, figures: dict[str, dict[str, float]]) -> Table:
    """A table of figures by face size, for validations.

    Args:
        title: What stands above it.
        figures: Face size to name to figure; a name may be missing for some sizes.
    """
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    table = Table("face px", *names, title=title)
    for size, row in figures.items():
        table.add_row(size, *(f"{row[name]:.2f}" if name in row else "" for name in names))
    return table


def progress_bar(unit: str) -> Progress:
    """A bar with count, unit, a free text (``fields["note"]``) and the time left. Use as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        # Rich asks for two advances in this time, or says nothing of the time left: some pieces take minutes.
        speed_estimate_period=1800,
    )
