"""Scoring under the stated protocol: which crops, which sizes, which metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import REFERENCE_SIZE, Crop
from veilmark.faces.datasets import Face, FaceSet
from veilmark.faces.degrade import shrink
from veilmark.landmarks.metrics import ImageMetrics, LandmarkMetrics, Normaliser, psnr
from veilmark.landmarks.schemes import Scheme, get_scheme
from veilmark.run.errors import DataError
from veilmark.run.progress import progress_bar
from veilmark.sht.inference import Prediction, predict


def scored_faces(faces: FaceSet) -> list[Face]:
    """The faces that an evaluation looks at: the labelled ones, or, in a set without labels, those with a region.

    Raises:
        DataError: If there are neither.
    """
    chosen = faces.labelled or [face for face in faces.unlabelled if face.region is not None]
    if not chosen:
        raise DataError(
            f"{faces.layout}/{faces.split} has no face with landmarks or a box of its own, so nothing can be scored; "
            "add .pts files beside the pictures, or choose another split"
        )
    return chosen


def prepare_faces(
    faces: Sequence[Face],
    folder: Path,
    what: str,
    size: int = REFERENCE_SIZE,
    boxes: NDArray[np.float32] | None = None,
) -> FaceCache:
    """The cache of faces, with a progress bar while it is made.

    Args:
        faces: The faces.
        folder: Where caches lie.
        what: What the faces are called in messages.
        size: Side of the largest crop that will be taken, in pixels.
        boxes: ``(n, 4)`` in picture pixels; by default each face's own, of its points or its region.

    Raises:
        DataError: If no picture could be read.
    """
    if boxes is None:
        boxes = np.stack([face.box for face in faces])
    with progress_bar("pictures") as bar:
        task = bar.add_task(f"preparing {what}", total=len(faces), note="")
        cache = FaceCache.prepare(faces, boxes, folder, lambda: bar.advance(task), size)
        bar.update(task, completed=len(faces))
    if not len(cache):
        raise DataError(
            f"none of the {len(faces)} pictures of {what} could be read; the first: "
            f"{next(iter(cache.skipped.values()))}"
        )
    return cache


@dataclass(frozen=True)
class ReferenceFaces:
    """The faces of an evaluation, as the protocol crops them.

    Attributes:
        crops: ``(n, size, size, 3)`` uint8, the high-resolution reference, 128 px in every published figure.
        points: ``(n, k, 2)`` true landmarks as shares of the crop's side.
        scales: ``(n,)`` side of the crop in pixels of the picture.
        names: Name of each face.
        people: Person of each face; the face's own name where the set has no people.
        regions: ``(n, 4)`` the boxes that the set gives, in pixels of the pictures; None if it does not.
        visible: ``(n, k)`` bool where the set says which points can be seen; None means all.
        kind: The length by which errors are divided.
    """

    crops: NDArray[np.uint8]
    points: NDArray[np.float64]
    scales: NDArray[np.float64]
    names: list[str]
    people: list[str]
    regions: NDArray[np.float64] | None = None
    visible: NDArray[np.bool_] | None = None
    kind: Normaliser = "inter_ocular"

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_cache(
        cls, cache: FaceCache, size: int = REFERENCE_SIZE, kind: Normaliser = "inter_ocular"
    ) -> ReferenceFaces:
        """Crops every cached face at margin 1.3 of its annotated box.

        Args:
            cache: Prepared faces with landmarks.
            size: Side of the reference: that of the hallucinated face.
            kind: The length by which errors are divided.
        """
        crops, points, scales, names, people, faces = [], [], [], [], [], []
        for number in range(len(cache)):
            cached = cache[number]
            if cached.points is None:
                raise ValueError(f"{cached.face.name} has no landmarks to be scored against")
            crop = Crop.from_box(cached.box, size=size)
            crops.append(crop.sample(cached.image))
            points.append(crop.to_crop(cached.points) / crop.size)
            scales.append(size / crop.scale / cached.scale)
            names.append(cached.face.name)
            people.append(cached.face.person or cached.face.name)
            faces.append(cached.face)
        k = points[0].shape[0]
        return cls(
            np.stack(crops), np.stack(points), np.asarray(scales), names, people, *regions_and_visible(faces, k), kind
        )

    def shrunk(self, size: int) -> NDArray[np.uint8]:
        """The faces at ``size`` px by the plain area downsample: ``(n, size, size, 3)``."""
        return np.stack([shrink(crop, size) for crop in self.crops])


def regions_and_visible(faces: Iterable[Face], k: int) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]:
    """The boxes that a set gives ``(n, 4)``, and which points can be seen ``(n, k)``.

    Returns:
        None for the boxes if a face has none; None for the points if no face says anything.
    """
    listed = list(faces)
    regions = [face.region for face in listed if face.region is not None]
    seen = [np.ones(k, dtype=np.bool_) if face.visible is None else face.visible for face in listed]
    said = any(face.visible is not None for face in listed)
    boxes = np.stack(regions).astype(np.float64) if len(regions) == len(listed) else None
    return boxes, np.stack(seen) if said else None


def bicubic(faces: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Faces ``(n, s, s, 3)`` enlarged by bicubic interpolation: the baseline of hallucination."""
    return np.stack([cv2.resize(face, (size, size), interpolation=cv2.INTER_CUBIC) for face in faces])


