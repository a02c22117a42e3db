"""Measures how the Haar cascade's squares relate to landmark boxes, and how well the mapped boxes fit.

    python benchmarks/finder_boxes.py --data ytf68/train

``--data`` is the folder of one ``ytf68`` split, with its table beside it. The first line holds the constants
of ``HAAR_MAP`` in ``veilmark/faces/finders.py``; they must come from people that are used for training only.
Every face is also looked for in its picture made smaller, until the crop around the face (1.3 x the box's
longer side) has the size of the row. Found: intersection over union with the annotated box of at least 0.5.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from veilmark.faces.crop import MARGIN
from veilmark.faces.datasets import load_faces
from veilmark.faces.finders import HAAR_MAP, HaarFinder
from veilmark.faces.images import read_image

console = Console(highlight=False, soft_wrap=True)

SIZES = (16, 24, 32, 48, None)


def shrunk(image: np.ndarray, box: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The picture in which the face has ``size`` px (or as it is, if that is smaller), and the box there."""
    factor = 1.0 if size is None else min(1.0, size / (MARGIN * max(box[2] - box[0], box[3] - box[1])))
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA
    )
    return small, box * np.tile([small.shape[1] / width, small.shape[0] / height], 2)


def ious(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of ``boxes (n, 4)`` with one box."""
    shared = np.maximum(0, np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])).prod(axis=1)
    return shared / ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared)


def relation(square: np.ndarray, box: np.ndarray) -> list[float]:
    """Shift and scale of the box relative to the square: x, y, width, height."""
    side = square[2] - square[0]
    shift = ((box[:2] + box[2:]) - (square[:2] + square[2:])) / 2 / side
    return [*shift, *((box[2:] - box[:2]) / side)]


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of one ytf68 split")
    parser.add_argument("--every", type=int, default=20, help="use every so many frames (default: 20)")
    args = parser.parse_args()
    faces = load_faces("ytf68", args.data.parent, args.data.name).labelled[:: args.every]
    pictures = [read_image(face.path) for face in faces]

    finder = HaarFinder()
    relations: list[list[float]] = []
    rows = []
    for size in SIZES:
        overlaps, alarms = [], 0
        for face, picture in zip(faces, pictures, strict=True):
            small, box = shrunk(picture, face.box.astype(np.float64), size)
            squares, _ = finder.squares(small)
            raw = ious(squares, box)
            # A square reaches beyond the landmarks, so the same face overlaps it less than its mapped box.
            if raw.max(initial=0) >= 0.3:
                relations.append(relation(squares[raw.argmax()], box))
            mapped = ious(finder.find(small).boxes.astype(np.float64), box)
            overlaps.append(mapped.max(initial=0))
            alarms += int((mapped < 0.3).sum())
        found = np.array(overlaps)[np.array(overlaps) >= 0.5]
        mean = f"{found.mean():.3f}" if len(found) else "-"
        label = "original" if size is None else f"{size} px"
        rows.append((label, 100 * len(found) / len(faces), mean, alarms / len(faces)))

    x, y, width, height = np.median(relations, axis=0)
    console.print(f"BoxMap(x={x:.3f}, y={y:.3f}, width={width:.3f}, height={height:.3f})")
    console.print(f"spread of the four (standard deviation): {np.round(np.std(relations, axis=0), 3)}")
    console.print(f"with {HAAR_MAP}, {len(faces)} frames of {args.data.name}:")
    console.print(f"{'face':>8}  {'found %':>7}  {'mean IoU':>8}  {'false alarms a picture':>22}")
    for label, share, mean, rate in rows:
        console.print(f"{label:>8}  {share:7.1f}  {mean:>8}  {rate:22.3f}")


if __name__ == "__main__":
    main()
