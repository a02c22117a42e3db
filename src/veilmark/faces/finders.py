"""Where the faces are: finders that turn a picture into face boxes.

Every finder returns boxes in one convention, that of the data sets: the tight box of the 68 iBUG points, from
the brows to the chin and from jaw to jaw. The foreheads and hair that most detectors include are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.crop import MARGIN, SMALLEST_BOX
from veilmark.run.errors import ConfigError

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]


def _no_boxes() -> Boxes:
    return np.zeros((0, 4), dtype=np.float32)


@dataclass(frozen=True)
class Faces:
    """The faces of one picture, best first.

    Attributes:
        boxes: ``(n, 4)`` float32 ``x0, y0, x1, y1`` in picture pixels.
        scores: ``(n,)`` float32, falling. Their unit is the finder's own: compare them within one finder only.
    """

    boxes: Boxes = field(default_factory=_no_boxes)
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.scores)


class Finder(Protocol):
    """Anything that finds faces."""

    def find(self, image: Image) -> Faces:
        """The faces of an ``(h, w, 3)`` uint8 RGB picture."""
        ...


@dataclass(frozen=True)
class BoxMap:
    """How a detector's box becomes the tight box of the landmarks: a shift and a scale of each side.

    Attributes:
        x: Centre of the landmark box, right of the detector box's centre, over that box's width.
        y: Centre of the landmark box, below the detector box's centre, over that box's height.
        width: Width of the landmark box over the detector box's.
        height: Height of the landmark box over the detector box's.
    """

    x: float
    y: float
    width: float
    height: float

    def apply(self, boxes: NDArray[np.floating]) -> Boxes:
        """Detector boxes ``(n, 4)`` xyxy as landmark boxes ``(n, 4)`` float32."""
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        side = boxes[:, 2:] - boxes[:, :2]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + side * (self.x, self.y)
        half = side * (self.width, self.height) / 2
        return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


FRONTAL = BoxMap(x=0.0, y=0.1, width=0.8, height=0.8)


def _keep_best(boxes: Boxes, scores: NDArray[np.float32], width: int, height: int) -> Faces:
    """Boxes large enough, centred inside the picture, and not on top of a better one."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centre >= 0) & (centre < (width, height))).all(axis=1)
    large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= SMALLEST_BOX
    boxes, scores = boxes[inside & large], scores[inside & large]
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(_overlap(boxes[index], boxes[other]) < 0.4 for other in kept):
            kept.append(int(index))
    return Faces(boxes[kept], scores[kept])


def _overlap(one: Boxes, other: Boxes) -> float:
    """Shared area over the smaller box's: a box inside another one overlaps it fully."""
    shared = np.maximum(0, np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).prod()
    return float(shared / min((one[2:] - one[:2]).prod(), (other[2:] - other[:2]).prod()))


class HaarFinder:
    """OpenCV's bundled frontal-face cascade: no weights, no download, faces from about 12 px."""

    def __init__(self) -> None:
        self._frontal = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def find(self, image: Image) -> Faces:
        """The faces of an ``(h, w, 3)`` uint8 RGB picture."""
        height, width = image.shape[:2]
        scale = min(4.0, 1600 / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        gray = cv2.resize(
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
            size,
            interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA,
        )
        pad = round(0.2 * min(size))
        gray = cv2.copyMakeBorder(gray, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        found, neighbours = self._frontal.detectMultiScale2(gray, scaleFactor=1.1, minNeighbors=3)
        squares = np.reshape(np.asarray(found, dtype=np.float64), (-1, 4))
        squares[:, 2:] += squares[:, :2]
        squares = (squares - pad) * np.tile(np.array([width, height]) / size, 2)
        return _keep_best(FRONTAL.apply(squares), np.asarray(neighbours, dtype=np.float32).reshape(-1), width, height)


class YuNetFinder:
    """YuNet, from a user's ONNX file."""

    def __init__(self, weights: str | Path | None) -> None:
        raise ConfigError("finder yunet needs weights: give --finder-weights FILE")


class WholePicture:
    """The picture is the face, cropped at margin 1.3 already."""

    def find(self, image: Image) -> Faces:
        """The one box whose crop is the picture."""
        height, width = image.shape[:2]
        half = max(width, height) / MARGIN / 2
        box = [width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half]
        return Faces(np.array([box], dtype=np.float32), np.ones(1, dtype=np.float32))


FINDERS: dict[str, type[Any]] = {"haar": HaarFinder, "yunet": YuNetFinder, "none": WholePicture}
"""Face finders by the name that ``--finder`` takes."""


def create_finder(name: str, weights: str | Path | None = None) -> Finder:
    """A finder by name.

    Raises:
        ConfigError: If there is no finder of this name.
    """
    if name not in FINDERS:
        raise ConfigError(f"unknown finder {name!r}; allowed: {', '.join(FINDERS)}")
    finder: Finder = YuNetFinder(weights) if name == "yunet" else FINDERS[name]()
    return finder
