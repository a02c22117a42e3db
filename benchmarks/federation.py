"""Does sharing a generator work? A grid of cells, one federation each, on MNIST and CIFAR-10.

    python benchmarks/federation.py --data DIR --budget 120    # plays missing cells for two hours, most telling first
    python benchmarks/federation.py --print                    # tables and picture of the committed cells, coverage

``--data`` holds the folders ``mnist`` and ``cifar10``. Protocol S: 10 clients x 600 images of MNIST or x 500 of
CIFAR-10, 1,000 test images, 10 rounds of one local epoch, batch 64. PPIDSG's options are compared under a smaller one
(``probe``: MNIST, 6 clients x 300 images, 500 test images, 12 rounds), a third of the work a cell; ``probe-100`` and
``probe-900`` are the same with other numbers of images and as many steps. *Other pictures*: protocol S for what the
page concludes with, on seeds and test images that nothing was chosen on. Protocol P (``mnist, paper``): the whole
training set, all test images and 50 rounds, as in the paper; played on a GPU only.

Every cell has the same partition, first weights and order of images for its seed, but for what its name says; cells
that note no ``secret`` (the first 137) had secrets of chance, and with them other ciphers and other starts of C and of
a keyed F. A finished cell is one JSON in ``benchmarks/results/federation/``: config, accuracy of every client after
every round, seconds, date, machine; for methods that release a generator also what is left of "image distribution
sharing": how far G(x) is from scramble(x), and what a linear probe on G(x) can tell. A cell that is cut off goes on
from its last finished round (``runs/federation/<cell>``). Cells run on one core each: start the command once per core,
and they share the grid.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from veilmark.federation.config import FederationConfig
from veilmark.federation.runs import run_federation
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.report.plots import COLOURS, FLOOR_COLOUR, INK, LEGEND, save_figure
from veilmark.run.config import override, resolve
from veilmark.run.devices import choose_device
from veilmark.run.folder import RunError, RunFolder, write_json
from veilmark.run.progress import console, say
from veilmark.run.seeds import rng_for

RESULTS = Path(__file__).parent / "results" / "federation"
RUNS = Path("runs/federation")
PLOTS = Path(__file__).parents[1] / "docs" / "images"


@dataclass(frozen=True)
class Protocol:
    """Whose images, and for how long.

    Attributes:
        data: Settings of ``data``; the folder is named as the layout.
        clients: Clients.
        rounds: Rounds.
        training: Settings of ``training``.
    """

    data: dict[str, Any]
    clients: int
    rounds: int
    training: dict[str, Any] = field(default_factory=dict)


PROTOCOLS = {
    "mnist": Protocol({"layout": "mnist", "per_client": 600, "test": 1000}, clients=10, rounds=10),
    "cifar10": Protocol({"layout": "cifar10", "per_client": 500, "test": 1000}, clients=10, rounds=10),
    "probe": Protocol({"layout": "mnist", "per_client": 300, "test": 500}, clients=6, rounds=12),
}
SIZES = {
    f"probe-{images}": Protocol(
        {"layout": "mnist", "per_client": images, "test": 500}, clients=6, rounds=12, training={"local_steps": 5}
    )
    for images in (100, 900)
}
"""The probe, which takes 5 steps of 300 images a round, with other numbers of images a client."""
PROTOCOLS |= SIZES

OTHERS = {
    f"{name}, other pictures": replace(PROTOCOLS[name], data=PROTOCOLS[name].data | {"test_part": 1})
    for name in ("mnist", "cifar10")
}
"""Scored on a thousand test pictures that nothing was chosen on, with seeds that nothing was chosen on."""
PROTOCOLS |= OTHERS

PAPER = {
    "mnist, paper": Protocol({"layout": "mnist", "per_client": 6000, "test": 10_000}, clients=10, rounds=50),
    "cifar10, paper": Protocol({"layout": "cifar10", "per_client": 5000, "test": 10_000}, clients=10, rounds=50),
}
"""Protocol P: fifty times the steps of protocol S, which is work for a GPU; on a CPU these cells are left out."""
PROTOCOLS |= PAPER

RATE = {"options.ppidsg.generator_lr": 1e-3}
"""The repair that a probe found: five times the published learning rate of G and D."""

OWN = {"options.ppidsg.extractor_start": "own"}
"""Each client's extractor starts by chance, where in the published code all start alike."""

