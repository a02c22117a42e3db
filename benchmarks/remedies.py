"""Which part of a network is it that leaks when it is shared, and what do PPIDSG's remedies buy and cost?

    python benchmarks/remedies.py --budget 60     # plays missing cells, most telling first; scikit-learn's digits
    python benchmarks/remedies.py --print         # tables from the committed cells
    python benchmarks/remedies.py --gray          # why a key of each picture leaves the semantic loss nothing to teach

Each cell: the recipe ``ppidsg-digits`` (4 clients x 100 pictures, 5 rounds of 10 steps of 20, the first and the last
round recorded) with 300 test pictures, which are the attacker's public ones too; then the audit of its transcript but
for the gradient inversions, which take minutes, and three questions of this file's own:

- *own key*: is a client's key in the generator that this client sent, whoever else has the key?
- *one picture's jigsaw*: how far is a picture put together again whose key no other has?

Digits have 28 px, which are no whole number of blocks of 8: larger blocks are tried on the same digits of 32 px.
``--data DIR`` adds MNIST (``DIR/mnist``, 4 clients x 200, 1,000 test pictures). A finished cell is one JSON in
``benchmarks/results/remedies/``. Start the command once per core: cells in work are left to the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from veilmark.audit.attack import REAL, mean_interval
from veilmark.audit.audits import audit_run
from veilmark.audit.cipher_attacks import jigsaw, neighbours_kept
from veilmark.audit.cipher_audit import scrambled_with
from veilmark.audit.client_inference import moved
from veilmark.audit.generator_attacks import blocks_by_chance, blocks_right, encryption_oracle, generator_in
from veilmark.audit.record import Record, read_record
from veilmark.federation.client_side import SecretFolder
from veilmark.federation.config import FederationConfig
from veilmark.federation.generator_measures import measure_generator
from veilmark.federation.image_sets import load_image_set, resized
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of
from veilmark.federation.recipes import federation_config
from veilmark.federation.runs import run_federation
from veilmark.federation.tasks.classify import load_classify
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.report.verdicts import AuditFinding, verdict
from veilmark.run.folder import RunError, RunFolder, write_json
from veilmark.run.progress import console, say
from veilmark.run.seeds import rng_for

RESULTS = Path(__file__).parent / "results" / "remedies"
RUNS = Path("runs/remedies")
LEFT_OUT = ("gradient inversion", "gradient inversion of the generator")

DATA: dict[str, dict[str, Any]] = {
    "digits": {"data.test": 300},
    "digits-32px": {"data.layout": "folder", "data.test": 300},
    "mnist": {"data.layout": "mnist", "data.per_client": 200, "data.test": 1000, "data.head_widths": [4096, 1024]},
}

CLIP = 3.6
"""About the median norm of a client's movement without a bound, which the table of G's cell prints."""

PARTS: dict[str, dict[str, Any]] = {
    "C": {"method": "none", "options.none.share": ["classifier"]},
    "F": {"method": "none", "options.none.share": ["extractor"]},
    "F + C": {"method": "none"},
    "G": {},
    "G + D": {"options.ppidsg.share": ["generator", "discriminator"]},
}
"""What is shared, on one task. PPIDSG is the recipe's: ``generator_lr`` 0.001, ``extractor: fixed``."""

REMEDIES: dict[str, dict[str, Any]] = {
    "a key of each client": {"options.ppidsg.scope": "client"},
    "a key of each picture": {"options.ppidsg.scope": "image"},
    "blocks of 2": {"options.ppidsg.block": 2},
    "a bound alone": {"options.ppidsg.clip": CLIP},
    "noise 0.001": {"options.ppidsg.clip": CLIP, "options.ppidsg.noise": 0.001},
    "noise 0.01": {"options.ppidsg.clip": CLIP, "options.ppidsg.noise": 0.01},
    "noise 1": {"options.ppidsg.clip": CLIP, "options.ppidsg.noise": 1.0},
}
"""What is changed in PPIDSG; as it is, it is the part G."""

LARGER: dict[str, dict[str, Any]] = {
    "G": {},
    "blocks of 8": {"options.ppidsg.block": 8},
    "blocks of 16": {"options.ppidsg.block": 16},
}
"""On the same digits of 32 px: 28 are no whole number of larger blocks than 4."""

