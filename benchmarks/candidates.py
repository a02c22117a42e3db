"""Was it this picture? How far a server gets that checks candidates against updates of PPIDSG's generator.

    python benchmarks/candidates.py                      # digits, which come with the package
    python benchmarks/candidates.py --data DIR           # the folder mnist of DIR as well
    python benchmarks/candidates.py --print              # the table of the committed figures

Each cell: federations of 2 clients x 64 pictures, PPIDSG as its recipes have it (rate 1e-3, F at the common secret),
with so many steps a round of so many pictures. One round is recorded and attacked as ``veilmark audit`` does
(``audit/candidates.py``): the server knows nothing of D, F, C and the key, and draws three sets of its own. Up to 30
pictures of each message are asked about beside 100 training pictures without an owner, with their right labels; the
figure is the area under the curve against those of the same class, as a mean over pictures, 95 % by bootstrap over
them. Small batches have several federations. After so many rounds of the same kind G is trained a little. Networks of
digits have the recipe's smaller head. Secrets come from the seed. Finished cells stand in
``benchmarks/results/candidates.json`` and are skipped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from veilmark.audit.attack import Scene, Truth
from veilmark.audit.candidates import GUESSES, STRANGERS, CandidatesOfGenerator
from veilmark.audit.membership import drawn_interval
from veilmark.audit.played_client import played_gradient
from veilmark.audit.record import read_record
from veilmark.federation.config import FederationConfig
from veilmark.federation.runs import run_federation
from veilmark.federation.tasks.classify import load_classify, without_owner
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.config import resolve
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.progress import console, say
from veilmark.run.seeds import rng_for

RESULTS = Path(__file__).parent / "results" / "candidates.json"

PROTOCOL: dict[str, Any] = {
    "method": "ppidsg",
    "clients": 2,
    "record": ["last"],
    "options": {"ppidsg": {"generator_lr": 1e-3, "extractor": "fixed"}},
}
DATA: dict[str, dict[str, Any]] = {"digits": {"head_widths": [1024, 256]}, "mnist": {}}
STEPS = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 8), (4, 8), (8, 8))
"""Steps of a round, and pictures of a step."""
LATER = 41
"""The recorded round where G is trained a little."""
MESSAGES = {1: 6, 2: 4, 4: 2}
"""Federations of a cell by batch; one of the others."""


@dataclass(frozen=True)
class Cell:
    """Federations of one kind, attacked.

    Attributes:
        data: A key of ``DATA``.
        steps: Of the recorded round.
        batch: Pictures of a step.
        rounds: Of the run; the last one is attacked.
    """

    data: str
    steps: int
    batch: int
    rounds: int = 1

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.data}-{self.steps}x{self.batch}-r{self.rounds}"

    @property
    def federations(self) -> int:
        """How many are played."""
        return MESSAGES.get(self.batch, 1)

    def config(self, seed: int) -> FederationConfig:
        """One of its federations."""
        data = {"layout": self.data, "per_client": 64, "test": 200, **DATA[self.data]}
        training = {"local_steps": self.steps, "batch": self.batch}
        values = PROTOCOL | {"data": data, "seed": seed, "training": training, "rounds": self.rounds}
        return resolve(FederationConfig, values, self.key)


def grid() -> list[Cell]:
    """Every cell, most telling first."""
    cells = [Cell(data, steps, batch) for data in DATA for steps, batch in STEPS]
    return [*cells, Cell("digits", 1, 8, LATER)]


def _secrets(folder: Path, seed: int, clients: int) -> Path:
    folder.mkdir(mode=0o700)
    for place, name in enumerate(("federation", *(f"client-{number}" for number in range(clients)))):
        Secret(rng_for(seed, 91, place).bytes(SECRET_BYTES)).save(folder / f"{name}.key")
    return folder


def attacked(cell: Cell, seed: int, folder: Path | None) -> tuple[int, list[NDArray[np.float64]]]:
    """Plays a federation and attacks its last round.

    Args:
        cell: Its kind.
        seed: Of the federation.
        folder: Of its data; None for bundled ones.

    Returns:
        How many pictures were asked about; by message the area in percent, and that of each draw of a bootstrap.
    """
    config = cell.config(seed)
    with tempfile.TemporaryDirectory() as place:
        run, secrets = RunFolder(Path(place) / "run"), _secrets(Path(place) / "secrets", seed, config.clients)
        with run.hold():
            run_federation(config, folder, run, secrets=secrets)
        record = read_record(run.path / "transcript")
    task, owners, _, _ = load_classify(config.data, folder, config.clients, config.seed)
    # Not test pictures: those of digits are by other writers, which alone would tell them from members.
    strangers = without_owner(config.data, folder, owners, 2 * STRANGERS)
    scene = Scene(record, task.test, Truth(owners, strangers=strangers), seed)
    guesses = [played_gradient(scene, 1 + number) for number in range(GUESSES)]
    asked, areas, _ = CandidatesOfGenerator().areas(scene, guesses)
    return asked, areas


def play_cell(cell: Cell, folder: Path | None) -> dict[str, Any]:
    """All federations of a cell: what the JSON holds of it."""
    began = time.process_time()
    played = [attacked(cell, seed, folder) for seed in range(cell.federations)]
    return {
        "data": cell.data,
        "steps": cell.steps,
        "batch": cell.batch,
        "rounds": cell.rounds,
        "config": cell.config(0).model_dump(mode="json"),
        "federations": cell.federations,
        "pictures": sum(asked for asked, _ in played),
        "area": drawn_interval([area for _, areas in played for area in areas]),
        "cpu_seconds": time.process_time() - began,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
    }


def table(found: dict[str, Any]) -> str:
    """A Markdown table of the finished cells.

    Args:
        found: What the JSON holds: cells by key.
    """
    lines = [
        ["data", "steps x pictures", "round", "pictures asked about", "area under the curve, % (95 %)"],
        ["---"] * 5,
    ]
    for cell in (found[one.key] for one in grid() if one.key in found):
        value = "{:.1f} ({:.1f} to {:.1f})".format(*cell["area"])
        value = f"**{value}**" if cell["area"][1] > 50 else value
        what = f"{cell['steps']} x {cell['batch']}"
        lines.append([cell["data"], what, str(cell["rounds"]), str(cell["pictures"]), value])
    bold = "Bold where the interval lies above 50, which is chance.\n\n"
    return bold + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist; without it digits alone")
    parser.add_argument("--only", default="", help="only cells whose name holds this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the finished cells")
    parser.add_argument("--print", action="store_true", help="print the table of the finished cells, play nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else {}
    for cell in [] if args.print else grid():
        bundled = cell.data == "digits"
        if args.only not in cell.key or cell.key in found or (args.data is None and not bundled):
            continue
        say(f"[bold]{cell.key}[/bold]")
        found[cell.key] = play_cell(cell, None if bundled else args.data / cell.data)
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.results, found)
    console.print(table(found), markup=False, soft_wrap=True, highlight=False)
    say(f"{len(found)} of {len(grid())} cells are finished")


if __name__ == "__main__":
    main()