def score_points(prediction: Prediction, faces: ReferenceFaces, scheme: Scheme) -> LandmarkMetrics:
    """Landmark metrics of a prediction, in pixels of the pictures."""
    side = faces.scales[:, None, None]
    metrics = LandmarkMetrics(scheme, faces.kind)
    metrics.update(
        prediction.points * side,
        faces.points * side,
        prediction.expected_error * side[..., 0],
        boxes=faces.regions,
        visible=faces.visible,
    )
    return metrics


class HallucinationScore:
    """PSNR and SSIM of hallucinated faces of one size, and of bicubic enlarging beside them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._painted, self._plain = ImageMetrics(), ImageMetrics()

    def update(self, painted: NDArray[np.uint8], small: NDArray[np.uint8], true: NDArray[np.uint8]) -> None:
        """Adds faces.

        Args:
            painted: ``(n, s, s, 3)`` hallucinated faces.
            small: ``(n, size, size, 3)`` what they were made from.
            true: ``(n, s, s, 3)`` the reference.
        """
        self._painted.update(painted, true)
        self._plain.update(bicubic(small, true.shape[1]), true)

    def row(self) -> dict[str, Any]:
        """``size``, ``n`` and the figures, those of bicubic enlarging with ``bicubic_`` before their names."""
        plain = {f"bicubic_{name}": value for name, value in self._plain.compute().items() if name != "n"}
        return {"size": self.size, **self._painted.compute(), **plain}


_CHUNK = 256
"""Faces that are cropped at a time where a set is too large for the memory of one crop of each."""


def score_hallucination(
    model: nn.Module,
    cache: FaceCache,
    sizes: Sequence[int],
    *,
    mirror: bool = True,
    batch: int = 32,
    advance: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Figures of hallucination alone, for faces without landmarks: one row per size below the network's.

    Args:
        model: A network that hallucinates.
        cache: Prepared faces.
        sizes: Face sizes in pixels, below the side of the hallucinated face.
        mirror: Whether every face is looked at mirrored, too.
        batch: Faces that run through the network at a time.
        advance: Called once a size.
    """
    side = int(model.size)  # type: ignore[arg-type]
    rows = []
    for size in sizes:
        score = HallucinationScore(size)
        for start in range(0, len(cache), _CHUNK):
            cached = [cache[number] for number in range(start, min(start + _CHUNK, len(cache)))]
            crops = np.stack([Crop.from_box(face.box, size=side).sample(face.image) for face in cached])
            small = np.stack([shrink(crop, size) for crop in crops])
            painted = predict(model, small, mirror=mirror, hallucinate=True, batch=batch).faces
            if painted is None:
                raise ValueError("the network does not hallucinate")
            score.update(painted, small, crops)
        rows.append(score.row())
        advance()
    return rows


def quick_figures(
    model: nn.Module, faces: ReferenceFaces, sizes: tuple[int, ...], hallucinate: bool
) -> dict[str, dict[str, float]]:
    """A few figures per size for the validations during training (no mirroring).

    Args:
        model: The network.
        faces: The faces.
        sizes: Face sizes in pixels.
        hallucinate: Whether to score hallucinated faces at the smallest size, too.
    """
    scheme = get_scheme(str(model.scheme))
    figures = {}
    for size in sizes:
        small = faces.shrunk(size)
        paint = hallucinate and size == min(sizes)
        prediction = predict(model, small, mirror=False, hallucinate=paint)
        scored = score_points(prediction, faces, scheme).compute()
        row = {name: float(scored[name] or 0.0) for name in ("nme", "fr10", "calibration")}
        if prediction.faces is not None:
            pairs = list(zip(prediction.faces, bicubic(small, faces.crops.shape[1]), faces.crops, strict=True))
            row["psnr"] = float(np.mean([psnr(painted, true) for painted, _, true in pairs]))
            row["psnr_gain"] = row["psnr"] - float(np.mean([psnr(plain, true) for _, plain, true in pairs]))
        figures[str(size)] = row
    return figures


def score_sizes(model: nn.Module, faces: ReferenceFaces, sizes: tuple[int, ...]) -> list[dict[str, float | None]]:
    """Landmark figures of any network that answers like DHLN: one row per size, annotated boxes, mirrored twice.

    Args:
        model: The network.
        faces: The faces.
        sizes: Face sizes in pixels.
    """
    scheme = get_scheme(str(model.scheme))
    rows: list[dict[str, float | None]] = []
    for size in sizes:
        scored = score_points(predict(model, faces.shrunk(size)), faces, scheme)
        rows.append({"size": size, **scored.compute()})
    return rows