CORE: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "local": {"method": "local"},
    "ppidsg": {"method": "ppidsg"},
    "ppidsg, repaired": {"method": "ppidsg", **RATE, "options.ppidsg.extractor": "fixed"},
    "ppidsg, own extractors": {"method": "ppidsg", **OWN},
    "1e-3, own extractors": {"method": "ppidsg", **RATE, **OWN},
}
"""What every table begins with; *repaired* is what the probe of the options found best that keeps an extractor."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "ppidsg, published code": {
        "options.ppidsg.published": True,
        "options.ppidsg.keep_adam": False,
        "options.ppidsg.history": 10,
    },
    "ppidsg, fresh Adam": {"options.ppidsg.keep_adam": False},
}
"""Closer to the published code: no skips, a pool of ten whose labels stay behind, optimisers anew each round."""

OPTIONS: dict[str, dict[str, Any]] = {
    "1e-3, nothing shared": {**RATE, "options.ppidsg.share": []},
    "repaired, nothing shared": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.share": []},
    "1e-3, extractor from the key": {**RATE, "options.ppidsg.extractor_start": "key"},
    "1e-3, key extractor": {**RATE, "options.ppidsg.extractor": "key"},
    "1e-3, joint extractor": {**RATE, "options.ppidsg.extractor": "joint"},
    "1e-3, no extractor": {**RATE, "options.ppidsg.extractor": "none"},
    "1e-3, kept head": {**RATE, "options.ppidsg.head": "kept"},
    "1e-3, kept head, joint extractor": {
        **RATE,
        "options.ppidsg.head": "kept",
        "options.ppidsg.extractor": "joint",
    },
    "1e-3, class loss 0": {**RATE, "options.ppidsg.classes": 0.0},
    "1e-3, semantic loss 10": {**RATE, "options.ppidsg.semantic": 10.0},
    "1e-3, semantic loss 0": {**RATE, "options.ppidsg.semantic": 0.0},
    "1e-3, no history": {**RATE, "options.ppidsg.history": 0},
    "1e-3, published": {**RATE, "options.ppidsg.published": True},
    "1e-3, published generator": {**RATE, "options.ppidsg.published": ["generator"]},
    "1e-3, published pool": {**RATE, "options.ppidsg.published": ["pool"]},
    "1e-3, class loss 0.5": {**RATE, "options.ppidsg.classes": 0.5},
    "1e-3, class loss 1": {**RATE, "options.ppidsg.classes": 1.0},
    "1e-3, client's key": {**RATE, "options.ppidsg.scope": "client"},
    "1e-3, picture's key": {**RATE, "options.ppidsg.scope": "image"},
    "1e-3, fresh Adam": {**RATE, "options.ppidsg.keep_adam": False},
    "1e-3, warm-up 3": {**RATE, "options.ppidsg.warmup": 3},
    "1e-3, proximal 0.01": {**RATE, "options.ppidsg.proximal": 0.01},
    "1e-3, joint extractor, nothing shared": {
        **RATE,
        "options.ppidsg.extractor": "joint",
        "options.ppidsg.share": [],
    },
    "repaired, kept head": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.head": "kept"},
    "repaired, no history": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.history": 0},
    "repaired, fresh Adam": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.keep_adam": False},
    "repaired, class loss 0.5": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.classes": 0.5},
    "repaired, semantic loss 0": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.semantic": 0.0},
    "repaired, semantic loss 10": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.semantic": 10.0},
    "repaired, published generator": {
        **RATE,
        "options.ppidsg.extractor": "fixed",
        "options.ppidsg.published": ["generator"],
    },
    "repaired, published pool": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.published": ["pool"]},
    "repaired, client's key": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.scope": "client"},
}
"""Of *1e-3, own extractors*, and of *ppidsg, repaired*, one thing changed at a time."""
OPTIONS = {
    name: changes if changes.get("options.ppidsg.extractor", "joint") != "joint" else {**OWN, **changes}
    for name, changes in OPTIONS.items()
}

REPAIRS: dict[str, dict[str, Any]] = {
    "1e-3, no extractor": {**RATE, "options.ppidsg.extractor": "none"},
    "1e-3, joint extractor from the key": {
        **RATE,
        "options.ppidsg.extractor": "joint",
        "options.ppidsg.extractor_start": "key",
    },
    "repaired, 4 generator steps": {
        **RATE,
        "options.ppidsg.extractor": "fixed",
        "options.ppidsg.generator_steps": 4,
    },
}
"""Played on CIFAR-10, where what repairs PPIDSG on MNIST is behind a client alone."""

FIXED = {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.head": "fixed"}
UNLIKE: dict[str, dict[str, Any]] = {
    "repaired, fixed head": FIXED,
    "repaired, logit adjustment": {
        **RATE,
        "options.ppidsg.extractor": "fixed",
        "options.ppidsg.logit_adjustment": True,
    },
    "repaired, fixed head, logit adjustment": {**FIXED, "options.ppidsg.logit_adjustment": True},
    "1e-3, no extractor, fixed head": {**RATE, "options.ppidsg.extractor": "none", "options.ppidsg.head": "fixed"},
}
"""Played on unlike clients, whose heads learn their own few classes; the first also on like ones."""

LAST_LOOK: dict[tuple[str, str], tuple[str, ...]] = {
    ("iid", "mnist"): ("ppidsg, repaired",),
    ("iid", "cifar10"): ("ppidsg, repaired", "1e-3, no extractor"),
    ("dirichlet", "mnist"): ("repaired, fixed head",),
    ("dirichlet", "cifar10"): ("1e-3, no extractor, fixed head",),
}
"""What the page concludes with, by partition and data: played once more, beside the two ends, under ``OTHERS``."""

HALVED: dict[str, dict[str, Any]] = {
    "repaired, bfloat16": {**RATE, "options.ppidsg.extractor": "fixed", "options.ppidsg.precision": "bf16-mixed"},
}
"""What the precision of the layers costs; beside its like in float32, of the same seeds and secrets."""

SMALL_HEAD = {"data.head_widths": [128, 64]}
"""A network for which gradients of single examples fit into memory."""

DEFENCES: dict[str, dict[str, Any]] = {
    "ats": {"method": "ats"},
    "etc": {"method": "etc"},
    "dp, epsilon 50": {"method": "dp"},
    "dp, epsilon 500": {"method": "dp", "options.dp.epsilon": 500.0},
    "dpsgd, small head": {"method": "dpsgd", "options.dpsgd.noise": 1.0, **SMALL_HEAD},
    "none, small head": {"method": "none", **SMALL_HEAD},
    "gc, 10 %": {"method": "gc"},
    "gc, 20 %": {"method": "gc", "options.gc.keep": 0.2},
    "gc, 40 %": {"method": "gc", "options.gc.keep": 0.4},
    "fedcg": {"method": "fedcg"},
    "fedcg, averaging only": {"method": "fedcg", "options.fedcg.distillation_steps": 0},
}

FEDCG: dict[str, dict[str, Any]] = {
    "fedcg, slow distillation": {"method": "fedcg", "options.fedcg.distillation_lr": 1e-5},
    "fedcg, 20 passes of G": {"method": "fedcg", "options.fedcg.gan_passes": 20},
    "fedcg, own head": {"method": "fedcg", "options.fedcg.head": "own"},
    "fedcg, small head": {"method": "fedcg", **SMALL_HEAD},
}
"""Why FedCG falls behind its own averaging: one thing changed at a time."""


RATES: dict[str, dict[str, Any]] = {
    f"{method}, rate {lr:g}": {"method": method, "training.lr": lr}
    for lr in (0.03, 0.1)
    for method in ("none", "local")
}
"""The two ends at other rates than the published 0.01."""


IN_SHORT = {
    "averaging": "none",
    "a client alone": "local",
    "PPIDSG, published settings": "ppidsg",
    "PPIDSG, own extractors": "ppidsg, own extractors",
    "PPIDSG, two repairs": "ppidsg, repaired",
}
"""What a setting in short shows, by what it is called there; then ``BEST``, of ``REPAIRS`` and ``UNLIKE`` the one with
the highest accuracy on these very test images."""
BEST = "PPIDSG, best other repair"
SAID = {"mnist": "MNIST", "cifar10": "CIFAR-10", "iid": "like", "dirichlet": "unlike"}


@dataclass(frozen=True)
class Summary:
    """One setting of protocol S in short.

    Attributes:
        data: A key of ``PROTOCOLS``.
        partition: ``iid`` or ``dirichlet``.
        rows: Accuracy in percent after every round, by seed, by what ``IN_SHORT`` calls the cell.
        best: The cell's name behind ``BEST``; None where none was played.
    """

    data: str
    partition: str
    rows: dict[str, dict[int, list[float]]]
    best: str | None


@dataclass(frozen=True)
class Cell:
    """One federation.

    Attributes:
        data: A key of ``PROTOCOLS``.
        partition: ``iid`` or ``dirichlet``.
        name: What is special about it.
        changes: Settings by path.
        seed: The run's seed.
    """

    data: str
    partition: str
    name: str
    changes: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.data}-{self.partition}-{self.name}-s{self.seed}".replace(" ", "_")

    def config(self) -> FederationConfig:
        """The federation."""
        protocol = PROTOCOLS[self.data]
        data = dict(protocol.data)
        if self.partition == "dirichlet":
            data |= {"partition": "dirichlet", "alpha": 0.5}
        values = {"data": data, "clients": protocol.clients, "rounds": protocol.rounds, "seed": self.seed, "record": []}
        values["training"] = protocol.training
        settings = [f"{path}={json.dumps(value)}" for path, value in self.changes]
        return resolve(FederationConfig, override(values, settings), self.key)


def grid(seeds: int) -> list[Cell]:
    """Every cell, most telling first.

    Args:
        seeds: How many seeds.
    """
    named = CORE | {name: {"method": "ppidsg", **changes} for name, changes in (REPAIRS | UNLIKE).items()}
    options, repairs, unlike, halved, published = (
        {name: {"method": "ppidsg", **changes} for name, changes in table.items()}
        for table in (OPTIONS, REPAIRS, UNLIKE, HALVED, PUBLISHED)
    )
    fixed = dict(list(unlike.items())[:1])
    of_size = {name: CORE[name] for name in ("none", "local", "ppidsg, repaired")}
    of_paper = ("none", "local", "ppidsg", "ppidsg, repaired")
    cells = []
    for seed in range(seeds):
        for partition in ("iid", "dirichlet"):
            rows = [("mnist", CORE), ("cifar10", CORE)]
            if partition == "iid":
                rows += [("cifar10", repairs), ("probe", CORE), ("probe", options), ("mnist", FEDCG)]
                rows += [("probe", published), ("probe", RATES)]
                rows += [("mnist", fixed), ("cifar10", fixed)]
                rows += [("probe", halved), ("mnist", halved), ("cifar10", halved)]
                rows += [(size, of_size) for size in SIZES]
                rows += [(large, {name: CORE[name] for name in of_paper}) for large in PAPER]
            else:
                rows += [("mnist", unlike), ("cifar10", unlike)]
            rows += [("mnist", DEFENCES), ("cifar10", DEFENCES)]
            for data in ("mnist", "cifar10"):
                last = {name: named[name] for name in ("none", "local", *LAST_LOOK[partition, data])}
                rows.append((f"{data}, other pictures", last))
            for data, table in rows:
                own = seed + 3 if data in OTHERS else seed
                for name, changes in table.items():
                    cells.append(Cell(data, partition, name, tuple(changes.items()), own))
    return cells


def play_cell(cell: Cell, data: Path, device: torch.device) -> dict[str, Any]:
    """Plays one cell to its end.

    Args:
        cell: The cell.
        data: Folder that holds ``mnist`` and ``cifar10``.
        device: Where clients compute.

    Returns:
        What its JSON holds.
    """
    config = cell.config()
    run = RunFolder(RUNS / cell.key)
    secrets = secrets_of_seed(config.seed, config.clients)
    with run.hold():
        resume = (run.path / "config.yaml").exists()
        run_federation(config, data / config.data.layout, run, secrets=secrets, resume=resume, device=str(device))
        summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
        found: dict[str, Any] = {
            "cell": cell.key,
            "data": cell.data,
            "partition": cell.partition,
            "name": cell.name,
            "seed": cell.seed,
            "config": config.model_dump(mode="json"),
            "accuracy": summary["accuracy"],
            "rounds": [record["accuracy"] for record in run.read_log()],
            "bytes_up_per_client_round": summary["bytes_up_per_client_round"],
            "seconds": summary["seconds"],
            "peak_rss_mb": summary["peak_rss_mb"],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(device),
            "secret": Secret.load(secrets / "federation.key").check(),
        }
        if config.method == "ppidsg":
            # What it needs would count as the clients' memory if it were loaded before they are done.
            from veilmark.federation.generator_measures import measure_generator

            found["generator"] = measure_generator(config, data / config.data.layout, run.path, secrets)
    return found


def secrets_of_seed(seed: int, clients: int) -> Path:
    """A folder of secrets that depend on the seed alone: the cipher, and where C and F start, are the same anywhere.

    For cells only: a secret that a config tells is none.

    Args:
        seed: Of the cell.
        clients: How many have one.
    """
    folder = RUNS / f"secrets-s{seed}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place, name in enumerate(("federation", *(f"client-{number}" for number in range(clients)))):
        file = folder / f"{name}.key"
        if not file.exists():
            Secret(rng_for(seed, 90, place).bytes(SECRET_BYTES)).save(file)
    return folder


def machine(device: torch.device) -> str:
    """What computed: seconds mean little without."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, shared by several cells"
    return f"{platform.machine()}, {os.cpu_count()} cores, one thread"


