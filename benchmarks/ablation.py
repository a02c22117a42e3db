"""What each part of SHT is worth: a grid of cells, one small training each, scored on people that none saw.

    python benchmarks/ablation.py --data DIR --budget 60     # trains missing cells for an hour, most telling first
    python benchmarks/ablation.py --print                    # tables from the committed cells, and the coverage

``--data`` is a folder in the ``ytf68`` layout. Every cell has the same small network, faces, augmentation, optimiser,
moving average and number of steps, but for what its name says. A finished cell is one JSON in
``benchmarks/results/ablation/``: config, seed, seconds, machine, date, and the NME and PSNR of every face of ``val``,
so that intervals of differences can be taken over people, face by face. A cell that is cut off goes on from its
checkpoint (``runs/ablation/<cell>``). Cells run on one core each: start the command once per core, and they share the
grid out among them; ``--only`` picks cells by a part of their names.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from veilmark.faces.datasets import load_faces
from veilmark.landmarks.metrics import ImageMetrics, psnr
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.devices import choose_device
from veilmark.run.folder import RunError, RunFolder, write_text
from veilmark.run.progress import say
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict
from veilmark.sht.pretrained import load_dhln
from veilmark.sht.protocol import ReferenceFaces, bicubic, prepare_faces, score_points
from veilmark.sht.recipes import resolve_recipe

RESULTS = Path(__file__).parent / "results" / "ablation"
RUNS = Path("runs/ablation")
SIZES = (16, 32, 64, 128)
EPOCHS = 8
"""Passes over all labelled training faces; cells with fewer labels pass over them more often, to the same steps."""
LONG = 4
"""The long grid takes this many times the steps: at the short budget heatmaps only still gain half a percent
from twice the steps, and a budget that short hides what labels are worth."""

BASE: dict[str, Any] = {
    "kind": "dhln",
    "data": {"layout": "ytf68", "train": "train", "select": "select"},
    "network": {"structure_widths": [32, 48, 64], "detail_widths": [32, 48], "painter_width": 16},
    "samples": {"no_face": 0.04, "augmentation": {"rotation": 7, "colour": 0.6, "cover": 0.1}},
    "losses": {"face_level": 34},
    "schedule": {
        "epochs": EPOCHS,
        "batch": 16,
        "lr": 0.0025,
        "ema": 0.998,
        "threads": 1,
        "validate_epochs": 1000,
        "precision": "32-true",
    },
}

HEATMAPS = {"network.detail": False}
HALLUCINATION = {"network.heatmap_guidance": False, "network.detail_guidance": False}
HEATMAP_GUIDANCE = {"network.detail_guidance": False}
DETAIL_GUIDANCE: dict[str, Any] = {}
SUPER_RESOLUTION = {
    **HALLUCINATION,
    "losses.points": 0.0,
    "losses.heatmaps": 0.0,
    "network.structure_widths": [16, 16, 16],
    "network.detail_widths": [64, 96],
}
"""Only the detail stream learns, and it gets the parameters that the landmarks' part has elsewhere."""
JOINT = {
    "kind": "sht",
    "schedule.epochs": EPOCHS // 2,
    "joint_schedule": {**BASE["schedule"], "epochs": EPOCHS // 2, "lr": 0.0015},
    "fptn": {"channels": 32, "painter_width": 16},
}
TEACHER = {**JOINT, "joint.teacher": 0.5}
ONE_COSINE = {
    **JOINT,
    "schedule.span": [0.0, 0.5],
    "joint_schedule": {**JOINT["joint_schedule"], "lr": BASE["schedule"]["lr"], "span": [0.5, 1.0]},
}
"""Both stages walk one cosine, as cells without a joint stage do: equal schedules, not only equal steps."""
WHOLE = {**ONE_COSINE, "joint.teacher": 0.5}
"""The whole of SHT in the tables of few and of imprecise labels."""


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        table: The table it belongs to first.
        name: Its name, unique.
        changes: What differs from ``BASE``, by dotted path.
        seed: The seed.
        chain: Trains nothing: the first of these cells hallucinates, the second, which was never shown such faces,
            finds the landmarks.
    """

    table: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    chain: tuple[Cell, Cell] | None = None

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.table}-{self.name}-s{self.seed}".replace(" ", "_").replace("%", "pc").replace("+", "plus")

    @property
    def weights(self) -> Path:
        """Where its weights are once it is trained."""
        return RUNS / self.key / "weights"

    def config(self) -> dict[str, Any]:
        """The whole config."""
        values: dict[str, Any] = json.loads(json.dumps(BASE))
        for path, value in self.changes.items():
            place = values
            *sections, last = path.split(".")
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        values["seed"] = self.seed
        return values


BATCHES = 192
"""Whole batches in an epoch of all 3,073 labelled faces; what is left of the last one is left out of the epoch."""
BATCHES_OF_A_TENTH = 18
"""The same for the 301 faces of a tenth of the people."""


def few(share: float, changes: dict[str, Any], batches: float | None = None) -> dict[str, Any]:
    """The changes for a share of labelled people, at the same number of steps.

    The cells of the short grid were run without ``batches`` and are 4 to 17 % short of these steps, since small
    sets lose more to whole batches.
    """
    longer = 1 / share if batches is None else BATCHES / batches
    scaled = {**changes, "data.labelled_people": share, "schedule.epochs": round(EPOCHS * longer)}
    if changes.get("kind") == "sht":
        scaled["schedule.epochs"] = round(EPOCHS // 2 * longer)
        scaled["joint_schedule"] = {**changes["joint_schedule"], "epochs": round(EPOCHS // 2 * longer)}
    return scaled


def longer(changes: dict[str, Any], times: int = LONG) -> dict[str, Any]:
    """The same changes with more steps."""
    scaled = {**changes, "schedule.epochs": times * changes.get("schedule.epochs", EPOCHS)}
    if "joint_schedule" in changes:
        joint = changes["joint_schedule"]
        scaled["joint_schedule"] = {**joint, "epochs": times * joint["epochs"]}
    return scaled


def long_grid(seed: int) -> list[Cell]:
    """The cells that carry the questions, at a budget where heatmaps only gain little more.

    Written down on 2026-11-24, after the control *heatmaps twice* had come out and before any of these was run.
    """
    noisy = {"samples.label_jitter": 4.0}
    cells = {
        "heatmaps": HEATMAPS,
        "detail guidance": DETAIL_GUIDANCE,
        "transfer": ONE_COSINE,
        "transfer and teacher": WHOLE,
        "10% labelled": few(0.1, DETAIL_GUIDANCE, BATCHES_OF_A_TENTH),
        "10% and unlabelled": few(0.1, WHOLE, BATCHES_OF_A_TENTH),
        "4 px heatmaps": {**HEATMAPS, **noisy},
        "4 px SHT": {**WHOLE, **noisy},
        "hallucination": HALLUCINATION,
        "heatmap guidance": HEATMAP_GUIDANCE,
    }
    return [Cell("long", name, longer(changes), seed) for name, changes in cells.items()]


def grid(seeds: int = 3) -> list[Cell]:
    """All cells, the most telling first; further seeds come last."""
    cells: list[Cell] = []
    for seed in range(seeds):
        alone = Cell("mutual", "heatmaps", HEATMAPS, seed)
        enlarger = Cell("hallucination", "super-resolution", SUPER_RESOLUTION, seed)
        cells += [
            alone,
            Cell("mutual", "hallucination", HALLUCINATION, seed),
            Cell("mutual", "heatmap guidance", HEATMAP_GUIDANCE, seed),
            Cell("mutual", "detail guidance", DETAIL_GUIDANCE, seed),
            Cell("mutual", "transfer", JOINT, seed),
            Cell("mutual", "transfer and teacher", TEACHER, seed),
            Cell("few", "10% labelled", few(0.1, DETAIL_GUIDANCE), seed),
            Cell("few", "10% and unlabelled", few(0.1, WHOLE), seed),
            Cell("jitter", "4 px heatmaps", {**HEATMAPS, "samples.label_jitter": 4.0}, seed),
            Cell("jitter", "4 px SHT", {**WHOLE, "samples.label_jitter": 4.0}, seed),
            Cell("budget", "heatmaps twice", {**HEATMAPS, "schedule.epochs": 2 * EPOCHS}, seed),
            enlarger,
            Cell("hallucination", "super-resolve, then detect", seed=seed, chain=(enlarger, alone)),
            Cell("few", "5% labelled", few(0.05, DETAIL_GUIDANCE), seed),
            Cell("few", "5% and unlabelled", few(0.05, WHOLE), seed),
            Cell("few", "25% labelled", few(0.25, DETAIL_GUIDANCE), seed),
            Cell("few", "25% and unlabelled", few(0.25, WHOLE), seed),
        ]
        # Repairs, written down after the first table showed that detail guidance costs hallucination 0.1 dB.
        cells += [
            Cell("repair", "face weight 0.3", {"losses.face": 0.3}, seed),
            Cell("repair", "face weight 0.3, nothing exchanged", {**HALLUCINATION, "losses.face": 0.3}, seed),
            Cell("repair", "three stages", {"network.stages": 3}, seed),
            # Written down after transfer came out worse: is it the pairs, or the learning rate that starts twice?
            Cell(
                "repair",
                "two cosines, pairs of no weight",
                {**JOINT, "joint": {"transfer": 0.0, "adversarial": 0.0, "hallucination": 0.0}},
                seed,
            ),
            Cell(
                "repair",
                "transfer in the last quarter",
                {
                    **JOINT,
                    "schedule.epochs": 6,
                    "joint_schedule": {**JOINT["joint_schedule"], "epochs": 2, "lr": 0.0008},
                },
                seed,
            ),
            # Written down before any joint cell of few or imprecise labels was run, which use the latter.
            Cell("repair", "one cosine", ONE_COSINE, seed),
            Cell("repair", "one cosine and teacher", WHOLE, seed),
        ]
        for pixels in (1.0, 2.0):
            cells += [
                Cell("jitter", f"{pixels:g} px heatmaps", {**HEATMAPS, "samples.label_jitter": pixels}, seed),
                Cell("jitter", f"{pixels:g} px SHT", {**WHOLE, "samples.label_jitter": pixels}, seed),
            ]
        for stride in (4, 2, 1):
            large = {"samples.sizes": [128, 128], "network.map_stride": stride}
            cells += [
                Cell("stride", f"{stride} heatmaps", {**HEATMAPS, **large}, seed),
                Cell("stride", f"{stride} hallucinated features", large, seed),
            ]
        cells += long_grid(seed)
    return cells


def machine() -> str:
    """The GPU, or the processor and how many of its cores were busy: seconds mean little without."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, shared by several cells"
    model = platform.processor() or platform.machine()
    for line in (
        Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    ):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, 1 of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def score(model: DHLN, reference: ReferenceFaces, enlarger: DHLN | None = None) -> dict[str, Any]:
    """NME and PSNR of every face by size, mirrored looks averaged; SSIM as means.

    With an ``enlarger``, the model is shown that one's hallucinated faces in place of the small ones.
    """
    scheme = get_scheme(model.scheme)
    rows: dict[str, Any] = {}
    painter = model if enlarger is None else enlarger
    for size in SIZES:
        small = reference.shrunk(size)
        painted = None
        if painter.detail is not None and size < model.size:
            painted = predict(painter, small, hallucinate=True)
        if enlarger is None and painted is not None:
            said = painted
        else:
            said = predict(model, small if painted is None or painted.faces is None else painted.faces)
        row: dict[str, Any] = {"nme": [round(float(v), 4) for v in score_points(said, reference, scheme).nmes]}
        if painted is not None and painted.faces is not None:
            plain = bicubic(small, model.size)
            row["psnr"] = [round(psnr(a, b), 3) for a, b in zip(painted.faces, reference.crops, strict=True)]
            row["bicubic"] = [round(psnr(a, b), 3) for a, b in zip(plain, reference.crops, strict=True)]
            some = slice(0, None, 4)
            for name, faces in (("ssim", painted.faces), ("bicubic_ssim", plain)):
                metrics = ImageMetrics()
                metrics.update(faces[some], reference.crops[some])
                row[name] = round(metrics.compute()["ssim_rgb"], 4)
        rows[str(size)] = row
    return rows


def write_result(cell: Cell, result: dict[str, Any]) -> None:
    """Writes a finished cell and says its means."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{cell.key}.json", json.dumps(result))
    means = {size: round(float(np.mean(row["nme"])), 2) for size, row in result["sizes"].items()}
    say(f"{cell.key}: NME on val {means}, {result['seconds'] / 60:.1f} min")


def run_cell(cell: Cell, data: Path, cache: Path, reference: ReferenceFaces) -> None:
    """Trains, scores and writes one cell.

    Raises:
        RunError: If another process is training it.
    """
    torch.set_num_threads(1)
    if cell.chain is not None:
        enlarger, detector = (load_dhln(part.weights).to(choose_device("auto")) for part in cell.chain)
        result = {
            "table": cell.table,
            "name": cell.name,
            "seed": cell.seed,
            "chain": [part.key for part in cell.chain],
            "seconds": 0.0,
            "date": datetime.date.today().isoformat(),
            "names": reference.names,
            "people": reference.people,
            "sizes": score(detector, reference, enlarger),
        }
        write_result(cell, result)
        return
    config, train = resolve_recipe(cell.config(), cell.key)
    run = RunFolder(RUNS / cell.key)
    with run.hold():
        began = time.process_time()
        trained = train(config, data, run, cache, (run.path / "config.yaml").exists())
        cpu = time.process_time() - began
    model = load_dhln(trained.weights)
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    result = {
        "table": cell.table,
        "name": cell.name,
        "seed": cell.seed,
        "config": config.model_dump(mode="json"),
        "parameters": summary["parameters"],
        "labelled_faces": summary["faces"],
        "labelled_people": summary["people"],
        "unlabelled": summary.get("unlabelled"),
        "drift": summary.get("drift"),
        "seconds": summary["seconds"],
        "cpu_seconds_of_the_last_sitting": round(cpu, 1),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "names": reference.names,
        "people": reference.people,
        "sizes": score(model.to(choose_device("auto")), reference),
    }
    write_result(cell, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in the ytf68 layout")
    parser.add_argument("--budget", type=float, default=60, help="minutes in which new cells are begun (default: 60)")
    parser.add_argument("--only", default="", help="only cells whose name holds this")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the grid (default: 3)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/veilmark"))
    parser.add_argument("--print", action="store_true", help="print the tables of the finished cells, train nothing")
    args = parser.parse_args()
    cells = [cell for cell in grid(args.seeds) if args.only in cell.key]
    if args.print or args.data is None:
        import ablation_tables

        ablation_tables.print_tables(cells)
        return
    reference = ReferenceFaces.from_cache(
        prepare_faces(load_faces("ytf68", args.data, "val").labelled, args.cache, "val"), 128
    )
    began = time.monotonic()
    for cell in cells:
        if (RESULTS / f"{cell.key}.json").exists():
            continue
        if time.monotonic() - began > 60 * args.budget:
            break
        if cell.chain is not None and not all(part.weights.exists() for part in cell.chain):
            say(f"{cell.key} needs the weights of {' and '.join(part.key for part in cell.chain)} in {RUNS}; left out")
            continue
        try:
            run_cell(cell, args.data, args.cache, reference)
        except RunError as error:
            say(f"{cell.key}: {error}; going on with the next cell")
    done = sum((RESULTS / f"{cell.key}.json").exists() for cell in cells)
    say(f"{done} of {len(cells)} cells are finished")


if __name__ == "__main__":
    main()