GRAY = ((4, 50), (4, 200), (2, 200), (8, 200))
"""Blocks and random keys of ``--gray``: four times the keys leave half the spread, if nothing but chance is left."""

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class Cell:
    """One federation and what is found in its transcript.

    Attributes:
        data: A key of ``DATA``.
        name: A key of ``PARTS`` or ``REMEDIES``.
        seed: Of the federation and the attacks.
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
        changes = {**DATA[self.data], **(PARTS | REMEDIES | LARGER)[self.name], "seed": self.seed}
        return federation_config("ppidsg-digits", [f"{path}={json.dumps(value)}" for path, value in changes.items()])


def grid(seeds: int, mnist: bool) -> list[Cell]:
    """Every cell, most telling first.

    Args:
        seeds: How many seeds.
        mnist: Whether MNIST is there beside the digits.
    """
    first = ["G", "a key of each client", "noise 0.001", "F + C"]
    rest = [name for name in PARTS | REMEDIES if name not in first]
    names = {"digits": first + rest, "digits-32px": list(LARGER)}
    if mnist:
        names["mnist"] = names["digits"]
    return [Cell(data, name, seed) for seed in range(seeds) for data in names for name in names[data]]


def folder_of(data: str, given: Path | None) -> Path | None:
    """The folder of a data set; None where it is bundled. The digits of 32 px are written where they are missing."""
    if data == "mnist" and given is not None:
        return given / data
    if data != "digits-32px":
        return None
    folder = RUNS / data
    if not (folder / "written").exists():
        for split in SPLITS:
            found = load_image_set("digits", None, split)
            for row, (picture, label) in enumerate(zip(resized(found.images, 32), found.labels, strict=True)):
                place = folder / split / found.classes[label]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[0]).save(place / f"{row:04d}.png")
        (folder / "written").touch()
    return folder


def play_cell(cell: Cell, data: Path | None) -> dict[str, Any]:
    """The federation, if it is not there yet, and what is found in its transcript.

    Args:
        cell: The cell.
        data: Folder that holds ``mnist``; the digits are bundled.

    Returns:
        What its JSON holds.
    """
    config, run, secrets = cell.config(), RunFolder(RUNS / cell.key), RUNS / "secrets"
    folder = folder_of(cell.data, data)
    with run.hold():
        run_federation(config, folder, run, secrets=secrets, resume=(run.path / "config.yaml").exists())
        began = time.monotonic()
        audit = run.path / "audit"
        summary = audit_run(run.path, folder, audit, secrets=secrets, seed=cell.seed, without=LEFT_OUT)
        played = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
        record = read_record(run.path / "transcript")
        task, owners, _, _ = load_classify(config.data, folder, config.clients, config.seed)
        norms = [
            float(moved(r.broadcast, u.tensors).norm())
            for r in record.rounds
            for u in r.updates.values()
            if record.declared.tensors
        ]
        return {
            "cell": cell.key,
            "data": cell.data,
            "name": cell.name,
            "seed": cell.seed,
            "config": config.model_dump(mode="json"),
            "accuracy": played["accuracy"],
            "losses": run.read_log()[-1]["losses"],
            "bytes_up_per_client_round": played["bytes_up_per_client_round"],
            "movement": {"median": float(np.median(norms)), "min": min(norms), "max": max(norms)},
            "generator": measure_generator(config, folder, run.path, secrets) if config.method == "ppidsg" else {},
            "findings": json.loads((audit / "audit.json").read_text(encoding="utf-8")),
            "own": own_findings(record, task.test, owners, SecretFolder(secrets), cell.seed),
            "obstacles": summary["obstacles"],
            "left_out": summary["skipped"],
            "seconds": {"federation": played["seconds"], "attacks": time.monotonic() - began},
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        }


def own_findings(
    record: Record, public: Data, owners: list[Data], secrets: SecretFolder, seed: int
) -> list[dict[str, Any]]:
    """The questions of this file.

    Args:
        record: What the server saw.
        public: Pictures that no client has.
        owners: The clients' pictures, for the scores.
        secrets: The clients' secrets, for the scores.
        seed: Of everything that is drawn.
    """
    options = record.method.options
    if not isinstance(options, PPIDSGOptions):
        return []
    pictures, task = to_unit(public.inputs), record.task
    shape = (task.channels, task.side, task.side)
    if options.scope == "image":
        return [_jigsaw_of_one(pictures, shape, options, seed)]
    known = [secrets.of_client(number) for number in range(record.config.clients)]
    tables = [cipher_of(options, some.federation, some.own).table(*shape) for some in known]
    guesses = {
        client: encryption_oracle(generator_in(record, update.tensors), pictures, options.block)
        for client, update in record.rounds[-1].updates.items()
    }
    right = [
        float(np.mean(blocks_right(guess, tables[client], shape, options.block))) for client, guess in guesses.items()
    ]
    chance = blocks_by_chance(task.channels, task.side, options.block, options.without)
    return [_line("own key", "blocks of the sender's key that are right", "%", right, chance, seed)]


def _line(attack: str, metric: str, unit: str, values: list[float], chance: float, seed: int) -> dict[str, Any]:
    value, low, high = mean_interval(values, seed)
    figures = {"n": len(values), "value": value, "low": low, "high": high, "chance": chance}
    return {"attack": attack, "rung": REAL, "metric": metric, "unit": unit, **figures}


def _jigsaw_of_one(pictures: Tensor, shape: tuple[int, int, int], options: PPIDSGOptions, seed: int) -> dict[str, Any]:
    """How far one scrambled picture is put together again, where no other has its key."""
    right, strange = [], []
    for row in range(16):
        keys = [Cipher(_secret(seed, row, number), options.block).table(*shape) for number in (0, 1)]
        guess = jigsaw(scrambled_with(keys[0], pictures[row : row + 1]), options.block)
        for key, kept in zip(keys, (right, strange), strict=True):
            kept.append(neighbours_kept(guess, key, shape, options.block))
    metric = "neighbouring pixels across blocks that are side by side again"
    return _line("one picture's jigsaw", metric, "%", right, float(np.mean(strange)), seed)


def _secret(seed: int, *numbers: int) -> Secret:
    return Secret(rng_for(seed, 48, *numbers).bytes(SECRET_BYTES))


@dataclass(frozen=True)
class Gray:
    """What is left of a picture's scrambled self for somebody who does not know its key.

    Attributes:
        spread: Standard deviation over pixels of the mean over keys of scramble(x); 0 is a plain gray.
        spread_x: That of the pictures themselves.
        median: Mean distance (L1) of scramble(x) from the best answer for this very x: the median over other keys.
        constant: From the best picture that is the same for all x.
        gray: From plain gray.
        itself: From x.
    """

    spread: float
    spread_x: float
    median: float
    constant: float
    gray: float
    itself: float


def gray(pictures: Tensor, block: int, keys: int, seed: int = 0) -> Gray:
    """How well scramble(x) can be answered without its key: what the semantic loss can teach in the scope ``image``.

    Args:
        pictures: ``(n, c, s, s)`` in [-1, 1].
        block: Side of the cipher's blocks in pixels.
        keys: Random keys; half are answered from, the other half are asked about.
        seed: Of the keys.
    """
    made = torch.stack([Cipher(_secret(seed, number), block).scramble(pictures) for number in range(keys)])
    seen, asked = made[: keys // 2], made[keys // 2 :]
    # The median of an even number, half way between the two in the middle, as L1 has it.
    best, common = (torch.quantile(some, 0.5, dim=0) for some in (seen, seen.flatten(0, 1)))
    return Gray(
        float(made.mean(dim=0).flatten(1).std(dim=1).mean()),
        float(pictures.flatten(1).std(dim=1).mean()),
        float((asked - best).abs().mean()),
        float((asked - common).abs().mean()),
        float(asked.abs().mean()),
        float((asked - pictures).abs().mean()),
    )


def _gray_table() -> str:
    pictures = to_unit(torch.from_numpy(resized(load_image_set("digits", None, "test").images[:100], 32)))
    head = [
        "block",
        "keys",
        "spread of the mean over keys",
        "of x",
        "L1: best answer for x",
        "best constant",
        "gray",
        "x",
    ]
    lines = [head, ["---"] * len(head)]
    for block, keys in GRAY:
        found = gray(pictures, block, keys)
        lines.append([str(block), str(keys), *(f"{value:.3f}" for value in asdict(found).values())])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _said(cell: dict[str, Any], attack: str, rung: str = REAL) -> str:
    """An attack's own figure with interval and chance, bold where it *leaks*; ``-`` where it was not asked."""
    lines = [x for x in cell["findings"] + cell["own"] if x["attack"] == attack and x["rung"].startswith(rung)]
    if not lines:
        return "-"
    line = lines[0]
    said = f"{line['value']:.1f} ({line['low']:.1f} to {line['high']:.1f}; {line['chance']:.1f})"
    if line not in cell["findings"]:
        return said
    of_attack = [AuditFinding(**x) for x in cell["findings"] if x["attack"] == attack]
    return f"**{said}**" if verdict(of_attack).kind == "leaks" else said


