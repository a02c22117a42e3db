"""``veilmark evaluate``: a network, the mean face or anybody's predictions under the one stated protocol."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.cache import FaceCache
from veilmark.faces.datasets import FaceSet
from veilmark.faces.degrade import shrink
from veilmark.faces.images import ImageError, read_image, write_png
from veilmark.landmarks.draw import draw_landmarks
from veilmark.landmarks.metrics import LandmarkMetrics, Normaliser, bootstrap_interval
from veilmark.landmarks.reading import read_predictions
from veilmark.landmarks.result import Landmarks
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.folder import write_json, write_text
from veilmark.run.seeds import rng_for
from veilmark.sht.found import FoundFace, find_small
from veilmark.sht.inference import Prediction, predict
from veilmark.sht.landmarker import Landmarker
from veilmark.sht.protocol import (
    HallucinationScore,
    ReferenceFaces,
    regions_and_visible,
    score_hallucination,
    score_points,
)
from veilmark.sht.protocol_words import protocol_of
from veilmark.sht.published import Answers, published_rows

MEAN_SHAPE = "mean shape"
"""The method that puts the mean face of the training people into the box."""


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        protocol: What was measured, and how.
        landmarks: One row per method, box and size; rates in percent.
        hallucination: One row per size below the reference's.
        published: The table that papers print for the set, at the largest size: one row per subset.
        nmes: Per-face NME in percent by ``(method, box, size)``.
        names: The faces, in the order of every array in ``nmes``.
        examples: Pictures of the best, median and worst faces, with captions.
        skipped: Pictures that could not be read, with the reason.
    """

    protocol: dict[str, Any]
    landmarks: list[dict[str, Any]] = field(default_factory=list)
    hallucination: list[dict[str, Any]] = field(default_factory=list)
    published: list[dict[str, Any]] = field(default_factory=list)
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
            "published": self.published,
        }
        write_json(folder / "metrics.json", metrics)

    def add(self, method: str, box: str, size: int, scored: LandmarkMetrics, people: Sequence[str]) -> None:
        """Adds a row of landmark figures, with an interval over people."""
        row: dict[str, Any] = {"size": size, "box": box, "method": method, **scored.compute()}
        if len(set(people)) > 1:
            row["nme_interval95"] = bootstrap_interval(scored.nmes, people, rng_for(0, size))
        self.landmarks.append(row)
        self.nmes[method, box, size] = np.asarray(scored.nmes)


def _usual(faces: FaceSet) -> Normaliser:
    """The length that divides the errors of a set's faces."""
    return "inter_ocular" if faces.protocol is None else faces.protocol.usual


def _mean_shape(landmarker: Landmarker, count: int) -> Prediction:
    """The mean face of the training set, put into every box."""
    shape = landmarker.model.mean_shape.double().cpu().numpy()
    points = np.broadcast_to(shape, (count, *shape.shape)).copy()
    return Prediction(points, np.ones(points.shape[:2]), np.zeros(count), None)


