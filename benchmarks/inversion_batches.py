"""Which pictures can be seen in one step of training? By batch size: 1, 2, 4 and 8 pictures a step.

    python benchmarks/inversion_batches.py                      # digits, which come with the package
    python benchmarks/inversion_batches.py --data DIR           # the folders mnist and cifar10 of DIR as well
    python benchmarks/inversion_batches.py --print              # tables from the committed figures
    python benchmarks/inversion_batches.py --sheet FILE         # digits anew, and a picture of what was found

Each cell: federations of 2 clients x 16 pictures, one round of one step (``training.local_steps: 1``, ``training.batch:
n``), recorded and attacked as ``veilmark audit`` would, by gradient inversion (of PPIDSG: of its generator) and by
pictures from updates; and, on the same gradient of a classifier, by what the papers had: DLG, which finds labels too,
iDLG, with labels read from the last layer's bias as the audit reads them, and cosine distance with total variation.
These know no public pictures. Of batches of 1 there are 4 federations, of 2 there are 2, so that each cell has 8
pictures or more. A found picture is scored by PSNR and SSIM against the picture of the batch that it is matched with:
all of a batch at once by searches; pictures from updates finds one picture a message, which is scored against the
nearest of the batch. Chance is what the best of the public pictures scores in its place. Intervals: 95 %, of fewer than
20 pictures Student's, else by bootstrap (of messages, for pictures from updates); pictures of one batch are not
independent. Compressed updates (gc) are made whole before they are attacked: what did not travel counts as no change.
Finished cells stand in ``benchmarks/results/inversion_batches.json`` and are skipped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veilmark.audit import feature_inversion, inversion_ladder
from veilmark.audit.attack import Scene, Truth, mean_interval
from veilmark.audit.feature_inversion import PicturesFromHead
from veilmark.audit.gradient_inversion import Likeness, cosine_inversion, dlg, likeness, psnr
from veilmark.audit.inversion_ladder import CLIENTS, InversionOfClassifier, InversionOfGenerator
from veilmark.audit.inversion_search import compact_gradient
from veilmark.audit.record import network_of, read_record
from veilmark.audit.waves import Waves
from veilmark.federation.config import FederationConfig
from veilmark.federation.runs import run_federation
from veilmark.federation.samples import SHOWN, write_sheet
from veilmark.federation.tasks.classify import load_classify
from veilmark.ppidsg.client_training import to_bytes, to_unit
from veilmark.run.config import override, resolve
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.local_training import batches
from veilmark.run.progress import console, say

RESULTS = Path(__file__).parent / "results" / "inversion_batches.json"

PROTOCOL: dict[str, Any] = {"clients": 2, "rounds": 1, "training": {"local_steps": 1}, "record": ["first"]}
DATA: dict[str, Any] = {"per_client": 16}
PUBLIC = {"digits": 300, "mnist": 400, "cifar10": 400}
"""Public pictures, of the test split. Searches go along components of the first half, 200 at most."""
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("none", ()),
    "gc": ("gc, 10 %", ()),
    "dp": ("dp, epsilon 50", ()),
    "ppidsg": ("ppidsg, repaired", ("options.ppidsg.generator_lr=0.001", "options.ppidsg.extractor=fixed")),
}
"""Their names in tables, and what they set."""
DLG_STEPS = 20
"""Of L-BFGS, some 20 evaluations each, from one start."""
COSINE_STEPS = 400
FEDERATIONS = {1: 4, 2: 2, 4: 1, 8: 1}
"""Federations of a cell, by batch size."""
MEASURES = ("psnr", "ssim")


@dataclass(frozen=True)
class Cell:
    """Federations of one batch size, attacked.

    Attributes:
        data: A folder of ``--data``, or digits.
        method: A key of ``METHODS``.
        batch: Pictures of the one step.
    """

    data: str
    method: str
    batch: int

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.data}-{self.method}-{self.batch}"

    def config(self, seed: int) -> FederationConfig:
        """One of its federations."""
        data = DATA | {"layout": self.data, "test": PUBLIC[self.data]}
        settings = [f"method={self.method}", f"training.batch={self.batch}", *METHODS[self.method][1]]
        return resolve(FederationConfig, override(PROTOCOL | {"data": data, "seed": seed}, settings), self.key)


def grid() -> list[Cell]:
    """Every cell, most telling first."""
    plain = [Cell(data, "none", batch) for data in ("digits", "mnist", "cifar10") for batch in FEDERATIONS]
    return plain + [Cell("mnist", method, batch) for method in ("ppidsg", "gc", "dp") for batch in FEDERATIONS]


def nearest(made: Tensor, true: Tensor, strangers: Tensor) -> tuple[int, Likeness]:
    """Scores one picture that stands for a whole batch.

    Args:
        made: ``(1, c, s, s)`` in [-1, 1].
        true: ``(n, c, s, s)``: the batch.
        strangers: ``(m, c, s, s)``: the one of them that is nearest to any picture of the batch is chance.

    Returns:
        Which picture of the batch is nearest, and the scores: of one picture.
    """
    row = int(psnr(made.expand_as(true), true).argmax())
    said = likeness(made, true[row : row + 1], strangers)
    chances = [likeness(made, one[None], strangers) for one in true]
    return row, replace(
        said,
        chance_psnr=[max(some.chance_psnr[0] for some in chances)],
        chance_ssim=[max(some.chance_ssim[0] for some in chances)],
    )


def attacked(config: FederationConfig, folder: Path | None) -> dict[str, list[tuple[Tensor, Tensor, Likeness]]]:
    """Plays a federation and attacks it.

    Args:
        config: The federation.
        folder: Of its data; None for bundled ones.

    Returns:
        By attack and message: true pictures ``(n, c, s, s)``, what was made of them in the same order, and scores.
    """
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(Path(place) / "run")
        with run.hold():
            run_federation(config, folder, run, secrets=Path(place) / "secrets")
        record = read_record(run.path / "transcript")
    task, owners, _, _ = load_classify(config.data, folder, config.clients, config.seed)
    scene = Scene(record, task.test, Truth(owners), config.seed)
    strangers = to_unit(task.test.inputs)
    stepped = {
        client: to_unit(own.inputs[batches(len(own), config.training, config.seed, client, 0)[0]])
        for client, own in enumerate(owners)
    }
    attacks: list[InversionOfClassifier | InversionOfGenerator] = [InversionOfClassifier(), InversionOfGenerator()]
    found: dict[str, list[tuple[Tensor, Tensor, Likeness]]] = {}
    for attack in attacks:
        made_by = {} if attack.obstacle(record) else {attack.name: attack.run(scene, record, CLIENTS)}
        if made_by and isinstance(attack, InversionOfClassifier):
            made_by |= papers(scene, attack)
        for name, made_of in made_by.items():
            for client, made in made_of.items():
                said = likeness(made, stepped[client], strangers)
                found.setdefault(name, []).append((stepped[client], made[said.order], said))
    decoder, decoded = PicturesFromHead(), []
    if decoder.obstacle(record):
        return found
    for (_, client), made in decoder.run(scene, record, decoder.decoders(scene)).items():
        row, said = nearest(made, stepped[client], strangers)
        decoded.append((stepped[client][row : row + 1], made, said))
    return {**found, PicturesFromHead.name: decoded}


def papers(scene: Scene, attack: InversionOfClassifier) -> dict[str, dict[int, Tensor]]:
    """What DLG, iDLG and the cosine attack make of the messages of a classifier, without public pictures.

    Args:
        scene: What the attacker has.
        attack: Reads gradients and labels off.

    Returns:
        Pictures ``(n, c, s, s)`` by attack and client.
    """
    record, task = scene.record, scene.record.task
    network = network_of(record, record.rounds[0].broadcast)
    made: dict[str, dict[int, Tensor]] = {"DLG": {}, "iDLG": {}, "cosine and total variation": {}}
    for client, (seen, labels) in attack.read(scene, record, CLIENTS).items():
        gradient, aim = compact_gradient(network, seen)
        shape = (len(labels), task.channels, task.side, task.side)
        for name, known in (("DLG", None), ("iDLG", labels)):
            # Found labels have no order; nor have pictures, which are matched.
            by_lbfgs = dlg(
                gradient, aim, shape, len(task.classes), known, steps=DLG_STEPS, restarts=1, seed=scene.seed + client
            )
            made[name][client] = by_lbfgs.pictures
        waves = Waves(task.side, task.side)
        by_cosine = cosine_inversion(
            gradient, aim, shape, labels, len(task.classes), steps=COSINE_STEPS, waves=waves, seed=scene.seed + client
        )
        made["cosine and total variation"][client] = by_cosine.pictures
    return made


def figures(said: list[Likeness]) -> dict[str, Any]:
    """Means with their intervals, over all pictures: of each measure, of chance, and of the gain over chance."""
    found: dict[str, Any] = {"pictures": sum(len(some.psnr) for some in said)}
    for measure in MEASURES:
        values = [value for some in said for value in getattr(some, measure)]
        chances = [value for some in said for value in getattr(some, f"chance_{measure}")]
        found[measure] = mean_interval(values, 0)
        found[f"chance_{measure}"] = mean_interval(chances, 0)
        found[f"gain_{measure}"] = mean_interval([a - b for a, b in zip(values, chances, strict=True)], 0)
    return found


def play_cell(cell: Cell, folder: Path | None) -> tuple[dict[str, Any], Tensor, Tensor]:
    """All federations of a cell.

    Args:
        cell: The cell.
        folder: Of its data; None for bundled ones.

    Returns:
        What the JSON holds of it; true pictures, and what the audit's search made of them.
    """
    began = time.process_time()
    messages: dict[str, list[tuple[Tensor, Tensor, Likeness]]] = {}
    for seed in range(FEDERATIONS[cell.batch]):
        for attack, found in attacked(cell.config(seed), folder).items():
            messages.setdefault(attack, []).extend(found)
    # The audit's own search, which comes first.
    shown = next(iter(messages.values()))
    said = {
        "data": cell.data,
        "method": cell.method,
        "batch": cell.batch,
        "config": cell.config(0).model_dump(mode="json"),
        "federations": FEDERATIONS[cell.batch],
        "steps": {
            "search": inversion_ladder.STEPS,
            "search of a generator": inversion_ladder.GENERATOR_STEPS,
            "decoder": feature_inversion.DECODER_STEPS,
            "DLG, iDLG": DLG_STEPS,
            "cosine": COSINE_STEPS,
        },
        "attacks": {attack: figures([one[2] for one in found]) for attack, found in messages.items()},
        "cpu_seconds": time.process_time() - began,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
    }
    return said, torch.cat([one[0] for one in shown]), torch.cat([one[1] for one in shown])


def table(found: dict[str, Any]) -> str:
    """A Markdown table of the finished cells.

    Args:
        found: What the JSON holds: cells by key.
    """
    head = ["data", "method", "batch", "attack", "pictures", "PSNR, dB (95 %)", "chance", "gain (95 %)"]
    head += ["SSIM (95 %)", "chance", "gain (95 %)"]
    lines = [head, ["---"] * len(head)]
    for cell in (found[one.key] for one in grid() if one.key in found):
        for attack, said in cell["attacks"].items():
            values = []
            for measure, digits in (("psnr", 1), ("ssim", 2)):
                means, gains = ([f"{some:.{digits}f}" for some in said[name]] for name in (measure, f"gain_{measure}"))
                value, gain = ("{} ({} to {})".format(*some) for some in (means, gains))
                above = said[f"gain_{measure}"][1] > 0
                values += [value, f"{said[f'chance_{measure}'][0]:.{digits}f}", f"**{gain}**" if above else gain]
            method = METHODS[cell["method"]][0]
            lines.append([cell["data"], method, str(cell["batch"]), attack, str(said["pictures"]), *values])
    bold = "Gain: over chance, picture by picture; bold where its interval lies above 0.\n\n"
    return bold + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist and cifar10; without it digits alone")
    parser.add_argument("--only", default="", help="only cells whose name holds this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the finished cells")
    parser.add_argument("--sheet", type=Path, help="play the plain cells of digits anew and draw what was found")
    parser.add_argument("--print", action="store_true", help="print the table of the finished cells, play nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.results.read_text(encoding="utf-8")) if args.results.exists() else {}
    rows = []
    for cell in [] if args.print else grid():
        anew = args.sheet is not None and cell.data == "digits"
        bundled = cell.data == "digits"
        if args.only not in cell.key or (cell.key in found and not anew) or (args.data is None and not bundled):
            continue
        say(f"[bold]{cell.key}[/bold]")
        found[cell.key], true, made = play_cell(cell, None if bundled else args.data / cell.data)
        args.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.results, found)
        if anew:
            rows += [to_bytes(true[:SHOWN]), to_bytes(made[:SHOWN])]
    if rows:
        write_sheet(args.sheet, rows)
    console.print(table(found), markup=False, soft_wrap=True, highlight=False)
    say(f"{len(found)} of {len(grid())} cells are finished")


if __name__ == "__main__":
    main()