def _first(*texts: str) -> str:
    return next((text for text in texts if text != "-"), "-")


def parts_table(cells: list[dict[str, Any]]) -> str:
    """What each shared part gives away."""
    attacks = [
        "label counts",
        "pictures from updates",
        "membership by loss",
        "membership with shadow federations (LiRA)",
        "membership from prediction vectors",
        "membership behind the share",
        "membership behind the share, by the server",
        "key out of the generator",
        "linking of messages",
    ]
    head = ["shared", "seed", "accuracy %", "MB up", *attacks]
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        sent = cell["bytes_up_per_client_round"] / 1e6
        said = [_said(cell, attack) for attack in attacks]
        lines.append([cell["name"], str(cell["seed"]), f"{cell['accuracy']['mean']:.1f}", f"{sent:.1f}", *said])
    return _markdown(lines)


def _remedy(cell: dict[str, Any]) -> list[str]:
    return ["nothing" if cell["name"] == "G" else cell["name"], str(cell["seed"])]


def price_table(cells: list[dict[str, Any]]) -> str:
    """What each remedy costs."""
    head = ["PPIDSG with", "seed", "accuracy %", "by client", "epsilon of a client", "semantic loss", "probe on G(x) %"]
    head += ["L1 to scramble(x)", "movement", "played"]
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        accuracy, losses, made, movement = cell["accuracy"], cell["losses"], cell["generator"], cell["movement"]
        line = [*_remedy(cell), f"{accuracy['mean']:.1f}", f"{accuracy['min']:.0f} to {accuracy['max']:.0f}"]
        line.append(f"{losses['epsilon']:.3g}" if "epsilon" in losses else "none")
        line.append(f"{losses['semantic']:.2f}" if "semantic" in losses else "-")
        line += [f"{made['probe']:.1f}", f"{made['l1']:.2f}"]
        line.append(f"{movement['median']:.1f} ({movement['min']:.1f} to {movement['max']:.1f})")
        lines.append([*line, cell["date"]])
    return _markdown(lines)


