"""Faces without labels: a finder's box, a second crop around the points first found, a gate by confidence.

No annotation enters. What the finder found is kept on disk, since it depends on the pictures alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from veilmark.faces.crop import MARGIN, Crop, points_box
from veilmark.faces.datasets import Face
from veilmark.faces.finders import Finder, create_finder
from veilmark.faces.images import ImageError, read_image
from veilmark.run.folder import write_text
from veilmark.run.progress import progress_bar
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict

_AT_A_TIME = 64


class UnlabelledConfig(BaseModel):
    """Which faces without labels take part, and how they are found.

    Attributes:
        use: Whether they take part at all.
        layout: Layout of another data set that brings them; by default the training set's own.
        folder: Folder of that other set.
        split: Split of that other set.
        finder: Face finder.
        search: Longer side in pixels at which a picture is searched: a face worth learning from is large in it.
        trust: Faces trusted less are left out.
        error: Faces whose mean expected error exceeds this share of the crop's side are left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    use: bool = True
    layout: str | None = None
    folder: Path | None = None
    split: str | None = None
    finder: str = "haar"
    search: int = Field(128, ge=32)
    trust: float = Field(0.5, ge=0, le=1)
    error: float = Field(0.04, gt=0)


@dataclass(frozen=True)
class Gathered:
    """Faces that passed the gate.

    Attributes:
        faces: The faces.
        boxes: ``(n, 4)`` tight boxes of the points found, xyxy in picture pixels.
        asked: How many pictures there were.
        found: In how many of them the finder found a face.
    """

    faces: list[Face]
    boxes: NDArray[np.float32]
    asked: int
    found: int

    @property
    def figures(self) -> dict[str, float]:
        """The share kept and the share found, in percent, for the run's summary."""
        whole = max(1, self.asked)
        return {"pictures": self.asked, "found": 100 * self.found / whole, "kept": 100 * len(self.faces) / whole}


def _search(finder: Finder, image: NDArray[np.uint8], longest: int) -> list[float] | None:
    """The best box of a picture, searched at ``longest`` px; None without a face."""
    scale = min(1.0, longest / max(image.shape[:2]))
    small = image
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    boxes = finder.find(small).boxes
    factor = np.tile(np.array(image.shape[1::-1]) / np.array(small.shape[1::-1]), 2)
    return [float(v) for v in boxes[0] * factor] if len(boxes) else None


def find_boxes(faces: Sequence[Face], config: UnlabelledConfig, folder: Path) -> list[list[float] | None]:
    """The best found box of every picture, from the disk where it is known.

    Args:
        faces: The faces; their own boxes are not looked at.
        config: Finder and size of the search.
        folder: Where caches lie.

    Returns:
        ``x0, y0, x1, y1`` in picture pixels, None where there is no face or the picture cannot be read.
    """
    store = folder / f"found-{config.finder}-{config.search}.json"
    known: dict[str, list[float] | None] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    keys = [_key(face.path) for face in faces]
    missing = [(key, face.path) for key, face in zip(keys, faces, strict=True) if key not in known]
    if missing:
        finder = create_finder(config.finder)
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar("pictures") as bar:
            task = bar.add_task("finding unlabelled faces", total=len(missing), note="")
            for number, (key, path) in enumerate(missing, 1):
                try:
                    known[key] = _search(finder, read_image(path), config.search)
                except ImageError:
                    known[key] = None
                if number % 200 == 0 or number == len(missing):
                    write_text(store, json.dumps(known))
                bar.advance(task)
    return [known[key] for key in keys]


def _key(path: Path) -> str:
    try:
        status = path.stat()
        state = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = "unreadable"
    return hashlib.sha256(f"{path.resolve()} {state}".encode()).hexdigest()[:24]


def gather(faces: Sequence[Face], model: DHLN, config: UnlabelledConfig, folder: Path) -> Gathered:
    """Finds faces without labels, crops them as labelled ones are, and keeps those that the network is sure of.

    Args:
        faces: The faces.
        model: A network that is warm already.
        config: Finder and gate.
        folder: Where caches lie.
    """
    boxes = find_boxes(faces, config, folder)
    found = [(face, np.asarray(box)) for face, box in zip(faces, boxes, strict=True) if box is not None]
    kept: list[Face] = []
    tight: list[NDArray[np.float32]] = []
    for start in range(0, len(found), _AT_A_TIME):
        part = found[start : start + _AT_A_TIME]
        crops = [Crop.from_box(box, MARGIN, model.size) for _, box in part]
        pixels = [crop.sample(read_image(face.path)) for crop, (face, _) in zip(crops, part, strict=True)]
        said = predict(model, np.stack(pixels), mirror=False)
        sure = (said.trust >= config.trust) & (said.expected_error.mean(axis=1) <= config.error)
        for row in np.flatnonzero(sure):
            kept.append(part[row][0])
            tight.append(points_box(crops[row].to_image(said.points[row] * model.size)))
    stacked = np.stack(tight) if tight else np.zeros((0, 4), dtype=np.float32)
    return Gathered(kept, stacked, len(faces), len(found))
