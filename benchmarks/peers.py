"""MediaPipe FaceMesh beside Veilmark on faces of 16 to 128 px, under the protocol of docs/peers.md.

    python benchmarks/peers.py --data ytf68               # makes the peer's environment, runs both, writes the JSON
    python benchmarks/peers.py --data ytf68 --reuse-peer  # new weights: ours alone, the peer's points are kept
    python benchmarks/peers.py --print                    # the table of the stored JSON
    python benchmarks/peers.py --draw                     # the chart of the stored JSON

Points and found boxes lie in ``runs/peers/``, under names that follow from what went in; no picture stays there.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray

import veilmark
from peer_mediapipe import PEER, SHOWN, VERTICES, make_environment, run_peer
from peer_tables import draw, table
from veilmark.faces import finders
from veilmark.faces.crop import MARGIN, REFERENCE_SIZE, Crop
from veilmark.faces.datasets import Face, load_faces
from veilmark.faces.degrade import SIZES, shrink
from veilmark.faces.finders import Faces, HaarFinder
from veilmark.faces.images import read_image
from veilmark.landmarks.metrics import LandmarkMetrics, bootstrap_interval
from veilmark.landmarks.schemes import get_scheme
from veilmark.report.plots import write_atomically
from veilmark.run.errors import ConfigError, DataError, VeilmarkError
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.progress import say
from veilmark.run.seeds import rng_for
from veilmark.sht.found import FoundFace, find_small
from veilmark.sht.inference import predict
from veilmark.sht.landmarker import Landmarker
from veilmark.sht.pretrained import DEFAULT_WEIGHTS

Points = NDArray[np.float64]
Pictures = list[NDArray[np.uint8]]

PEER_MARGIN = 2.0
"""Side of the picture that the peer sees, over the longer side of the annotated box."""
TIMED = 64
"""Faces whose time is taken."""
SCHEME = get_scheme("ibug68")


def halves(people: Sequence[str]) -> NDArray[np.int64]:
    """0 or 1 for each face: whether its person is at an even or odd place among the sorted people."""
    _, place = np.unique(np.asarray(people), return_inverse=True)
    return np.asarray(place % 2, dtype=np.int64)


def remove_offsets(predicted: Points, true: Points, half: NDArray[np.int64]) -> Points:
    """Takes one method's annotation style out of its points, two-fold over people.

    The error of a point is turned by the true eye line and divided by the inter-ocular distance. Its mean over
    the found faces of one half is subtracted in the other half.

    Args:
        predicted: ``(n, 68, 2)`` pixels; a face that was not found is NaN.
        true: ``(n, 68, 2)`` in the same pixels.
        half: ``(n,)`` 0 or 1.

    Returns:
        The corrected points, ``(n, 68, 2)``; NaN stays NaN.

    Raises:
        DataError: If a half has no found face.
    """
    first, second = SCHEME.inter_ocular
    along = true[:, second] - true[:, first]
    # Both axes are as long as the inter-ocular distance: one matrix turns and scales.
    frame = np.stack([along, np.stack([-along[:, 1], along[:, 0]], axis=1)], axis=1)
    errors = np.einsum("nij,nkj->nki", frame, predicted - true) / (along**2).sum(axis=1)[:, None, None]
    found = np.isfinite(predicted).all(axis=(1, 2))
    offsets = np.empty_like(true)
    for own in (0, 1):
        others = found & (half != own)
        if not others.any():
            raise DataError("one half of the people has no found face to fit style offsets on; use data of more people")
        offsets[half == own] = errors[others].mean(axis=0)
    return np.asarray(predicted - np.einsum("nij,nki->nkj", frame, offsets))


def score(predicted: Points, true: Points, people: Sequence[str], floor: Points) -> dict[str, Any]:
    """The figures of one method at one size, in percent.

    Args:
        predicted: ``(n, 68, 2)`` pixels; a face that was not found is NaN.
        true: ``(n, 68, 2)`` in the same pixels.
        people: Person of each face.
        floor: ``(n, 68, 2)``, the mean shape that counts for a face that was not found.

    Returns:
        ``n`` faces scored, ``missed``; ``nme``, ``nme_median``, ``fr10`` of the scored ones, style offsets removed;
        ``nme_with_offsets``; ``nme_all`` over all faces, a missed one with the mean shape; ``fr10_all``, a missed
        one a failure; 95 % intervals over people.
    """
    found = np.asarray(np.isfinite(predicted).all(axis=(1, 2)))
    groups = np.asarray(people)
    corrected = remove_offsets(predicted, true, halves(people))
    scored, raw, everyone = (LandmarkMetrics(SCHEME) for _ in range(3))
    scored.update(corrected[found], true[found])
    raw.update(predicted[found], true[found])
    everyone.update(np.where(found[:, None, None], corrected, floor), true)
    missed = int((~found).sum())
    return {
        **{name: scored.compute()[name] for name in ("n", "nme", "nme_median", "fr10")},
        "missed": missed,
        "nme_interval95": bootstrap_interval(scored.nmes, groups[found], rng_for(0, 1)),
        "nme_with_offsets": raw.compute()["nme"],
        "nme_all": everyone.compute()["nme"],
        "nme_all_interval95": bootstrap_interval(everyone.nmes, groups, rng_for(0, 1)),
        "fr10_all": 100 * (int((scored.nmes > 10).sum()) + missed) / len(true),
    }


class NoFinder:
    """Finds nothing, so that every annotated box is jittered."""

    def find(self, image: NDArray[np.uint8]) -> Faces:
        """No faces."""
        return Faces()


def peer_pictures(faces: list[Face], pictures: Pictures, size: int) -> tuple[NDArray[np.uint8], list[Crop]]:
    """What the peer sees: the surroundings of each face at margin 2.0, in which our crop would have ``size`` px."""
    reference, side = (round(px * PEER_MARGIN / MARGIN) for px in (REFERENCE_SIZE, size))
    crops = [Crop.from_box(face.box, PEER_MARGIN, reference) for face in faces]
    return np.stack([shrink(crop.sample(p), side) for crop, p in zip(crops, pictures, strict=True)]), crops


def look_once(landmarker: Landmarker, faces: list[Face], pictures: Pictures, size: int) -> Points:
    """Our points in the annotated box, one look: ``(n, 68, 2)`` picture pixels."""
    crops = [Crop.from_box(face.box, size=REFERENCE_SIZE) for face in faces]
    small = [shrink(crop.sample(picture), size) for crop, picture in zip(crops, pictures, strict=True)]
    seen = predict(landmarker.model, np.stack(small), mirror=landmarker.mirror, batch=landmarker.batch).points
    return np.stack([crop.to_image(own * crop.size) for crop, own in zip(crops, seen, strict=True)])


def look_twice(landmarker: Landmarker, places: list[FoundFace]) -> Points:
    """Our points in small pictures with a box each, two looks: ``(n, 68, 2)`` picture pixels."""
    seen = landmarker.detect([p.image for p in places], [p.box[None] for p in places], refine=True)
    points = [d.landmarks.points[0].astype(np.float64) / p.factor for d, p in zip(seen, places, strict=True)]
    return np.stack(points)


def find_places(landmarker: Landmarker, faces: list[Face], pictures: Pictures, size: int) -> list[FoundFace]:
    """The small pictures, each with the box that the landmarker's finder finds or the jittered one."""
    return [find_small(f, p, size, landmarker, n) for n, (f, p) in enumerate(zip(faces, pictures, strict=True))]