def remedies_table(cells: list[dict[str, Any]]) -> str:
    """What each remedy buys."""
    head = ["PPIDSG with", "seed", "key out of the released G", "sender's key out of its own G"]
    head += ["members, by another client", "members, by the server", "one leaked pair", "16 leaked pairs", "jigsaw"]
    head += ["G(x) turned back, dB", "linked"]
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        # With keys of clients that attack asks each client's own generator, as the next column does.
        common = cell["config"]["options"]["ppidsg"].get("scope", "federation") != "client"
        line = [*_remedy(cell), _said(cell, "key out of the generator") if common else "-", _said(cell, "own key")]
        line += [_said(cell, f"membership behind the share{whose}") for whose in ("", ", by the server")]
        for rung in ("1 leaked", "16 leaked"):
            line.append(
                _first(*(_said(cell, f"{whose}key from leaked pairs", rung) for whose in ("", "one client's ")))
            )
        line.append(_jigsaw_said(cell))
        line.append(_said(cell, "pictures from generated ones", "G(x) of clients"))
        line.append(_said(cell, "linking of messages"))
        lines.append(line)
    return _markdown(lines)


def _jigsaw_said(cell: dict[str, Any]) -> str:
    for line in cell["findings"] + cell["own"]:
        if "scrambled pictures alone" in line["attack"] and ": jigsaw" in line["rung"]:
            return _said(cell, line["attack"], line["rung"])
    return _said(cell, "one picture's jigsaw")


def finished(cells: list[Cell], results: Path) -> list[dict[str, Any]]:
    """The JSONs that are there, in the grid's order."""
    paths = [results / f"{cell.key}.json" for cell in cells]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist; without, digits only")
    parser.add_argument("--budget", type=float, default=60, help="minutes in which new cells are started (default: 60)")
    parser.add_argument("--only", default="", help="only cells whose name holds this")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the grid (default: 3)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the finished cells")
    parser.add_argument("--print", action="store_true", help="print the tables of the finished cells, play nothing")
    parser.add_argument("--gray", action="store_true", help="print what is left of a picture without its key, and end")
    args = parser.parse_args()
    if args.gray:
        console.print(_gray_table(), markup=False, soft_wrap=True, highlight=False)
        return
    cells = [cell for cell in grid(args.seeds, args.print or args.data is not None) if args.only in cell.key]
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * args.budget
    for cell in [] if args.print else cells:
        path = args.results / f"{cell.key}.json"
        if path.exists() or time.monotonic() > until:
            continue
        say(f"[bold]{cell.key}[/bold]")
        try:
            found = play_cell(cell, args.data)
        except RunError as problem:
            # Another process plays this cell.
            say(str(problem))
            continue
        args.results.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    made = finished(cells, args.results)
    for data in dict.fromkeys(cell["data"] for cell in made):
        remedies = ["G", *REMEDIES, *LARGER]
        for names, table in ((list(PARTS), parts_table), (remedies, price_table), (remedies, remedies_table)):
            rows = [cell for cell in made if cell["data"] == data and cell["name"] in names]
            rows.sort(key=lambda cell: (names.index(cell["name"]), cell["seed"]))
            # Of larger blocks G alone is there: nothing to compare it with.
            if len({cell["name"] for cell in rows}) > 1:
                console.print(f"{data}\n\n{table(rows)}\n", markup=False, soft_wrap=True, highlight=False)
    say(f"{len(made)} of {len(cells)} cells are finished")


if __name__ == "__main__":
    main()
