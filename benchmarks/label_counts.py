"""How many pictures of each class were in a batch? The paper's grid: activation, batch size, three ways to read it.

    python benchmarks/label_counts.py                # scikit-learn's digits, which come with the package
    python benchmarks/label_counts.py --data DIR     # the folders mnist and cifar10 of DIR as well
    python benchmarks/label_counts.py --print        # tables from the committed figures

A LeNet with sigmoid, ReLU or leaky ReLU; batches of 32, 64 and 128; a network as it starts, and one after 300 steps
of Adam on pictures that are in no batch. Batches come from pictures that the attacker has not, drawn at random or with
class shares from a Dirichlet distribution (0.5). What is attacked is the gradient of the last layer: by our solver, by
its simple form that reads the bias alone, by iDLG's sign rule and by LLG. Both of ours have labelled public pictures;
iDLG and LLG take the gradient alone. Each cell: 4 networks x 25 batches, intervals by bootstrap over the 100 batches.
Two priors stand beside them: even counts, and the class shares of the public pictures. Figures go to
``benchmarks/results/label_counts.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from veilmark.audit.attack import mean_interval
from veilmark.audit.class_counts import (
    Counts,
    LastLayerSolver,
    apportioned,
    counts_from_bias,
    label_score,
    llg,
    prior_counts,
    sign_rule,
)
from veilmark.federation.image_sets import ImageSet, load_image_set, resized
from veilmark.federation.partition import dirichlet, iid
from veilmark.ppidsg.client_training import to_unit
from veilmark.run.folder import write_json
from veilmark.run.progress import console, say
from veilmark.run.seeds import rng_for

RESULTS = Path(__file__).parent / "results" / "label_counts.json"

CONFIG: dict[str, Any] = {
    "activations": ["sigmoid", "ReLU", "leaky ReLU"],
    "batches": [32, 64, 128],
    "draws": ["IID", "skewed"],
    "alpha": 0.5,
    "networks": 4,
    "batches_of_a_network": 25,
    "public": 1000,
    "others": 6000,
    "training": {"optimizer": "Adam", "steps": 300, "batch": 64, "lr": 3e-3},
}
"""``others``: pictures that batches come from at most, and that networks learn from at most."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "ReLU": nn.ReLU,
    "leaky ReLU": lambda: nn.LeakyReLU(0.01),
}
STATES = ("fresh", "trained")
OURS, BIAS, IDLG, LLG = "ours", "ours, bias alone", "iDLG", "LLG"
EVEN, KNOWN = "even counts", "public shares"
MEASURES = {
    "right": "pictures counted in the right class, %",
    "exact": "batches of which every count is right, %",
    "presence": "which classes are there: F1, %",
    "l1": "L1 distance of the counts, pictures",
}


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with a chosen activation.

    Args:
        channels: 1 or 3.
        side: Pixels, a multiple of 4.
        classes: Number of classes.
        activation: A key of ``ACTIVATIONS``.
        seed: Of its weights.
    """

    def __init__(self, channels: int, side: int, classes: int, activation: str, seed: int) -> None:
        super().__init__()
        made = ACTIVATIONS[activation]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(channels, 6, 5, padding=2), made(), nn.AvgPool2d(2),
                nn.Conv2d(6, 16, 5), made(), nn.AvgPool2d(2),
                nn.Flatten(), nn.Linear(16 * (side // 4 - 2) ** 2, 120), made(), nn.Linear(120, 84), made(),
            )  # fmt: skip
            self.last = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures in [-1, 1]."""
        logits: Tensor = self.last(self.body(x))
        return logits

    def entered(self, pictures: Tensor) -> Tensor:
        """What enters the last layer for pictures ``(n, c, s, s)`` uint8, without gradients."""
        with torch.no_grad():
            return torch.cat([self.body(to_unit(some)) for some in torch.split(pictures, 256)])


def learn(network: LeNet, pictures: Tensor, labels: Tensor, seed: int) -> None:
    """Some training of a network."""
    training, rng = CONFIG["training"], rng_for(seed, 60)
    optimizer = torch.optim.Adam(network.parameters(), training["lr"])
    for _ in range(training["steps"]):
        rows = torch.from_numpy(rng.integers(len(pictures), size=training["batch"]))
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(network(to_unit(pictures[rows])), labels[rows]).backward()
        optimizer.step()