def kept(file: Path, again: bool, make: Callable[[], Points]) -> Points:
    """The array in ``file``; made and written there first if it is missing or wanted ``again``."""
    if again or not file.exists():
        made = make()
        write_atomically(file, lambda out: np.save(out, made))
    return np.asarray(np.load(file, allow_pickle=False))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:16]


def _median_ms(run: Callable[[int], object], count: int) -> dict[str, float]:
    times = []
    for number in range(count):
        wall, processor = time.perf_counter(), time.process_time()
        run(number)
        times.append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)))
    return dict(zip(("wall_ms", "processor_ms"), np.median(times, axis=0).round(2).tolist(), strict=True))


def measure_times(landmarker: Landmarker, faces: list[Face], pictures: Pictures, python: Path) -> dict[str, Any]:
    """Median times of a face at the smallest size, one at a time on one thread: ours, then the peer's."""
    chosen = range(0, len(faces), max(1, len(faces) // TIMED))
    faces, pictures, size = [faces[n] for n in chosen], [pictures[n] for n in chosen], min(SIZES)
    landmarker.finder, finder = NoFinder(), HaarFinder()
    places = find_places(landmarker, faces, pictures, size)
    count = len(faces)
    return {
        "remark": f"medians of {count} faces at {size} px, one thread, one run on a busy machine",
        "veilmark_one_look": _median_ms(lambda n: look_once(landmarker, [faces[n]], [pictures[n]], size), count),
        "veilmark_two_looks": _median_ms(lambda n: look_twice(landmarker, [places[n]]), count),
        "haar_finder": _median_ms(lambda n: finder.find(places[n].image), count),
        "mediapipe": run_peer(python, peer_pictures(faces, pictures, size)[0])[1],
    }


def measure(data: Path, split: str, weights: str, env: Path, work: Path, resume: bool, reuse: bool) -> dict[str, Any]:
    """Runs both on a ``ytf68`` split and scores them; arguments as in :func:`main`. Returns what the JSON holds."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    faces = load_faces("ytf68", data, split).labelled
    pictures = [read_image(face.path) for face in faces]
    true = np.stack([np.asarray(face.points, dtype=np.float64) for face in faces])
    people = [face.person or face.name for face in faces]
    landmarker, python = Landmarker(weights, device="cpu"), make_environment(env)
    mean = landmarker.model.mean_shape.double().numpy()
    floor = np.stack([Crop.from_box(face.box, size=1).to_image(mean) for face in faces])
    network = _digest(*(tensor.numpy().tobytes() for tensor in landmarker.model.state_dict().values()))
    seen = _digest(true.tobytes(), *(picture.tobytes() for picture in pictures))
    finding = _digest(inspect.getsource(finders).encode(), inspect.getsource(find_small).encode(), seen.encode())
    rows: list[dict[str, Any]] = []

    def one_size(size: int) -> None:
        def add(method: str, box: str, points: Points, **more: float) -> None:
            rows.append({"size": size, "method": method, "box": box, **score(points, true, people, floor), **more})
            say(f"{method}, {box}, {size} px: NME {rows[-1]['nme']:.2f} %, {rows[-1]['missed']} not found")

        def ours(box: str, look: Callable[[], Points], **more: float) -> None:
            add("Veilmark", f"{box} box", kept(work / f"{box}-{size}-{network}-{seen}.npy", not resume, look), **more)

        shown, crops = peer_pictures(faces, pictures, size)
        file = work / f"peer-{size}-{_digest(repr((PEER, SHOWN, VERTICES)).encode(), shown.tobytes())}.npy"
        if reuse and not file.exists():
            raise DataError(f"--reuse-peer: {file} does not exist; run once without --reuse-peer on the same data")
        shares = kept(file, not (reuse or resume), lambda: run_peer(python, shown)[0])
        add("MediaPipe", "own detector", np.stack([c.to_image(p * c.size) for c, p in zip(crops, shares, strict=True)]))
        ours("annotated", lambda: look_once(landmarker, faces, pictures, size))
        landmarker.finder = NoFinder()
        places = find_places(landmarker, faces, pictures, size)
        ours("jittered", lambda: look_twice(landmarker, places))
        landmarker.finder = HaarFinder()
        # Finding takes longest and does not depend on the weights: the boxes stay for the next ones.
        boxes = kept(
            work / f"boxes-{size}-{finding}.npy", False,
            lambda: np.stack([[*p.box, p.found] for p in find_places(landmarker, faces, pictures, size)]),
        )  # fmt: skip
        found = [replace(p, box=b[:4], found=bool(b[4])) for p, b in zip(places, boxes, strict=True)]
        ours("found", lambda: look_twice(landmarker, found), found=100 * float(boxes[:, 4].mean()))

    for size in SIZES:
        one_size(size)
    return {
        "protocol": "docs/peers.md",
        "config": {
            "data": f"ytf68/{split}", "faces": len(faces), "people": len(set(people)), "weights": weights,
            "weights_digest": network, "version": veilmark.__version__, "mirror": landmarker.mirror,
            "peer": PEER, "peer_margin": PEER_MARGIN, "peer_shown_px": SHOWN,
        },
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "times": measure_times(landmarker, faces, pictures, python),
        "rows": rows,
    }  # fmt: skip


def main(
    data: Annotated[Path | None, typer.Option(help="Folder in the ytf68 layout.")] = None,
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    weights: Annotated[str, typer.Option(help="Packaged weights, a folder or hub:owner/name.")] = DEFAULT_WEIGHTS,
    out: Annotated[Path, typer.Option(help="The JSON.")] = Path("benchmarks/results/peers-val.json"),
    env: Annotated[Path, typer.Option(help="The peer's virtual environment, about 1 GB.")] = Path(
        ".cache/peers/mediapipe"
    ),
    work: Annotated[Path, typer.Option(help="Where points and boxes are kept.")] = Path("runs/peers"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep every finished part.")] = False,
    reuse_peer: Annotated[bool, typer.Option("--reuse-peer", help="Keep the peer's points.")] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the JSON's table; run nothing.")] = False,
    chart: Annotated[bool, typer.Option("--draw", help="Draw the JSON's chart; run nothing.")] = False,
    picture: Annotated[Path, typer.Option(help="The chart.")] = Path("docs/images/peers.png"),
) -> None:
    """Compares MediaPipe and Veilmark on small faces."""
    try:
        if not (show or chart):
            if data is None:
                raise ConfigError("--data is missing: name a folder in the ytf68 layout, or --print or --draw")
            with RunFolder(work).hold():
                write_json(out, measure(data, split, weights, env, work, resume, reuse_peer))
        if not out.is_file():
            raise DataError(f"{out} does not exist; measure first, with --data DIR")
    except (VeilmarkError, RuntimeError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    if chart:
        draw(rows, picture)
    else:
        typer.echo(table(rows))


if __name__ == "__main__":
    typer.run(main)