def tables(cells: list[Cell], results: Path) -> list[str]:
    """Markdown tables of accuracy by data and partition, from the finished cells.

    Args:
        cells: The grid.
        results: Folder of the finished cells.
    """
    made: list[str] = []
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        path = results / f"{cell.key}.json"
        if path.exists():
            found[cell.data, cell.partition][cell.name].append(json.loads(path.read_text(encoding="utf-8")))
    for (data, partition), rows in found.items():
        protocol = PROTOCOLS[data]
        half = protocol.rounds // 2
        head = ["cell", "seeds", "accuracy %", "min", "max", "own mix", f"after {half} rounds", "MB up"]
        head += ["probe on G(x) %", "key head on G(x) %", "L1 to scramble(x)", "told from scramble(x') %"]
        lines = [head, ["---"] * len(head)]
        for name, played in rows.items():
            figures = [np.mean([r["accuracy"][k] for r in played]) for k in ("mean", "min", "max", "own_distribution")]
            figures.append(np.mean([r["rounds"][half - 1]["mean"] for r in played]))
            line = [name, str(len(played)), *(f"{figure:.1f}" for figure in figures)]
            line.append(f"{played[0]['bytes_up_per_client_round'] / 1e6:.1f}")
            # The first 137 cells have no key head; where head and F are fixed it is what clients have.
            released = [{**_fixed_head(r), **r["generator"]} for r in played if r.get("generator")]
            for key, digits in (("probe", 1), ("key_head", 1), ("l1", 2), ("two_sample", 1)):
                known = [g[key] for g in released if key in g]
                line.append(f"{np.mean(known):.{digits}f}" if known else "")
            lines.append(line)
        title = f"{data}, {partition}: {protocol.clients} clients x {protocol.data['per_client']} images, "
        title += f"{protocol.data['test']} test images, {protocol.rounds} rounds; means over clients and seeds"
        made.append(title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return made


def summaries(cells: list[Cell], results: Path) -> list[Summary]:
    """Each setting of protocol S in short, from the finished cells.

    Args:
        cells: The grid.
        results: Folder of the finished cells.
    """
    found: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        path = results / f"{cell.key}.json"
        if cell.data in ("mnist", "cifar10") and path.exists():
            rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
            found[cell.data, cell.partition][cell.name][cell.seed] = [score["mean"] for score in rounds]
    made = []
    for data, partition in itertools.product(("mnist", "cifar10"), ("iid", "dirichlet")):
        rows = found[data, partition]
        others = [name for name in rows if name in REPAIRS | UNLIKE]
        best = max(others, key=lambda name: _last(rows[name]), default=None)
        shown = {title: rows[name] for title, name in IN_SHORT.items() if name in rows}
        made.append(Summary(data, partition, shown | ({BEST: rows[best]} if best else {}), best))
    return [summary for summary in made if summary.rows]


def _last(curves: dict[int, list[float]]) -> float:
    """Accuracy after the last round, the mean over seeds."""
    return float(np.mean([curve[-1] for curve in curves.values()]))


def short_table(found: list[Summary]) -> str:
    """A line a setting: accuracy after the last round, its span over seeds or *one seed*."""
    head = ["pictures", "clients", *IN_SHORT, BEST]
    lines = [head, ["---"] * len(head)]
    for summary in found:
        line = [SAID[summary.data], SAID[summary.partition]]
        for title in head[2:]:
            curves = summary.rows.get(title)
            if curves is None:
                line.append("not played" if title in IN_SHORT else "none tried")
                continue
            last = [curve[-1] for curve in curves.values()]
            span = f"{min(last):.1f} to {max(last):.1f}" if len(last) > 1 else "one seed"
            name = f" *{summary.best}*" if title not in IN_SHORT else ""
            line.append(f"{np.mean(last):.1f} ({span}){name}")
        lines.append(line)
    return "in short: accuracy % after the last round\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(found: list[Summary], path: Path) -> None:
    """Accuracy by rounds, a chart a setting: means over seeds, and the span of the seeds.

    Args:
        found: Settings in short.
        path: The PNG.
    """
    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained", facecolor="white")
    titles = [*IN_SHORT, BEST]
    # Nothing of PPIDSG in grey or black: those are the ends that it is read against.
    looks = dict(zip(titles, [(INK, "-"), (FLOOR_COLOUR, "--"), *((colour, "-") for colour in COLOURS)], strict=False))
    drawn: dict[str, Any] = {}
    for place, summary in enumerate(found):
        axes = figure.add_subplot(2, 2, place + 1)
        for title in titles:
            if title not in summary.rows:
                continue
            curves = np.array(list(summary.rows[title].values()))
            rounds = np.arange(1, curves.shape[1] + 1)
            colour, style = looks[title]
            drawn[title] = axes.plot(rounds, curves.mean(0), style, color=colour, linewidth=1.8)[0]
            axes.fill_between(rounds, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)
        best = f"\nbest other: {summary.best}" if summary.best else ""
        axes.set_title(
            f"{SAID[summary.data]}, {SAID[summary.partition]} clients{best}", loc="left", fontsize=9, color=INK
        )
        axes.set(xlabel="round", ylabel="accuracy, %")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(
        [drawn[title] for title in titles if title in drawn],
        [title for title in titles if title in drawn],
        loc="outside lower center",
        ncols=3,
        **(LEGEND | {"fontsize": 9}),
    )
    save_figure(figure, path)


def _fixed_head(cell: dict[str, Any]) -> dict[str, float]:
    """The accuracy behind the released G of F and C as the secret starts them, where clients have no others."""
    options = cell["config"]["options"].get("ppidsg", {})
    fixed = options.get("head") == "fixed" and options.get("extractor") in ("fixed", "none")
    return {"key_head": cell["accuracy"]["mean"]} if fixed else {}


def curves(cells: list[Cell], results: Path) -> list[str]:
    """Markdown tables of the core's accuracy after some rounds, and its distance by seed from averaging and no sharing.

    Args:
        cells: The grid.
        results: Folder of the finished cells.
    """
    found: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    named = [*CORE, *UNLIKE, *REPAIRS]
    for cell in cells:
        path = results / f"{cell.key}.json"
        if cell.name in named and path.exists():
            rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
            found[cell.data, cell.partition][cell.name][cell.seed] = [score["mean"] for score in rounds]
    made = []
    for (data, partition), rows in found.items():
        protocol = PROTOCOLS[data]
        if not {"none", "local"} <= rows.keys():
            continue
        shown = [number for number in (1, 2, 4, 6, 8, 10, 12) if number <= protocol.rounds]
        head = ["cell", "seeds", *(f"after {number}" for number in shown), "less none", "less local"]
        lines = [head, ["---"] * len(head)]
        for name in sorted(rows, key=named.index):
            curve = np.mean(list(rows[name].values()), axis=0)
            line = [name, str(len(rows[name])), *(f"{curve[number - 1]:.1f}" for number in shown)]
            lines.append([*line, *(_apart(rows[name], rows[other]) for other in ("none", "local"))])
        title = f"{data}, {partition}, {protocol.data['per_client']} images a client: accuracy % by rounds"
        made.append(title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return made


def _apart(one: dict[int, list[float]], other: dict[int, list[float]]) -> str:
    """Points after the last round between two cells of a seed: the mean, and by seed from the least to the most.

    Seeds that one of the two lacks are left out, so their means need not be as far apart.
    """
    apart = [one[seed][-1] - other[seed][-1] for seed in one if seed in other]
    if not apart:
        return ""
    span = f" ({min(apart):+.1f} to {max(apart):+.1f}; {len(apart)} seeds)" if len(apart) > 1 else " (1 seed)"
    return f"{np.mean(apart):+.1f}{span}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist and cifar10")
    parser.add_argument("--budget", type=float, default=60, help="minutes in which new cells are started (default: 60)")
    parser.add_argument("--only", default="", help="only cells whose name holds this")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the grid (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished cells")
    parser.add_argument("--plots", type=Path, default=PLOTS, help="folder of the picture of --print")
    parser.add_argument("--print", action="store_true", help="print the tables of the finished cells, play nothing")
    args = parser.parse_args()
    cells = [cell for cell in grid(args.seeds) if args.only in cell.key]
    if not args.print and args.data is not None:
        torch.set_num_threads(1)
        device = choose_device(args.device)
        until = time.monotonic() + 60 * args.budget
        for cell in cells:
            path = args.results / f"{cell.key}.json"
            if path.exists() or time.monotonic() > until or (cell.data in PAPER and device.type == "cpu"):
                continue
            say(f"[bold]{cell.key}[/bold]")
            try:
                found = play_cell(cell, args.data, device)
            except RunError as problem:
                # Another process plays this cell.
                say(str(problem))
                continue
            args.results.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
    found_in_short = summaries(cells, args.results)
    if args.print and found_in_short:
        args.plots.mkdir(parents=True, exist_ok=True)
        plot(found_in_short, args.plots / "federation.png")
    for table in [short_table(found_in_short), *tables(cells, args.results), *curves(cells, args.results)]:
        console.print(table + "\n", markup=False, soft_wrap=True, highlight=False)
    done = sum((args.results / f"{cell.key}.json").exists() for cell in cells)
    say(f"{done} of {len(cells)} cells are finished")


if __name__ == "__main__":
    main()
