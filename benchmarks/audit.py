"""What leaks, method by method? A grid of cells: a small federation each, and the audit of its transcript.

    python benchmarks/audit.py --data DIR --budget 120    # plays missing cells, most telling first
    python benchmarks/audit.py --print                    # tables from the committed cells, the plot, the coverage

``--data`` holds the folders ``mnist``, ``ytf68`` and ``cifar10``. Each cell of the classifiers: 4 clients x 200 images,
IID, 1,000 test images, 5 rounds of 10 steps of 20 images. Of the landmark detectors: 4 clients x 6 people, about 75
faces each, 16 rounds of one pass of batches of 8, scored on 24 other people (``report``); people of ``select`` are the
attackers' public faces. The first and the last round are recorded, of the detectors the last eight; then ``veilmark
audit``. A finished cell is one JSON in ``benchmarks/results/audit/``: config, score, the findings as they stand in
``audit.json``, what does not apply and why, date, machine. Leakage stands beside utility, so that a method that merely
fails to learn cannot look private. Start the command once per core: cells in work are left to the others. ``--device
cuda`` has clients and attacks compute on a GPU. A finished cell that lacks an attack which came later is extended: its
federation is played once more, for that attack alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from veilmark.audit.audits import ATTACKS, FACE_ATTACKS, audit_run
from veilmark.federation.config import FederationConfig, federation_from
from veilmark.federation.runs import run_federation
from veilmark.report.verdicts import REAL, AuditFinding, Verdict, beyond_chance, verdict
from veilmark.run.config import override
from veilmark.run.devices import choose_device
from veilmark.run.folder import RunError, RunFolder, write_json
from veilmark.run.progress import console, say

RESULTS = Path(__file__).parent / "results" / "audit"
RUNS = Path("runs/audit-grid")
PLOTS = Path(__file__).parents[1] / "docs" / "images"
NO_LEAK = ("linking of messages", "linking by declared figures", "detector out of the share")
"""Attacks that tell nothing of a picture: who sent an update, which the server knows anyway, and what the common work
is worth to others."""
BEST = {"owner of a person": 100.0, "class mix out of the scores": 100.0}
"""Where a leak ends for attacks whose control is no best case, but a rehearsal that is asked something harder or easier
than the run: with fewer people, with other mixes of classes."""
SECRETS = {
    "who was in the training, %": (
        "membership by loss",
        "membership with shadow federations (LiRA)",
        "membership from prediction vectors",
        "membership behind the share",
        "membership behind the share, by the server",
        "membership behind the share, with shadow federations (LiRA)",
    ),
    "was it this picture, %": ("candidates checked on the generator",),
    "classes, %": ("label counts", "class mix out of the generator", "class mix out of the scores"),
    "pictures, dB": (
        "pictures from updates",
        "gradient inversion",
        "gradient inversion of the generator",
        "noise through the generator",
    ),
    "the key, %": ("key out of the generator",),
}
"""What a classifier's clients want to keep, and the attacks that ask for it, all of one unit by their own figure."""
SCORES = {"mnist": "accuracy %", "cifar10": "accuracy %", "ytf68": "NME at 16 px %"}

PROTOCOL: dict[str, Any] = {"clients": 4, "rounds": 5, "training": {"batch": 20}, "record": ["first", "last"]}
DATA: dict[str, Any] = {"per_client": 200, "test": 1000}
REPAIRED = {"method": "ppidsg", "options.ppidsg.generator_lr": 1e-3, "options.ppidsg.extractor": "fixed"}

FACES: dict[str, Any] = {
    "task": "landmarks",
    "clients": 4,
    "rounds": 16,
    "record": ["first", *range(9, 16), "last"],
    "data": {"people": 6},
    "training": {
        "batch": 8,
        "optimizer": "adamw",
        "lr": 0.002,
        "weight_decay": 0.02,
        "clip": 1.0,
        "decay_after": 8,
    },
}
THIN = {
    "method": "keyed",
    "options.keyed.blocks": 1,
    "options.keyed.body": "hourglass",
    "options.keyed.thin": True,
}

