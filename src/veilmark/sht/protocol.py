"""Scoring under the stated protocol: which crops, which sizes, which metrics."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import REFERENCE_SIZE, Crop
from veilmark.faces.degrade import shrink
from veilmark.landmarks.metrics import LandmarkMetrics, psnr
from veilmark.landmarks.schemes import Scheme, get_scheme
from veilmark.sht.inference import Prediction, predict


@dataclass(frozen=True)
class ReferenceFaces:
    """The faces of an evaluation, as the protocol crops them.

    Attributes:
        crops: ``(n, size, size, 3)`` uint8, the high-resolution reference, 128 px in every published figure.
        points: ``(n, k, 2)`` true landmarks as shares of the crop's side.
        scales: ``(n,)`` side of the crop in pixels of the picture.
        names: Name of each face.
        people: Person of each face; the face's own name where the set has no people.
    """

    crops: NDArray[np.uint8]
    points: NDArray[np.float64]
    scales: NDArray[np.float64]
    names: list[str]
    people: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_cache(cls, cache: FaceCache, size: int = REFERENCE_SIZE) -> ReferenceFaces:
        """Crops every cached face at margin 1.3 of its annotated box.

        Args:
            cache: Prepared faces with landmarks.
            size: Side of the reference: that of the hallucinated face.
        """
        crops, points, scales, names, people = [], [], [], [], []
        for number in range(len(cache)):
            cached = cache[number]
            if cached.points is None:
                raise ValueError(f"{cached.face.name} has no landmarks to be scored against")
            crop = Crop.from_box(cached.box, size=size)
            crops.append(crop.sample(cached.image))
            points.append(crop.to_crop(cached.points) / crop.size)
            scales.append(size / crop.scale)
            names.append(cached.face.name)
            people.append(cached.face.person or cached.face.name)
        return cls(np.stack(crops), np.stack(points), np.asarray(scales), names, people)

    def shrunk(self, size: int) -> NDArray[np.uint8]:
        """The faces at ``size`` px by the plain area downsample: ``(n, size, size, 3)``."""
        return np.stack([shrink(crop, size) for crop in self.crops])


def bicubic(faces: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Faces ``(n, s, s, 3)`` enlarged by bicubic interpolation: the baseline of hallucination."""
    return np.stack([cv2.resize(face, (size, size), interpolation=cv2.INTER_CUBIC) for face in faces])


def score_points(prediction: Prediction, faces: ReferenceFaces, scheme: Scheme) -> LandmarkMetrics:
    """Landmark metrics of a prediction, in pixels of the pictures."""
    side = faces.scales[:, None, None]
    metrics = LandmarkMetrics(scheme)
    metrics.update(prediction.points * side, faces.points * side, prediction.expected_error * side[..., 0])
    return metrics


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
