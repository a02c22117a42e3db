"""``veilmark evaluate``: a network, the mean face or anybody's predictions under the one stated protocol."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import veilmark
from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import MARGIN, overlap
from veilmark.faces.datasets import Face, FaceSet
from veilmark.faces.degrade import shrink
from veilmark.faces.images import ImageError, read_image, write_png
from veilmark.landmarks.draw import draw_landmarks
from veilmark.landmarks.metrics import ImageMetrics, LandmarkMetrics, bootstrap_interval
from veilmark.landmarks.reading import read_predictions
from veilmark.landmarks.result import Landmarks
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.folder import write_json, write_text
from veilmark.run.seeds import rng_for
from veilmark.sht.inference import Prediction, predict
from veilmark.sht.landmarker import Landmarker
from veilmark.sht.protocol import ReferenceFaces, bicubic, score_points

JITTER = 0.1
"""Where the finder finds no face, the annotated box is moved and resized by up to this share of its side."""

MEAN_SHAPE = "mean shape"
"""The method that puts the mean face of the training people into the box."""

_MATCH = 0.3
"""Smallest intersection over union at which a found box is the annotated face."""


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        protocol: What was measured, and how.
        landmarks: One row per method, box and size; rates in percent.
        hallucination: One row per size below the reference's.
        nmes: Per-face NME in percent by ``(method, box, size)``.
        names: The faces, in the order of every array in ``nmes``.
        examples: Pictures of the best, median and worst faces, with captions.
        skipped: Pictures that could not be read, with the reason.
    """

    protocol: dict[str, Any]
    landmarks: list[dict[str, Any]] = field(default_factory=list)
    hallucination: list[dict[str, Any]] = field(default_factory=list)
    nmes: dict[tuple[str, str, int], NDArray[np.float64]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    examples: list[tuple[NDArray[np.uint8], str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes ``metrics.json``, ``faces.csv`` (the NME of every face) and ``examples/`` with their captions."""
        folder.mkdir(parents=True, exist_ok=True)
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["method", "box", "size", "face", "nme"])
        for (method, box, size), nmes in self.nmes.items():
            rows = zip(self.names, nmes, strict=True)
            table.writerows([method, box, size, name, f"{nme:.4f}"] for name, nme in rows)
        write_text(folder / "faces.csv", stream.getvalue())
        (folder / "examples").mkdir(exist_ok=True)
        captions = {}
        for number, (image, caption) in enumerate(self.examples):
            captions[f"{number:02d}.png"] = caption
            write_png(folder / "examples" / f"{number:02d}.png", image)
        write_json(folder / "examples" / "captions.json", captions)
        # The floor has a list of its own, so that size and box name one row of `landmarks`.
        metrics = {
            "protocol": self.protocol,
            "landmarks": [row for row in self.landmarks if row["method"] != MEAN_SHAPE],
            "mean_shape": [row for row in self.landmarks if row["method"] == MEAN_SHAPE],
            "hallucination": self.hallucination,
        }
        write_json(folder / "metrics.json", metrics)

    def add(self, method: str, box: str, size: int, scored: LandmarkMetrics, people: Sequence[str]) -> None:
        """Adds a row of landmark figures, with an interval over people."""
        row: dict[str, Any] = {"size": size, "box": box, "method": method, **scored.compute()}
        if len(set(people)) > 1:
            row["nme_interval95"] = bootstrap_interval(scored.nmes, people, rng_for(0, size))
        self.landmarks.append(row)
        self.nmes[method, box, size] = np.asarray(scored.nmes)


def protocol_of(faces: FaceSet, landmarker: Landmarker, weights: str) -> dict[str, Any]:
    """The protocol, in words that stand beside every number."""
    eyes = landmarker.model.scheme
    return {
        "data": f"{faces.layout}/{faces.split}",
        "faces": len(faces.labelled),
        "people": len(faces.people),
        "weights": weights,
        "normalisation": f"inter-ocular (points 36 and 45 of {eyes})",
        "crop": f"box of the annotated points, margin {MARGIN}, {landmarker.model.size} px reference",
        "degradation": "plain area downsample of the reference crop (annotated box) or of the whole picture (finder)",
        "finder": f"{type(landmarker.finder).__name__}; where it misses the face, the annotated box jittered by "
        f"{JITTER:.0%} in place and size",
        "mirror": landmarker.mirror,
        "looks": {"annotated": 1, "finder": 2 if landmarker.refine else 1},
        "images": "PSNR is the mean of the images' PSNRs; SSIM Gaussian, sigma 1.5; no border crop; Y of BT.601",
        "interval": "95 %, bootstrap over people",
        "version": veilmark.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _mean_shape(landmarker: Landmarker, count: int) -> Prediction:
    """The mean face of the training set, put into every box."""
    shape = landmarker.model.mean_shape.double().cpu().numpy()
    points = np.broadcast_to(shape, (count, *shape.shape)).copy()
    return Prediction(points, np.ones(points.shape[:2]), np.zeros(count), None)


def jittered(box: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float64]:
    """The box moved and resized, each by up to 10 % of its longer side."""
    x0, y0, x1, y1 = (float(v) for v in box)
    side = max(x1 - x0, y1 - y0)
    dx, dy, grow = rng.uniform(-JITTER, JITTER, 3)
    centre = np.array([(x0 + x1) / 2 + dx * side, (y0 + y1) / 2 + dy * side])
    half = np.array([x1 - x0, y1 - y0]) / 2 * (1 + grow)
    return np.concatenate([centre - half, centre + half])


@dataclass(frozen=True)
class FoundFace:
    """A whole picture made small, and the box from which landmarks are to be found in it.

    Attributes:
        image: The small picture.
        box: The box in it.
        factor: Small pixels per original pixel, ``(x, y)``.
        found: Whether the finder found the face.
    """

    image: NDArray[np.uint8]
    box: NDArray[np.float64]
    factor: NDArray[np.float64]
    found: bool


def find_small(face: Face, image: NDArray[np.uint8], size: int, landmarker: Landmarker, number: int) -> FoundFace:
    """Makes a picture so small that the face has ``size`` px, and lets the finder look for it there."""
    side = MARGIN * float(max(face.box[2] - face.box[0], face.box[3] - face.box[1]))
    height, width = image.shape[:2]
    smaller = min(1.0, size / side)
    small_size = (max(1, round(width * smaller)), max(1, round(height * smaller)))
    small = np.asarray(cv2.resize(image, small_size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    factor = np.array([small_size[0] / width, small_size[1] / height])
    true_box = face.box.astype(np.float64) * np.tile(factor, 2)
    boxes = landmarker.finder.find(small).boxes
    overlaps = [overlap(box.astype(np.float64), true_box) for box in boxes]
    if overlaps and max(overlaps) >= _MATCH:
        return FoundFace(small, boxes[int(np.argmax(overlaps))].astype(np.float64), factor, True)
    return FoundFace(small, jittered(true_box, rng_for(0, size, number)), factor, False)


def _evaluate_found(
    result: Evaluation,
    faces: Sequence[Face],
    landmarker: Landmarker,
    sizes: Sequence[int],
    advance: Callable[[], object],
) -> None:
    """The rows whose box comes from the finder."""
    definition = Landmarks.empty(landmarker.model.scheme).definition
    scored = {size: LandmarkMetrics(definition) for size in sizes}
    found = dict.fromkeys(sizes, 0)
    people: list[str] = []
    for number, face in enumerate(faces):
        advance()
        try:
            image = read_image(face.path)
        except ImageError:
            continue
        if face.points is None:
            continue
        people.append(face.person or face.name)
        small = [find_small(face, image, size, landmarker, number) for size in sizes]
        seen = landmarker.detect([s.image for s in small], [s.box[None] for s in small], refine=landmarker.refine)
        for size, place, detection in zip(sizes, small, seen, strict=True):
            points = detection.landmarks.points.astype(np.float64) / place.factor
            claims = detection.landmarks.expected_error / place.factor.mean()
            scored[size].update(points, face.points[None], claims)
            found[size] += place.found
    for size in sizes:
        result.add("dhln", "finder", size, scored[size], people)
        result.landmarks[-1]["found"] = 100 * found[size] / max(1, len(people))


def _examples(
    faces: ReferenceFaces, prediction: Prediction, nmes: NDArray[np.float64], size: int, scheme: str
) -> list[tuple[NDArray[np.uint8], str]]:
    """The best, median and worst faces at one size: the small input, and the points on the reference."""
    order = np.argsort(nmes)
    middle = len(order) // 2
    groups = {"best": order[:4], "median": order[max(0, middle - 2) : middle + 2], "worst": order[-4:]}
    tiles = []
    for label, rows in groups.items():
        for row in rows:
            reference, small = faces.crops[row], shrink(faces.crops[row], size)
            side = reference.shape[0]
            boxed = Landmarks(
                prediction.points[row][None] * side,
                prediction.expected_error[row][None] * side,
                prediction.trust[row][None],
                np.array([[0, 0, side, side]]),
                scheme,
            )
            drawn = draw_landmarks(reference, boxed, scale=2, boxes=False)
            plain = cv2.resize(small, drawn.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            tiles.append(
                (np.hstack([plain, drawn]).astype(np.uint8), f"{label}: {nmes[row]:.1f} %, {faces.names[row]}")
            )
    return tiles


def evaluate(
    faces: FaceSet,
    cache: FaceCache,
    landmarker: Landmarker,
    weights: str,
    sizes: Sequence[int],
    *,
    finder_rows: bool = True,
    advance: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Scores a network, and the mean face beside it.

    Args:
        faces: The data.
        cache: Its labelled faces, prepared.
        landmarker: The network, how it looks, and the finder.
        weights: What the weights are called in the protocol.
        sizes: Face sizes in pixels, at most the side of the hallucinated face.
        finder_rows: Whether to add the rows whose box comes from the finder.
        advance: Called once a size, and once a picture of the finder's rows.
    """
    result = Evaluation(protocol_of(faces, landmarker, weights), skipped=dict(cache.skipped))
    if max(sizes) > landmarker.model.size:
        raise ConfigError(f"--sizes {max(sizes)}: these weights hallucinate {landmarker.model.size} px faces at most")
    reference = ReferenceFaces.from_cache(cache, landmarker.model.size)
    result.names = reference.names
    model, scheme = landmarker.model, Landmarks.empty(landmarker.model.scheme).definition
    for size in sizes:
        small = reference.shrunk(size)
        paint = model.detail is not None
        prediction = predict(model, small, mirror=landmarker.mirror, hallucinate=paint, batch=landmarker.batch)
        result.add("dhln", "annotated", size, score_points(prediction, reference, scheme), reference.people)
        mean = score_points(_mean_shape(landmarker, len(reference)), reference, scheme)
        result.add(MEAN_SHAPE, "annotated", size, mean, reference.people)
        result.landmarks[-1]["calibration"] = None
        if prediction.faces is not None and size < model.size:
            painted, plain = ImageMetrics(), ImageMetrics()
            painted.update(prediction.faces, reference.crops)
            plain.update(bicubic(small, model.size), reference.crops)
            row = {"size": size, **painted.compute()}
            row |= {f"bicubic_{name}": value for name, value in plain.compute().items() if name != "n"}
            result.hallucination.append(row)
        if size == min(sizes):
            result.examples = _examples(
                reference, prediction, result.nmes["dhln", "annotated", size], size, scheme.name
            )
        advance()
    if finder_rows:
        _evaluate_found(result, faces.labelled, landmarker, sizes, advance)
    return result


def evaluate_predictions(faces: FaceSet, predictions: Path, landmarker: Landmarker, size: int) -> Evaluation:
    """Scores anybody's points, given in pixels of the original pictures.

    Args:
        faces: The data.
        predictions: A table in the ``ytf68`` layout, or JSON written by ``veilmark detect``.
        landmarker: Only its scheme and mean face are used.
        size: The face size that the points were found at, for the table.

    Raises:
        DataError: If a labelled face has no prediction.
    """
    scheme = Landmarks.empty(faces.scheme).definition
    given = read_predictions(predictions, k=len(scheme))
    result = Evaluation(protocol_of(faces, landmarker, weights=f"none (predictions of {predictions.name})"))
    missing = [face.name for face in faces.labelled if face.name not in given]
    if missing:
        raise DataError(
            f"{predictions} has no points for {len(missing)} of {len(faces.labelled)} faces, the first: {missing[0]}; "
            "a face that was not found needs a row, too (for example the mean shape in its box)"
        )
    scored = LandmarkMetrics(scheme)
    claimed = all(given[face.name][1] is not None for face in faces.labelled)
    for face in faces.labelled:
        points, errors = given[face.name]
        if face.points is not None:
            scored.update(points[None], face.points[None], errors[None] if claimed and errors is not None else None)
    result.names = [face.name for face in faces.labelled]
    result.add(predictions.stem, "given", size, scored, [face.person or face.name for face in faces.labelled])
    return result