UNLIKE = {"data.partition": "dirichlet", "data.alpha": 0.3}
"""Clients of unlike classes: of like ones even class counts are nearly right."""

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "ppidsg, repaired": REPAIRED,
    "local": {"method": "local"},
    "ppidsg, own extractors": {"method": "ppidsg", "options.ppidsg.extractor_start": "own"},
    "ppidsg": {"method": "ppidsg"},
    "none, unlike clients": {"method": "none", **UNLIKE},
    "ppidsg, repaired, unlike clients": {**REPAIRED, **UNLIKE},
    "local, unlike clients": {"method": "local", **UNLIKE},
    "ppidsg, no extractor": {**REPAIRED, "options.ppidsg.extractor": "none"},
    "ppidsg, client's key": {**REPAIRED, "options.ppidsg.scope": "client"},
    "ppidsg, blocks of 2": {**REPAIRED, "options.ppidsg.block": 2},
    "none, C only": {"method": "none", "options.none.share": ["classifier"]},
    "none, F only": {"method": "none", "options.none.share": ["extractor"]},
    "gc, 10 %": {"method": "gc"},
    "dp, epsilon 50": {"method": "dp"},
    "etc": {"method": "etc"},
    "ats": {"method": "ats"},
    "fedcg": {"method": "fedcg"},
    "fedcg, slow distillation": {"method": "fedcg", "options.fedcg.distillation_lr": 1e-5},
    "dpsgd, small head": {"method": "dpsgd", "data.head_widths": [128, 64]},
    "none, small head": {"method": "none", "data.head_widths": [128, 64]},
    "none, one step of 8": {"method": "none", "training.batch": 8, "training.local_steps": 1},
}
"""What is audited. *C only* and *F only* ask which part of a classifier it is that leaks. At its authors' rate *fedcg*
does not learn here, and leaks nothing for that; a slower distillation does (docs/federation.md)."""

DETECTORS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "keyed, thin": THIN,
    "local": {"method": "local"},
    "hallucinator": {"method": "hallucinator"},
    "gc, 10 %": {"method": "gc"},
    "keyed, thin, own start": {**THIN, "options.keyed.start": "own"},
    "keyed, thin, half precision": {**THIN, "options.keyed.precision": "half"},
    "ppidsg": {"method": "ppidsg-landmarks"},
    "dpsgd": {"method": "dpsgd", "options.dpsgd.noise": 1.0},
    "dpsgd, fitted noise": {"method": "dpsgd"},
    "keyed": {"method": "keyed"},
    "keyed, thin, two hourglasses": {**THIN, "options.keyed.blocks": 2, "options.keyed.precision": "half"},
    "hallucinator, all but heads": {
        "method": "hallucinator",
        "options.hallucinator.share": ["structure", "detail", "paint", "finish", "guide", "inform", "again"],
        "options.hallucinator.precision": "half",
    },
}
"""The same of landmark detectors: docs/private-landmarks.md."""

METHODS = {"mnist": CLASSIFIERS, "ytf68": DETECTORS, "cifar10": CLASSIFIERS}
"""Methods by folder of ``--data``, in the grid's order."""


@dataclass(frozen=True)
class Cell:
    """One federation and its audit.

    Attributes:
        data: A folder of ``--data``.
        name: A method of that folder.
        seed: Of the federation and the audit.
    """

    data: str
    name: str
    seed: int

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.data}-{self.name}-s{self.seed}".replace(" ", "_")

    def config(self) -> FederationConfig:
        """The federation."""
        protocol = FACES if self.data == "ytf68" else PROTOCOL | {"data": DATA}
        values = protocol | {"data": protocol["data"] | {"layout": self.data}, "seed": self.seed}
        settings = [f"{path}={json.dumps(value)}" for path, value in METHODS[self.data][self.name].items()]
        return federation_from(override(values, settings), self.key)


def grid(seeds: int) -> list[Cell]:
    """Every cell, most telling first."""
    return [Cell(data, name, seed) for seed in range(seeds) for data, names in METHODS.items() for name in names]


def missing(cell: Cell, found: dict[str, Any]) -> list[str]:
    """Attacks that a finished cell knows nothing of: those that came later."""
    known = {line["attack"] for line in found["findings"]} | set(found["obstacles"])
    return [name for name in (FACE_ATTACKS if cell.data == "ytf68" else ATTACKS) if name not in known]


def extended(cell: Cell, found: dict[str, Any], data: Path, device: torch.device) -> dict[str, Any]:
    """A finished cell with the attacks that came later, played on its federation once more, which has other secrets.

    Args:
        cell: The cell.
        found: What its JSON holds.
        data: Folder that holds the data sets.
        device: Where clients and attacks compute.
    """
    later = missing(cell, found)
    known = {line["attack"] for line in found["findings"]} | set(found["obstacles"])
    again = play_cell(cell, data, device, without=known)
    said = {"date": again["date"], "attacks": later, "score": again["score"], "seconds": again["seconds"]}
    said["record"] = again["config"]["record"]
    return {
        **found,
        "findings": found["findings"] + again["findings"],
        "obstacles": {**found["obstacles"], **{k: v for k, v in again["obstacles"].items() if k in later}},
        "extended": [*found.get("extended", []), said],
    }


