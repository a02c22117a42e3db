"""Progress bars and messages for people, on standard error so that results can be piped."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
"""Where messages go. Results that a program may read go to standard output."""


def say(message: str) -> None:
    """Prints a line for people, unbroken: a path must stay whole to be copied. Rich markup counts."""
    console.print(message, soft_wrap=True)


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
    )