def guesses(
    network: LeNet, entered: Tensor, labels: Tensor, public: Tensor, known: Tensor, size: int
) -> Callable[[Tensor], dict[str, Counts]]:
    """All that guess: a function from the rows of a batch to counts by the name of who guessed.

    Args:
        network: The broadcast network.
        entered: ``(n, d)``: what enters the last layer for the clients' pictures.
        labels: ``(n,)``: their classes; used for the gradient, which alone is attacked.
        public: ``(m, d)``: what enters it for the public pictures.
        known: ``(m,)``: their classes.
        size: Pictures of a batch.
    """
    classes = network.last.out_features
    with torch.no_grad():
        said = network.last(public).softmax(dim=1)
    solver = LastLayerSolver(public, said, known)
    by_class = torch.stack([said[known == label].mean(dim=0) for label in range(classes)])
    shares = one_hot(known, classes).double().mean(dim=0)

    def of(rows: Tensor) -> dict[str, Counts]:
        loss = cross_entropy(network.last(entered[rows]), labels[rows])
        weights, bias = torch.autograd.grad(loss, [network.last.weight, network.last.bias])
        return {
            OURS: solver.counts(weights, bias, size),
            BIAS: counts_from_bias(bias, by_class, size),
            IDLG: sign_rule(weights, size),
            LLG: llg(weights, size),
            EVEN: prior_counts(size, classes),
            KNOWN: apportioned(shares, size),
        }

    return of


def scores(guess: Counts, truth: Counts) -> dict[str, float]:
    """Figures of one batch, by the keys of ``MEASURES``."""
    both = int(((guess > 0) & (truth > 0)).sum())
    return {
        "right": 100 - label_score(guess, truth).l1,
        "exact": 100.0 * bool((guess == truth).all()),
        "presence": 200 * both / int((guess > 0).sum() + (truth > 0).sum()),
        "l1": float(np.abs(guess - truth).sum()),
    }


def drawn(labels: np.ndarray[Any, Any], size: int, draw: str, seed: int, number: int) -> Tensor:
    """Rows of a batch."""
    rng = rng_for(seed, 61, size, number + 1)
    part = iid(labels, 1, size, rng) if draw == "IID" else dirichlet(labels, 1, size, CONFIG["alpha"], rng)
    return torch.from_numpy(part.clients[0])