def play_cell(cell: Cell, data: Path, device: torch.device, without: Collection[str] = ()) -> dict[str, Any]:
    """The federation, if it is not there yet, and its audit.

    Args:
        cell: The cell.
        data: Folder that holds the data sets.
        device: Where clients and attacks compute.
        without: Attacks that are left out.

    Returns:
        What its JSON holds.
    """
    config, run, secrets = cell.config(), RunFolder(RUNS / cell.key), RUNS / "secrets"
    folder = data / config.data.layout
    with run.hold():
        resume = (run.path / "config.yaml").exists()
        run_federation(config, folder, run, secrets=secrets, resume=resume, device=str(device))
        began = time.monotonic()
        summary = audit_run(
            run.path, folder, run.path / "audit", secrets=secrets, seed=cell.seed, device=str(device), without=without
        )
        return {
            "cell": cell.key,
            "data": cell.data,
            "name": cell.name,
            "seed": cell.seed,
            "config": config.model_dump(mode="json"),
            "score": summary["score"],
            "findings": json.loads((run.path / "audit" / "audit.json").read_text(encoding="utf-8")),
            "obstacles": summary["obstacles"],
            "seconds": time.monotonic() - began,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(device),
        }


def machine(device: torch.device) -> str:
    """What computed: seconds mean little without."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, shared by several cells"
    return f"{platform.machine()}, {os.cpu_count()} cores, one thread"


def leakage(found: dict[str, Any]) -> tuple[float, str]:
    """The largest leak of a cell, and the attack that found it.

    A leak is how much of the way from chance to the positive control an attack went in the real setting, in percent;
    below chance it is nothing; for attacks in ``BEST``, of the way to what stands there. Attacks whose control did not
    succeed do not count, nor those of ``NO_LEAK``, nor what an interval does not set apart from chance and from noise,
    as in a report's verdict.
    """
    leaks = [(0.0, "none found")]
    for name, lines in by_attack(found).items():
        for line in lines:
            way = BEST.get(name, line.positive_control or line.chance) - line.chance
            if name not in NO_LEAK and line.rung == REAL and way > 0 and beyond_chance(line, lines):
                leaks.append((min(100.0, 100 * (line.value - line.chance) / way), name))
    return max(leaks)


def by_attack(found: dict[str, Any]) -> dict[str, list[AuditFinding]]:
    """The findings of a cell, by attack, in their order."""
    lines = [AuditFinding.model_validate(line) for line in found["findings"]]
    return {
        name: [line for line in lines if line.attack == name] for name in dict.fromkeys(some.attack for some in lines)
    }


def kinds(found: dict[str, Any]) -> dict[str, str]:
    """What a report says of each attack on a cell, by attack."""
    return {name: verdict(lines).kind for name, lines in by_attack(found).items()}


def kinds_and_rungs(found: dict[str, Any]) -> dict[str, str]:
    """The same for a table, with the rungs of its ladder that each attack climbs, of how many."""
    said = {name: verdict(lines) for name, lines in by_attack(found).items()}
    return {
        name: f"**{some.kind}**" if some.kind == "leaks" else f"{some.kind} ({len(some.works)} of {some.rungs})"
        for name, some in said.items()
    }


def blind(found: dict[str, Any]) -> list[str]:
    """The attacks on a cell that would tell something of a picture, and are not shown to work."""
    return [name for name, kind in kinds(found).items() if kind == "not shown to work" and name not in NO_LEAK]


def leak_words(found: dict[str, Any]) -> str:
    """The largest leak of a cell for a table; where none was found, how many attacks could not have found it."""
    if not found["findings"]:
        return "nothing travels"
    share, attack = leakage(found)
    if share:
        return f"{share:.0f} %, {attack}"
    asked = [name for name, kind in kinds(found).items() if kind != "nothing to attack" and name not in NO_LEAK]
    return f"{attack}; {len(blind(found))} of {len(asked)} attacks not shown to work" if blind(found) else attack


def played(found: dict[str, Any]) -> str:
    """When a cell was played, and until when it was extended by attacks that came later."""
    later = [said["date"] for said in found.get("extended", [])]
    return f"{found['date']} to {max(later)}" if later and max(later) > found["date"] else str(found["date"])


def unasked(found: dict[str, Any], attack: str) -> str:
    """Why a cell has no figure of an attack: a dash where what it takes does not travel."""
    return "-" if attack in found["obstacles"] else "not asked"


def tables(cells: list[Cell], results: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Markdown tables of the finished cells: each attack's first figure in the real setting, with chance in brackets.

    Args:
        cells: The grid.
        results: Folder of the finished cells.

    Returns:
        The tables, and the cells. A dash where what an attack takes does not travel; *not asked* where the attack
        came after the cell.
    """
    paths = [results / f"{cell.key}.json" for cell in cells]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    made = []
    for data in dict.fromkeys(cell["data"] for cell in found):
        chosen = [cell for cell in found if cell["data"] == data]
        rows = [line for cell in chosen for line in cell["findings"] if line["rung"] == REAL]
        # The first figure of an attack is its own; the others, which a verdict reads too, are in the cells.
        metrics = {line["attack"]: line["metric"] for line in rows[::-1]}
        units = {line["attack"]: line["unit"] for line in rows[::-1]}
        order = list(dict.fromkeys(line["attack"] for line in rows))
        head = ["method", "seed", SCORES[data], *(f"{name}, {units[name]}" for name in order), "largest leak", "played"]
        lines = [head, ["---"] * len(head)]
        for cell in chosen:
            at = {line["attack"]: line for line in cell["findings"][::-1] if line["rung"] == REAL}
            values = []
            for name in order:
                if name not in at:
                    values.append(unasked(cell, name))
                    continue
                line = at[name]
                said = f"{line['value']:.1f} ({line['chance']:.1f})"
                # Where what travels does not allow the usual question, another is asked.
                usual = line["metric"] == metrics[name]
                values.append(said if usual else f"{said}, {line['metric'].partition(' by ')[2] or line['metric']}")
            lines.append(
                [cell["name"], str(cell["seed"]), f"{cell['score']:.1f}", *values, leak_words(cell), played(cell)]
            )
        made.append(f"{data}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return made, found


def short_table(chosen: list[dict[str, Any]]) -> str:
    """A Markdown table of what leaked, by kind of secret: the furthest attack whose verdict is *leaks*.

    Args:
        chosen: Finished cells of classifiers, of one data set.

    Returns:
        A row a method. Where nothing leaks, what may be said of the attacks at best; how many were not asked.
    """
    lines = [["method", "accuracy %", *SECRETS, "largest leak"], ["---"] * (len(SECRETS) + 3)]
    for cell in chosen:
        said = {name: verdict(some) for name, some in by_attack(cell).items()}
        lines.append([cell["name"], f"{cell['score']:.1f}"])
        for names in SECRETS.values():
            asked = [said[name] for name in names if name in said]
            later = [name for name in names if name not in said and name not in cell["obstacles"]]
            lines[-1].append(_secret_words([some for some in asked if some.kind != "nothing to attack"], len(later)))
        lines[-1].append(f"{share:.0f} %" if (share := leakage(cell)[0]) else "-")
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _secret_words(asked: list[Verdict], later: int) -> str:
    """The furthest leak; else what was not found, and of how many attacks that says nothing."""
    leaks = [some.real for some in asked if some.kind == "leaks" and some.real is not None]
    unclear = sum(some.kind == "not shown to work" for some in asked)
    said = []
    if leaks:
        # Of one measure: a rate at 1 % of false alarms is no area under the curve.
        most = max(leaks, key=lambda found: (found.metric == leaks[0].metric, found.value - found.chance))
        said.append(f"**{most.value:.1f}** ({most.low:.1f} to {most.high:.1f}; {most.chance:.1f})")
    elif unclear < len(asked):
        said.append("not found")
    if unclear and not leaks:
        said.append(f"{unclear} not shown to work")
    if later:
        said.append(f"{later} not asked")
    return "; ".join(said) or "-"


def verdicts(found: list[dict[str, Any]]) -> list[str]:
    """Markdown tables of what a report says of each attack: a line for an attack, a column for a method.

    Args:
        found: Finished cells.
    """
    made = []
    for data in dict.fromkeys(cell["data"] for cell in found):
        chosen = [cell for cell in found if cell["data"] == data and cell["findings"]]
        order = list(dict.fromkeys(line["attack"] for cell in chosen for line in cell["findings"]))
        lines = [["attack", *(f"{cell['name']}, seed {cell['seed']}" for cell in chosen)], ["---"] * (len(chosen) + 1)]
        said = [kinds_and_rungs(cell) for cell in chosen]
        lines += [
            [name, *(some.get(name, unasked(cell, name)) for cell, some in zip(chosen, said, strict=True))]
            for name in order
        ]
        made.append(f"{data}, verdicts\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return made


def plot(found: list[dict[str, Any]], path: Path, words: str) -> None:
    """Score against leakage, one point a method; hollow where attacks that found nothing are not shown to work.

    Args:
        found: Finished cells that are scored alike.
        path: The PNG.
        words: What is scored.
    """
    figure, axes = plt.subplots(figsize=(9, 5))
    named: list[tuple[str, tuple[float, float]]] = []
    for data, marker in zip(METHODS, "oos", strict=True):
        chosen = [cell for cell in found if cell["data"] == data and cell["seed"] == 0]
        if not chosen:
            continue
        points = [(cell["score"], leakage(cell)[0]) for cell in chosen]
        hollow = [share == 0 and bool(blind(cell)) for cell, (_, share) in zip(chosen, points, strict=True)]
        colour = axes.scatter(*zip(*points, strict=True), marker=marker, label=data).get_facecolor()[0]
        unclear = [point for point, empty in zip(points, hollow, strict=True) if empty]
        if unclear:
            words_of = "hollow: nothing found, but some attacks are not shown to work"
            axes.scatter(*zip(*unclear, strict=True), marker=marker, color="white", edgecolor=colour, label=words_of)
        for place, (cell, (x, y)) in enumerate(sorted(zip(chosen, points, strict=True), key=lambda pair: pair[1]), 1):
            named.append((str(place), (x, y)))
            axes.plot([], [], " ", label=f"{place}  {cell['name']}")
    axes.set(xlabel=words, ylabel="largest leak, % of the way from chance to the best case", ylim=(-8, 108))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.tight_layout()
    # In pixels: a number goes to the first side of its point where nothing is yet.
    taken = [axes.transData.transform(point) for _, point in named]
    for word, point in named:
        centre = axes.transData.transform(point)
        around = ((0, 9), (0, -10), (10, 0), (-10, 0), (9, 9), (-9, 9), (9, -10), (-9, -10))
        sides = [centre + figure.dpi / 72 * np.array(side) for side in around]
        free = [side for side in sides if min(np.abs(side - other).max() for other in taken) > 8 * figure.dpi / 72]
        chosen_side = (free or sides)[0]
        taken.append(chosen_side)
        x, y = axes.transData.inverted().transform(chosen_side)
        axes.annotate(word, (x, y), ha="center", va="center", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist, ytf68 and cifar10")
    parser.add_argument("--budget", type=float, default=60, help="minutes in which new cells are started (default: 60)")
    parser.add_argument("--only", default="", help="only cells whose name holds this")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the grid (default: 3)")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda (default: cpu)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished cells")
    parser.add_argument("--plots", type=Path, default=PLOTS, help="folder of the pictures of --print")
    parser.add_argument("--print", action="store_true", help="print the tables of the finished cells, play nothing")
    args = parser.parse_args()
    cells = [cell for cell in grid(args.seeds) if args.only in cell.key]
    if not args.print and args.data is not None:
        torch.set_num_threads(1)
        until = time.monotonic() + 60 * args.budget
        for cell in cells:
            path = args.results / f"{cell.key}.json"
            finished = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            if time.monotonic() > until or (finished and not missing(cell, finished)):
                continue
            say(f"[bold]{cell.key}[/bold]")
            device = choose_device(args.device)
            try:
                found = extended(cell, finished, args.data, device) if finished else play_cell(cell, args.data, device)
            except RunError as problem:
                # Another process plays this cell.
                say(str(problem))
                continue
            args.results.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
    made, cells_found = tables(cells, args.results)
    first = {data: [cell for cell in cells_found if (cell["data"], cell["seed"]) == (data, 0)] for data in METHODS}
    short = [
        f"{data}, in short, seed 0\n\n{short_table(chosen)}"
        for data, chosen in first.items()
        if chosen and METHODS[data] is CLASSIFIERS
    ]
    for table in [*short, *made, *verdicts(cells_found)]:
        console.print(table + "\n", markup=False, soft_wrap=True, highlight=False)
    if args.print:
        args.plots.mkdir(parents=True, exist_ok=True)
        for name, words in (("audit", "accuracy %"), ("audit-faces", "NME at 16 px %")):
            if alike := [cell for cell in cells_found if SCORES[cell["data"]] == words]:
                plot(alike, args.plots / f"{name}.png", words)
                say(f"plot: {args.plots / name}.png")
    say(f"{len(cells_found)} of {len(cells)} cells are finished")


if __name__ == "__main__":
    main()
