"""The front door: a picture in, landmarks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from veilmark.faces.crop import MARGIN, Crop, check_box, overlap, points_box
from veilmark.faces.finders import Finder, create_finder
from veilmark.faces.images import read_image
from veilmark.landmarks.result import Landmarks
from veilmark.run.devices import choose_device
from veilmark.sht.inference import Prediction, predict
from veilmark.sht.pretrained import DEFAULT_WEIGHTS, Detector, load_detector

Image = NDArray[np.uint8]

_SAME_FACE = 0.5
"""Intersection over union from which two boxes show one face."""


@dataclass(frozen=True)
class Detection:
    """What was found in one picture.

    Attributes:
        landmarks: The faces' landmarks, in pixels of the picture.
        faces: ``(n, 128, 128, 3)`` uint8 hallucinated faces where they were asked for. A hallucinated face is
            the most likely one given the training faces; it is no evidence of anybody's looks.
        crops: How each face was cropped, so that points can be drawn on the hallucinated face.
    """

    landmarks: Landmarks
    faces: NDArray[np.uint8] | None
    crops: list[Crop]


def _distinct(rows: list[int], boxes: NDArray[np.floating]) -> list[int]:
    """Leaves out faces that a second look has led to the box of a face before them."""
    kept: list[int] = []
    for row in rows:
        if all(overlap(boxes[row], boxes[other]) < _SAME_FACE for other in kept):
            kept.append(row)
    return kept


class Landmarker:
    """Finds faces and their landmarks.

    Example:
        >>> from veilmark import Landmarker
        >>> result = Landmarker()("photo.jpg")  # doctest: +SKIP
        >>> result.points.shape  # doctest: +SKIP
        (1, 68, 2)

    Args:
        weights: Name of packaged weights, a folder, ``hub:owner/name``, or a network.
        finder: Name of a face finder (``haar``, ``yunet``, ``none``), or a finder.
        finder_weights: File of the finder's weights, for finders that need one.
        device: ``auto``, ``cpu`` or ``cuda``.
        mirror: Whether every face is looked at mirrored, too: twice the time, smaller errors.
        refine: Whether each face is cropped again around the points first found, and looked at again: a
            finder's box is seldom the box that the network was trained on.
        batch: Faces that run through the network at a time.
    """

    def __init__(
        self,
        weights: str | Path | Detector = DEFAULT_WEIGHTS,
        finder: str | Finder = "haar",
        *,
        finder_weights: str | Path | None = None,
        device: str = "auto",
        mirror: bool = True,
        refine: bool = True,
        batch: int = 32,
    ) -> None:
        self.device = choose_device(device)
        model = load_detector(weights) if isinstance(weights, str | Path) else weights
        self.model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.finder = create_finder(finder, weights=finder_weights) if isinstance(finder, str) else finder
        self.mirror, self.refine, self.batch = mirror, refine, batch

    def __call__(self, picture: str | Path | Image) -> Landmarks:
        """Landmarks of the faces in one picture.

        Args:
            picture: A file, or ``(h, w, 3)`` uint8 RGB.

        Raises:
            ImageError: If the file is not a readable picture.
        """
        image = read_image(picture) if isinstance(picture, str | Path) else picture
        return self.detect([image])[0].landmarks

    def detect(
        self,
        images: Sequence[Image],
        boxes: Sequence[NDArray[np.floating]] | None = None,
        *,
        refine: bool | None = None,
        hallucinate: bool = False,
    ) -> list[Detection]:
        """Finds the landmarks of all faces in several pictures, in batches over the pictures.

        Args:
            images: ``(h, w, 3)`` uint8 RGB each.
            boxes: Face boxes ``(n, 4)`` of each picture; by default the finder looks for them.
            refine: Whether to crop again around the points first found; by default only where the finder gave
                the boxes.
            hallucinate: Whether the hallucinated faces are wanted.

        Raises:
            BoxError: If a given box is under 8 px or outside its picture.
        """
        found = [self.finder.find(image).boxes for image in images] if boxes is None else list(boxes)
        for image, of_image in zip(images, found, strict=True):
            for box in of_image:
                check_box(box, image.shape[1], image.shape[0])
        owner = [number for number, of_image in enumerate(found) for _ in of_image]
        all_boxes = np.concatenate([np.reshape(of_image, (-1, 4)) for of_image in found] or [np.zeros((0, 4))])
        twice = (self.refine and boxes is None) if refine is None else refine
        prediction, crops = self._look(images, owner, all_boxes, hallucinate and not twice)
        if twice and owner:
            placed = [crop.to_image(p * crop.size) for crop, p in zip(crops, prediction.points, strict=True)]
            all_boxes = points_box(np.stack(placed))
            prediction, crops = self._look(images, owner, all_boxes, hallucinate)
        return [
            self._collect([i for i, o in enumerate(owner) if o == n], all_boxes, prediction, crops)
            for n in range(len(images))
        ]

    def _look(
        self, images: Sequence[Image], owner: list[int], boxes: NDArray[np.floating], hallucinate: bool
    ) -> tuple[Prediction, list[Crop]]:
        """One look of the network at every box."""
        size = self.model.size
        crops = [Crop.from_box(box, MARGIN, size) for box in boxes]
        pixels = [crop.sample(images[number]) for crop, number in zip(crops, owner, strict=True)]
        stacked = np.stack(pixels) if pixels else np.zeros((0, size, size, 3), dtype=np.uint8)
        looked = predict(self.model, stacked, mirror=self.mirror, hallucinate=hallucinate, batch=self.batch)
        return looked, crops

    def _collect(
        self, rows: list[int], boxes: NDArray[np.floating], prediction: Prediction, crops: list[Crop]
    ) -> Detection:
        """The faces of one picture, most trusted first."""
        rows = _distinct(sorted(rows, key=lambda row: -prediction.trust[row]), boxes)
        own = [crops[row] for row in rows]
        if not rows:
            return Detection(Landmarks.empty(self.model.scheme), None, [])
        points = np.stack([c.to_image(prediction.points[r] * c.size) for c, r in zip(own, rows, strict=True)])
        claims = np.stack([prediction.expected_error[r] * c.size / c.scale for c, r in zip(own, rows, strict=True)])
        landmarks = Landmarks(
            points.astype(np.float32),
            claims.astype(np.float32),
            prediction.trust[rows].astype(np.float32),
            boxes[rows].astype(np.float32),
            self.model.scheme,
        )
        return Detection(landmarks, None if prediction.faces is None else prediction.faces[rows], own)