def taken(images: ImageSet, rows: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    """Pictures as networks take them, and their classes."""
    return torch.from_numpy(resized(images.images[rows])), torch.from_numpy(images.labels[rows])


def cells_of(layout: str, data: Path | None) -> Iterator[dict[str, Any]]:
    """Plays the cells of a data set, one by one.

    Args:
        layout: Of the set.
        data: Its folder; None for a bundled one.
    """
    train, test = (load_image_set(layout, data, split) for split in ("train", "test"))
    order, half = rng_for(0, 62).permutation(len(train)), min(CONFIG["others"], len(train) // 2)
    learned, own = taken(train, order[:half]), taken(train, order[half : 2 * half])
    public = taken(test, rng_for(0, 63).permutation(len(test))[: CONFIG["public"]])
    shape, classes = (own[0].shape[1], own[0].shape[2]), len(train.classes)
    for activation in CONFIG["activations"]:
        networks = [LeNet(*shape, classes, activation, seed) for seed in range(CONFIG["networks"])]
        for state in STATES:
            found: dict[tuple[int, str], dict[str, list[dict[str, float]]]] = {}
            accuracies = []
            for seed, network in enumerate(networks):
                if state == "trained":
                    learn(network, *learned, seed)
                entered, known = network.entered(own[0]), network.entered(public[0])
                with torch.no_grad():
                    answers = network.last(entered).argmax(dim=1)
                accuracies.append(100 * float((answers == own[1]).float().mean()))
                for size in CONFIG["batches"]:
                    of = guesses(network, entered, own[1], known, public[1], size)
                    for draw in CONFIG["draws"]:
                        cell = found.setdefault((size, draw), {})
                        for number in range(CONFIG["batches_of_a_network"]):
                            rows = drawn(own[1].numpy(), size, draw, seed, number)
                            truth = np.bincount(own[1][rows].numpy(), minlength=classes)
                            for name, guess in of(rows).items():
                                cell.setdefault(name, []).append(scores(guess, truth))
            for (size, draw), by_name in found.items():
                figures = {
                    name: {m: _interval([score[m] for score in batches]) for m in MEASURES}
                    for name, batches in by_name.items()
                }
                yield {
                    "data": layout, "activation": activation, "batch": size, "network": state, "draw": draw,
                    "accuracy": float(np.mean(accuracies)), "batches": len(by_name[OURS]), "figures": figures,
                }  # fmt: skip


def _interval(values: list[float]) -> list[float]:
    """Mean and its interval, in a file that is no longer than it must be."""
    return [round(value, 3) for value in mean_interval(values, 0)]


def tables(found: dict[str, Any]) -> list[str]:
    """Markdown tables: one of each measure, then where a baseline is not beaten.

    Args:
        found: What the JSON holds.
    """
    at = {tuple(cell[k] for k in ("data", "activation", "batch", "network", "draw")): cell for cell in found["cells"]}
    rows = list(dict.fromkeys(key[:3] for key in at))
    names = (OURS, BIAS, IDLG, LLG, EVEN)
    made = []
    for measure, words in MEASURES.items():
        head = ["data", "activation", "batch", *(f"{state}: {name}" for state in STATES for name in names)]
        lines = [head, ["---"] * len(head)]
        for row in rows:
            values = [
                " / ".join(f"{at[*row, state, d]['figures'][name][measure][0]:.1f}" for d in CONFIG["draws"])
                for state in STATES
                for name in names
            ]
            lines.append([*map(str, row), *values])
        made.append(f"{words}; {' / '.join(CONFIG['draws'])}\n\n" + _markdown(lines))
    lines = [["data", "network", "draw", "accuracy, %", *(f"{name} (95 %)" for name in (*names, KNOWN))]]
    lines.append(["---"] * len(lines[0]))
    for data, state, draw in dict.fromkeys((key[0], key[3], key[4]) for key in at):
        cells = [cell for key, cell in at.items() if (key[0], key[3], key[4]) == (data, state, draw)]
        # The widest of the cells' intervals, so that none is narrower than it says.
        figures = [[cell["figures"][name]["right"] for cell in cells] for name in (*names, KNOWN)]
        values = [
            f"{np.mean([f[0] for f in some]):.1f} (± {max((f[2] - f[1]) / 2 for f in some):.1f})" for some in figures
        ]
        lines.append([data, state, draw, f"{np.mean([cell['accuracy'] for cell in cells]):.0f}", *values])
    made.append(f"{MEASURES['right']}; means of 9 cells, and the widest interval of one\n\n" + _markdown(lines))
    made.append("\n".join(_not_beaten(found)))
    return made


def _not_beaten(found: dict[str, Any]) -> list[str]:
    """In words, in how many cells our solver is behind each other guess, by each measure."""
    said = []
    for name in (BIAS, IDLG, LLG, EVEN, KNOWN):
        for measure in MEASURES:
            sign = -1 if measure == "l1" else 1
            behind = [
                cell
                for cell in found["cells"]
                if sign * (cell["figures"][OURS][measure][0] - cell["figures"][name][measure][0]) < 0
            ]
            where = ", ".join(sorted({f"{cell['data']} {cell['network']} {cell['draw']}" for cell in behind}))
            said.append(f"behind {name} by {measure}: {len(behind)} of {len(found['cells'])} cells {where}".rstrip())
    return said


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist and cifar10; without it digits alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the figures")
    parser.add_argument("--print", action="store_true", help="print the tables of the file, play nothing")
    args = parser.parse_args()
    if not args.print:
        torch.set_num_threads(1)
        sets = {"digits": None} | (
            {} if args.data is None else {name: args.data / name for name in ("mnist", "cifar10")}
        )
        began, cells = time.process_time(), []
        for layout, folder in sets.items():
            for cell in cells_of(layout, folder):
                say(f"{layout}, {cell['activation']}, {cell['batch']}, {cell['network']}, {cell['draw']}")
                cells.append(cell)
        found = {
            "config": CONFIG,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
            "cpu_seconds": time.process_time() - began,
            "cells": cells,
        }
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.results, found)
    found = json.loads(args.results.read_text(encoding="utf-8"))
    for table in tables(found):
        console.print(table + "\n", markup=False, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
