"""Owners of whole people train one landmark detector: what each way of sharing is worth. A grid of federations.

    python benchmarks/private_landmarks.py --data DIR --budget 120    # plays missing cells, most telling first
    python benchmarks/private_landmarks.py --print                    # tables of the finished cells, and the coverage

``--data`` is a folder in the ``ytf68`` layout. The split ``train`` (250 people) is dealt to 10 clients of 25 people or
to 25 of 10, with the labels of all clients, or of half. Scored on the split ``report`` (24 other people): NME at
16, 32 and 128 px, PSNR of the face hallucinated from 16 px at 64 px. Intervals are over those people, by bootstrap, of
the mean over clients. Then three newcomers, each with 20 faces of the split ``select`` (people whom neither a client
nor the score has), get what travelled and train what does not, in 13 steps for each round of the run; where nothing
travelled they train everything, where everything did, nothing. A finished cell is one JSON in
``benchmarks/results/private_landmarks/``. A cell that is cut off goes on from its last finished round.
Start the command once per core: cells in work are left to the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audit import RESULTS as AUDITS
from audit import leak_words
from veilmark.federation.config import FederationConfig, federation_from
from veilmark.federation.finished import open_finished
from veilmark.federation.runs import run_federation
from veilmark.federation.tasks.owned_faces import LandmarksConfig, load_newcomers
from veilmark.run.config import override
from veilmark.run.devices import choose_device
from veilmark.run.folder import RunError, RunFolder, write_json
from veilmark.run.progress import console, say

RESULTS = Path(__file__).parent / "results" / "private_landmarks"
RUNS = Path("runs/private-landmarks")

PROTOCOL: dict[str, Any] = {
    "task": "landmarks",
    "rounds": 8,
    "record": [],
    "data": {"layout": "ytf68"},
    "training": {
        "batch": 16,
        "epochs": 2,
        "optimizer": "adamw",
        "lr": 0.002,
        "weight_decay": 0.02,
        "clip": 1.0,
        "decay_after": 4,
    },
}

NEWCOMERS, FACES = 3, 20
"""Clients that come when the federation is over, and how many labelled faces each has."""

PARTS = {"10 x 25": {"clients": 10, "data.people": 25}, "25 x 10": {"clients": 25, "data.people": 10}}
LABELS: dict[str, dict[str, Any]] = {
    "all": {},
    "half": {"data.labelled": 0.5, "data.boxes": "annotated"},
    "half, all train": {"data.labelled": 0.5, "data.unlabelled": "all", "data.boxes": "annotated"},
    "half, found": {"data.labelled": 0.5},
}
"""Who has labels. *All train*: clients without any train the detector too. *Found*: their crops come from a face
finder, which sees no annotation; in the others, from the landmarks."""

KEYED = {"method": "keyed"}
HOURGLASS = {"options.keyed.blocks": 1, "options.keyed.body": "hourglass"}
THIN = {**HOURGLASS, "options.keyed.thin": True}
"""G sees the whole face, and the detector behind it next to nothing."""
TWO_HALF = {"options.keyed.blocks": 2, "options.keyed.precision": "half"}
"""Twice the generator for as many bytes."""

METHODS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "local": {"method": "local"},
    "hallucinator": {"method": "hallucinator"},
    "keyed": KEYED,
    "ppidsg": {"method": "ppidsg-landmarks"},
    "gc, 10 %": {"method": "gc"},
    "dpsgd": {"method": "dpsgd", "options.dpsgd.noise": 1.0},
    "keyed, all shared": {**KEYED, "options.keyed.share": ["generator", "detector"]},
    "keyed, nothing shared": {**KEYED, "options.keyed.share": []},
    "keyed, own start": {**KEYED, "options.keyed.start": "own"},
    "keyed, fixed detector": {**KEYED, "options.keyed.detector": "fixed"},
    "keyed, restarting detector": {**KEYED, "options.keyed.detector": "restart"},
    "hallucinator, inform too": {
        "method": "hallucinator",
        "options.hallucinator.share": ["detail", "paint", "finish", "guide", "inform"],
    },
    "hallucinator, all but heads": {
        "method": "hallucinator",
        "options.hallucinator.share": ["structure", "detail", "paint", "finish", "guide", "inform", "again"],
        "options.hallucinator.precision": "half",
    },
    "keyed, hourglass G": {**KEYED, **HOURGLASS},
    "keyed, thin": {**KEYED, **THIN},
    "keyed, thin, fixed": {**KEYED, **THIN, "options.keyed.detector": "fixed"},
    "keyed, thin, restarting": {**KEYED, **THIN, "options.keyed.detector": "restart"},
    "keyed, thin, own start": {**KEYED, **THIN, "options.keyed.start": "own"},
    "keyed, thin, no face loss": {**KEYED, **THIN, "data.losses.face": 0.0},
    "keyed, thin, nothing shared": {**KEYED, **THIN, "options.keyed.share": []},
    "keyed, thin, all shared": {**KEYED, **THIN, "options.keyed.share": ["generator", "detector"]},
    "keyed, thin, face loss x 3": {**KEYED, **THIN, "data.losses.face": 0.3},
    "keyed, thin, two hourglasses": {**KEYED, **THIN, **TWO_HALF},
    "keyed, thin, two, all shared": {
        **KEYED,
        **THIN,
        **TWO_HALF,
        "options.keyed.share": ["generator", "detector"],
    },
    "ppidsg, kept detector": {"method": "ppidsg-landmarks", "options.ppidsg-landmarks.detector": "kept"},
    "ppidsg, no permutation": {
        "method": "ppidsg-landmarks",
        "options.ppidsg-landmarks.detector": "kept",
        "options.ppidsg-landmarks.without": ["permute"],
    },
    "ppidsg, no semantic loss": {
        "method": "ppidsg-landmarks",
        "options.ppidsg-landmarks.detector": "kept",
        "options.ppidsg-landmarks.semantic": 0.0,
    },
    "dpsgd, fitted noise": {"method": "dpsgd"},
}
"""The methods, then repairs of those that let a generator travel; *all* and *nothing shared* bound what they can do."""


@dataclass(frozen=True)
class Cell:
    """One federation.

    Attributes:
        part: A key of ``PARTS``.
        labels: A key of ``LABELS``.
        name: A key of ``METHODS``.
        seed: The run's seed.
    """

    part: str
    labels: str
    name: str
    seed: int

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.part}-{self.labels}-{self.name}-s{self.seed}".replace(" ", "_")

    def config(self) -> FederationConfig:
        """The federation."""
        changes = {**PARTS[self.part], **LABELS[self.labels], **METHODS[self.name], "seed": self.seed}
        settings = [f"{path}={json.dumps(value)}" for path, value in changes.items()]
        return federation_from(override(PROTOCOL, settings), self.key)


def grid(seeds: int) -> list[Cell]:
    """Every cell, most telling first."""
    few = ("none", "local", "hallucinator", "keyed")
    return [
        Cell(part, labels, name, seed)
        for seed in range(seeds)
        for part, labels in (("10 x 25", "all"), ("10 x 25", "half"), ("25 x 10", "all"), ("25 x 10", "half"))
        for name in METHODS
    ] + [Cell("10 x 25", labels, name, 0) for labels in ("half, all train", "half, found") for name in few]


def play_cell(cell: Cell, data: Path, device: torch.device) -> dict[str, Any]:
    """Plays one cell to its end.

    Args:
        cell: The cell.
        data: Folder in the ``ytf68`` layout.
        device: Where clients compute.

    Returns:
        What its JSON holds.
    """
    config, run = cell.config(), RunFolder(RUNS / cell.key)
    with run.hold():
        resume = (run.path / "config.yaml").exists()
        run_federation(config, data, run, secrets=RUNS / "secrets", resume=resume, device=str(device))
        summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
        rounds = [{k: v for k, v in record["nme"].items() if k != "people"} for record in run.read_log()]
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "cell": cell.key,
            "part": cell.part,
            "labels": cell.labels,
            "name": cell.name,
            "seed": cell.seed,
            "config": config.model_dump(mode="json"),
            "nme": summary["nme"],
            "rounds": rounds,
            "newcomers": newcomers(config, data, run, device),
            "bytes_up_per_client_round": summary["bytes_up_per_client_round"],
            "seconds": summary["seconds"],
            "peak_rss_mb": summary["peak_rss_mb"],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{name}, {os.cpu_count()} cores, one thread, shared by several cells",
        }


def newcomers(config: FederationConfig, data: Path, run: RunFolder, device: torch.device) -> list[dict[str, Any]]:
    """What clients reach who join a finished run with few faces.

    Args:
        config: Of the run.
        data: Folder in the ``ytf68`` layout.
        run: The run.
        device: Where they compute.

    Returns:
        NME and PSNR of each, as clients' summaries have them.
    """
    assert isinstance(config.data, LandmarksConfig)
    finished = open_finished(run.path, data, RUNS / "secrets", device)
    task = finished.side.task
    training = config.training.model_copy(update={"local_steps": -(-100 // config.rounds)})
    found = []
    for place, owned in enumerate(load_newcomers(config.data, data, NEWCOMERS, FACES, config.seed)):
        client = finished.join(owned, place, training)
        scores = task.score(client.predict(finished.share, task.test_inputs), owned)
        found.append({name: float(np.mean(values)) for name, values in scores.items()})
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over people, by bootstrap."""
    found = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(found), size=(2000, len(found)))
    low, high = np.quantile(found[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def leak_of(name: str, audits: Path) -> str:
    """The largest leak of a method and the attack that found it; empty where it was not audited."""
    path = audits / f"ytf68-{name}-s0.json".replace(" ", "_")
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    return leak_words(found)


def tables(cells: list[Cell], results: Path, audits: Path = AUDITS) -> list[str]:
    """Markdown tables of the finished cells.

    Intervals are over people. *newcomers*: NME at 16 px of clients that joined when all was over. *less than local*: by
    how much NME at 16 px is smaller than that of ``local`` on the same people, with the interval of the paired
    difference. *of the way*: the share of the way from ``local`` to ``none``. *largest leak*: what
    ``benchmarks/audit.py`` found of the method in a federation of 4 owners of 6 people with all labels. *played*: the
    day, and on which of the two kinds of machine, which do not repeat each other.
    """
    made = []
    for part in PARTS:
        for labels in LABELS:
            found: dict[tuple[str, int], dict[str, Any]] = {}
            for cell in cells:
                path = results / f"{cell.key}.json"
                if (cell.part, cell.labels) == (part, labels) and path.exists():
                    found[cell.name, cell.seed] = json.loads(path.read_text(encoding="utf-8"))
            if not found:
                continue
            head = ["method", "seed", "NME 16 px % (95 %)", "least", "most", "32 px", "128 px", "PSNR dB"]
            head += ["without labels", "newcomers", "less than local (95 %)", "of the way to none"]
            head += ["MB up", "seconds", "played", "largest leak, 4 x 6"]
            lines = [head, ["---"] * len(head)]
            for (name, seed), cell_found in found.items():
                nme = cell_found["nme"]
                low, high = interval(nme["people"]["nme_16"])
                line = [name, str(seed), f"{nme['mean']:.2f} ({low:.2f} to {high:.2f})"]
                line += [f"{nme[end]:.2f}" for end in ("min", "max")]
                line += [f"{nme['sizes'][size]['mean']:.2f}" for size in ("32", "128")]
                line.append(f"{nme['psnr']['mean']:.2f}" if np.isfinite(nme["psnr"]["mean"]) else "")
                line.append(f"{nme['unlabelled']['mean']:.2f}" if nme["unlabelled"] else "")
                joined = [one["nme_16"] for one in cell_found.get("newcomers", [])]
                line.append(f"{np.mean(joined):.2f}" if joined else "")
                line += against(nme, found.get(("local", seed)), found.get(("none", seed)))
                line += [f"{cell_found['bytes_up_per_client_round'] / 1e6:.2f}", f"{cell_found['seconds']:.0f}"]
                line.append(f"{cell_found['date']}, {'GPU' if 'NVIDIA' in cell_found['machine'] else 'CPU'}")
                line.append(leak_of(name, audits))
                lines.append(line)
            title = f"{part} people, labels: {labels}"
            made.append(title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return made


def against(nme: dict[str, Any], local: dict[str, Any] | None, none: dict[str, Any] | None) -> list[str]:
    """How much better than training alone, and how far on the way to sharing everything."""
    if local is None:
        return ["", ""]
    gain = [a - b for a, b in zip(local["nme"]["people"]["nme_16"], nme["people"]["nme_16"], strict=True)]
    low, high = interval(gain)
    said = f"{np.mean(gain):.2f} ({low:.2f} to {high:.2f})"
    if none is None or none["nme"]["mean"] >= local["nme"]["mean"]:
        return [said, ""]
    way = (local["nme"]["mean"] - nme["mean"]) / (local["nme"]["mean"] - none["nme"]["mean"])
    return [said, f"{100 * way:.0f} %"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in the ytf68 layout")
    parser.add_argument("--budget", type=float, default=60, help="minutes in which new cells are started (default: 60)")
    parser.add_argument("--only", default="", help="only cells whose name holds this")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the grid (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished cells")
    parser.add_argument("--print", action="store_true", help="print the tables of the finished cells, play nothing")
    args = parser.parse_args()
    cells = [cell for cell in grid(args.seeds) if args.only in cell.key]
    if not args.print and args.data is not None:
        torch.set_num_threads(1)
        until = time.monotonic() + 60 * args.budget
        for cell in cells:
            path = args.results / f"{cell.key}.json"
            if path.exists() or time.monotonic() > until:
                continue
            say(f"[bold]{cell.key}[/bold]")
            try:
                found = play_cell(cell, args.data, choose_device(args.device))
            except RunError as problem:
                # Another process plays this cell.
                say(str(problem))
                continue
            args.results.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
    for table in tables(cells, args.results):
        console.print(table + "\n", markup=False, soft_wrap=True, highlight=False)
    done = sum((args.results / f"{cell.key}.json").exists() for cell in cells)
    say(f"{done} of {len(cells)} cells are finished")


if __name__ == "__main__":
    main()
