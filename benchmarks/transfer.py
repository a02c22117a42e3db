"""The figure of pose transfer: PSNR and SSIM against the real B, beside what needs no network.

    python benchmarks/transfer.py --data DIR                 # measures, prints, writes the JSON
    python benchmarks/transfer.py --print                    # prints the JSON's tables

``--data`` is a folder in the ``ytf68`` layout; the pairs are ordered pairs of frames of one person whose yaws differ
by more than 20 degrees, at most 20 a person: of one video (light and background are alike), and of any video. Every
method is given the same face of A and the same landmarks, both by DHLN from faces of the row's size; at 128 px the
face of A is the real one.
"""

from __future__ import annotations

import argparse
import datetime
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from veilmark.faces.datasets import load_faces
from veilmark.run.folder import write_json
from veilmark.sht.inference import predict
from veilmark.sht.pretrained import load_dhln, load_fptn
from veilmark.sht.protocol import ReferenceFaces, prepare_faces
from veilmark.sht.transfer import paint_transfer
from veilmark.sht.transfer_scoring import TransferPairs, score_transfer

RESULT = Path(__file__).parent / "results" / "transfer.json"

console = Console(highlight=False, soft_wrap=True, width=200)


def measure(data: Path, split: str, sizes: list[int], weights: str, transfer: str, cache: Path) -> list[dict[str, Any]]:
    """One row per kind of pair, size and method."""
    faces = load_faces("ytf68", data, split)
    reference = ReferenceFaces.from_cache(prepare_faces(faces.labelled, cache, split), 128)
    videos = {face.name: face.video for face in faces.labelled}
    detector, painter = load_dhln(weights), load_fptn(transfer)
    rows = []
    for size in sizes:
        said = predict(detector, reference.shrunk(size), hallucinate=True)
        given = reference.crops if size == painter.size else said.faces
        for kind in ("one video", "one person"):
            named = [videos[name] for name in reference.names] if kind == "one video" else None
            pairs = TransferPairs.from_reference(reference, named)
            found = score_transfer(partial(paint_transfer, painter), pairs, reference, said.points, given)
            rows += [{"split": split, "pairs_of": kind, "size": size, **row} for row in found]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as a Markdown table."""
    console.print(
        "| faces | pairs of | A and B given at | method | pairs (people) | PSNR dB (95 %) | SSIM | PSNR in hull |"
    )
    console.print("|" + " --- |" * 8)
    for row in rows:
        low, high = row["psnr_interval95"]
        place = f"| {row['split']} | {row['pairs_of']} | {row['size']} px | {row['method']} "
        figures = f"{row['psnr']:.2f} ({low:.2f} to {high:.2f}) | {row['ssim']:.3f} | {row['psnr_hull']:.2f} |"
        console.print(f"{place}| {row['pairs']} ({row['people']}) | {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder in the ytf68 layout")
    parser.add_argument("--splits", default="report,val", help="splits, with commas")
    parser.add_argument("--sizes", default="16,128", help="sizes of A and B in pixels, with commas")
    parser.add_argument("--weights", default="dhln-ytf68", help="weights of DHLN")
    parser.add_argument("--transfer-weights", default="fptn-ytf68", help="weights of FPTN")
    parser.add_argument("--cache", type=Path, default=Path(".cache/veilmark"))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--print", action="store_true", help="print the stored figures, measure nothing")
    args = parser.parse_args()
    if not args.print and args.data is not None:
        torch.set_num_threads(1)
        rows = []
        for split in args.splits.split(","):
            sizes = [int(size) for size in args.sizes.split(",")]
            rows += measure(args.data, split, sizes, args.weights, args.transfer_weights, args.cache)
        write_json(args.out, {"date": datetime.date.today().isoformat(), "rows": rows})
    stored = json.loads(args.out.read_text(encoding="utf-8"))
    console.print(f"{stored['date']}, intervals over people")
    show(stored["rows"])


if __name__ == "__main__":
    main()
