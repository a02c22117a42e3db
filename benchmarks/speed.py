"""How long DHLN takes per face, beside the plain hourglass, in one process run on one thread.

python benchmarks/speed.py
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from plain_hourglass import PlainHourglass
from veilmark.sht.pretrained import load_dhln

BATCH = 16


def milliseconds(run: Callable[[], object], rounds: int) -> float:
    """Median time of one face in a batch, in milliseconds."""
    run()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times) / BATCH


def main(
    rounds: int = 7, out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("runs/speed.json")
) -> None:
    """Measures all three in turn and prints their ratios."""
    torch.set_num_threads(1)
    faces = torch.rand(BATCH, 3, 128, 128)
    dhln = load_dhln().to(memory_format=torch.channels_last)
    hourglass = PlainHourglass().eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        figures = {
            "landmarks only": milliseconds(lambda: dhln(faces, hallucinate=False), rounds),
            "landmarks and face": milliseconds(lambda: dhln(faces), rounds),
            "plain hourglass": milliseconds(lambda: hourglass(faces), rounds),
        }
    for name, value in figures.items():
        typer.echo(f"{name}: {value:.1f} ms a face, {value / figures['landmarks only']:.2f} x landmarks only")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