def _evaluate_found(
    result: Evaluation,
    faces: FaceSet,
    landmarker: Landmarker,
    sizes: Sequence[int],
    advance: Callable[[], object],
) -> None:
    """The rows whose box comes from the finder."""
    definition = get_scheme(landmarker.model.scheme)
    scored = {size: LandmarkMetrics(definition, _usual(faces)) for size in sizes}
    found = dict.fromkeys(sizes, 0)
    people: list[str] = []
    for number, face in enumerate(faces.labelled):
        advance()
        try:
            image = read_image(face.path)
        except ImageError:
            continue
        if face.points is None:
            continue
        people.append(face.person or face.name)
        small: list[FoundFace] = [find_small(face, image, size, landmarker, number) for size in sizes]
        seen = landmarker.detect([s.image for s in small], [s.box[None] for s in small], refine=landmarker.refine)
        regions, visible = regions_and_visible([face], len(definition))
        for size, place, detection in zip(sizes, small, seen, strict=True):
            points = detection.landmarks.points.astype(np.float64) / place.factor
            claims = detection.landmarks.expected_error / place.factor.mean()
            scored[size].update(points, face.points[None], claims, boxes=regions, visible=visible)
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
        faces: The data, in the network's scheme. Of a set without labels only hallucination is scored.
        cache: Its faces (see :func:`veilmark.sht.protocol.scored_faces`), prepared for crops of the network's size.
        landmarker: The network, how it looks, and the finder.
        weights: What the weights are called in the protocol.
        sizes: Face sizes in pixels, at most the side of the hallucinated face.
        finder_rows: Whether to add the rows whose box comes from the finder.
        advance: Called once a size, and once a picture of the finder's rows.

    Raises:
        ConfigError: If a size exceeds the network's, or nothing can be scored of a set without labels.
    """
    if max(sizes) > landmarker.model.size:
        raise ConfigError(f"--sizes {max(sizes)}: these weights hallucinate {landmarker.model.size} px faces at most")
    result = Evaluation(protocol_of(faces, landmarker, weights), skipped=dict(cache.skipped))
    if not faces.labelled:
        return _evaluate_unlabelled(result, faces, cache, landmarker, sizes, advance)
    if faces.scheme != landmarker.model.scheme:
        raise ValueError(f"faces in {faces.scheme}, network in {landmarker.model.scheme}: use faces.in_scheme first")
    reference = ReferenceFaces.from_cache(cache, landmarker.model.size, _usual(faces))
    result.names = reference.names
    model, scheme = landmarker.model, get_scheme(landmarker.model.scheme)
    for size in sizes:
        small = reference.shrunk(size)
        paint = model.hallucinates
        prediction = predict(model, small, mirror=landmarker.mirror, hallucinate=paint, batch=landmarker.batch)
        result.add("dhln", "annotated", size, score_points(prediction, reference, scheme), reference.people)
        mean = score_points(_mean_shape(landmarker, len(reference)), reference, scheme)
        result.add(MEAN_SHAPE, "annotated", size, mean, reference.people)
        result.landmarks[-1]["calibration"] = None
        if prediction.faces is not None and size < model.size:
            score = HallucinationScore(size)
            score.update(prediction.faces, small, reference.crops)
            result.hallucination.append(score.row())
        if size == max(sizes):
            side = reference.scales[:, None, None]
            answers = Answers(
                reference.names, prediction.points * side, reference.points * side, reference.regions, reference.visible
            )
            result.published = published_rows(faces, answers, scheme)
        if size == min(sizes):
            result.examples = _examples(
                reference, prediction, result.nmes["dhln", "annotated", size], size, scheme.name
            )
        advance()
    if finder_rows:
        _evaluate_found(result, faces, landmarker, sizes, advance)
    return result


def _evaluate_unlabelled(
    result: Evaluation,
    faces: FaceSet,
    cache: FaceCache,
    landmarker: Landmarker,
    sizes: Sequence[int],
    advance: Callable[[], object],
) -> Evaluation:
    """Hallucination alone, for a set that has no landmarks in the network's scheme."""
    model = landmarker.model
    smaller = [size for size in sizes if size < model.size]
    named = f"{faces.layout}/{faces.split} has no landmarks, so only hallucination can be scored"
    if not model.hallucinates:
        raise ConfigError(f"{named}, and these weights hallucinate no faces; choose other weights or another set")
    if not smaller:
        raise ConfigError(f"{named}: --sizes {max(sizes)} leaves nothing to do; choose sizes below {model.size}")
    result.hallucination = score_hallucination(
        model, cache, smaller, mirror=landmarker.mirror, batch=landmarker.batch, advance=advance
    )
    return result


def evaluate_predictions(faces: FaceSet, predictions: Path, landmarker: Landmarker, size: int) -> Evaluation:
    """Scores anybody's points, given in pixels of the original pictures.

    Args:
        faces: The data.
        predictions: A table in the ``ytf68`` layout, or JSON written by ``veilmark detect``.
        landmarker: Only its scheme and mean face are used.
        size: The face size that the points were found at, for the table.

    Raises:
        DataError: If a labelled face has no prediction, or no face has labels.
    """
    if not faces.labelled:
        raise DataError(f"{faces.layout}/{faces.split} has no face with landmarks to score {predictions} against")
    scheme = get_scheme(faces.scheme)
    given = read_predictions(predictions, k=len(scheme))
    result = Evaluation(protocol_of(faces, landmarker, weights=f"none (predictions of {predictions.name})"))
    missing = [face.name for face in faces.labelled if face.name not in given]
    if missing:
        raise DataError(
            f"{predictions} has no points for {len(missing)} of {len(faces.labelled)} faces, the first: {missing[0]}; "
            "a face that was not found needs a row, too (for example the mean shape in its box)"
        )
    labelled = faces.labelled
    points = np.stack([given[face.name][0] for face in labelled])
    true = np.stack([face.points for face in labelled if face.points is not None])
    claims = [errors for _, errors in (given[face.name] for face in labelled) if errors is not None]
    regions, visible = regions_and_visible(labelled, len(scheme))
    scored = LandmarkMetrics(scheme, _usual(faces))
    claimed = np.stack(claims) if len(claims) == len(labelled) else None
    scored.update(points, true, claimed, boxes=regions, visible=visible)
    result.names = [face.name for face in labelled]
    result.add(predictions.stem, "given", size, scored, [face.person or face.name for face in labelled])
    result.published = published_rows(faces, Answers(result.names, points, true, regions, visible), scheme)
    return result
