"""Where the faces are: finders that turn a picture into face boxes.

Every finder returns boxes in one convention, that of the data sets: the tight box of the 68 iBUG points, from
the brows to the chin and from jaw to jaw. The foreheads and hair that most detectors include are not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.crop import MARGIN, SMALLEST_BOX, overlap
from veilmark.run.errors import ConfigError, WeightsError

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


HAAR_MAP = BoxMap(x=-0.013, y=0.169, width=0.900, height=0.863)
"""From the cascade's square, which starts at mid-forehead and stops short of the chin.

Medians over frames of people that are used for training only:
``python benchmarks/finder_boxes.py --data ytf68/train``.
"""

YUNET_MAP = BoxMap(x=0.0, y=0.11, width=1.0, height=0.78)
"""From boxes that reach from mid-forehead to chin, as in WIDER FACE. By proportion, not measured."""

YUNET_SOURCE = "https://github.com/opencv/opencv_zoo, models/face_detection_yunet (face_detection_yunet_2023mar.onnx)"
"""Where YuNet's weights are published."""

LARGEST_SEARCH = 1600
"""Longer side in pixels to which larger pictures are reduced for the search."""

ENLARGED_SEARCH = 1000
"""Longer side in pixels up to which smaller pictures are enlarged for the search, by 4 at most."""

_SAME_FACE = 0.3
"""Intersection over union from which two boxes are one face. A small box within a large one stays: where one
of the two is a false alarm, its trust will tell, and the true face must not be lost to it."""


def _search_scale(image: Image) -> float:
    """Search pixels per picture pixel."""
    longer = int(max(image.shape[:2]))
    return min(4.0, max(1.0, ENLARGED_SEARCH / longer), LARGEST_SEARCH / longer)


def _search_picture(image: Image, scale: float) -> tuple[Image, int]:
    """The picture at the scale of the search, with a border, and that border's width.

    Cascades and networks need some surroundings of a face, which tight crops lack: the edge is repeated.
    """
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    resized = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    border = math.ceil(0.25 * min(size))
    padded = cv2.copyMakeBorder(resized, border, border, border, border, cv2.BORDER_REPLICATE)
    return np.asarray(padded, dtype=np.uint8), border


def _keep_best(boxes: Boxes, scores: NDArray[np.float32], width: int, height: int) -> Faces:
    """Boxes large enough, centred inside the picture, and not on top of a better one."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centre >= 0) & (centre < (width, height))).all(axis=1)
    large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) >= SMALLEST_BOX
    boxes, scores = boxes[inside & large], scores[inside & large]
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(overlap(boxes[index], boxes[other]) < _SAME_FACE for other in kept):
            kept.append(int(index))
    return Faces(boxes[kept], scores[kept])


class HaarFinder:
    """OpenCV's bundled frontal-face cascade (``alt2``): no weights to get, faces from about 12 px.

    Small pictures are enlarged for the search, up to fourfold. Pictures whose longer side is above 1600 px are
    reduced to that: in one of 4800 px, faces under 70 px are missed. Full profiles and faces tilted
    far are missed at any size. Scores are the weight of the
    cascade's last stage, which tells faces from false alarms better than the number of overlapping hits.
    """

    def __init__(self) -> None:
        folder = Path(cv2.__file__).parent / "data"
        self._cascade = cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))

    def squares(self, image: Image) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """The cascade's own squares, before they become landmark boxes.

        Args:
            image: ``(h, w, 3)`` uint8 RGB.

        Returns:
            ``(n, 4)`` xyxy in picture pixels, and their ``(n,)`` scores, in no order.
        """
        scale = _search_scale(image)
        gray, border = _search_picture(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8), scale)
        smallest = math.floor(SMALLEST_BOX / max(HAAR_MAP.width, HAAR_MAP.height) * scale)
        found, _, weights = self._cascade.detectMultiScale3(
            gray, scaleFactor=1.1, minNeighbors=3, minSize=(smallest, smallest), outputRejectLevels=True
        )
        squares = np.reshape(np.asarray(found, dtype=np.float64), (-1, 4))
        squares[:, 2:] += squares[:, :2]
        return (squares - border) / scale, np.asarray(weights, dtype=np.float32).reshape(-1)

    def find(self, image: Image) -> Faces:
        """The faces of an ``(h, w, 3)`` uint8 RGB picture."""
        squares, scores = self.squares(image)
        return _keep_best(HAAR_MAP.apply(squares), scores, image.shape[1], image.shape[0])


class YuNetFinder:
    """YuNet, a small convolutional finder in OpenCV, from a user's ONNX file.

    Better than the cascade on turned and partly hidden faces. Its boxes reach up to the forehead; they are
    mapped to landmark boxes by typical proportions only, so expect an error of some percent of the face.
    Small pictures are enlarged and large ones reduced as for the cascade; scores are in 0..1.

    Args:
        weights: The ONNX file.

    Raises:
        ConfigError: If no file is given.
        WeightsError: If the file is missing or is not YuNet.
    """

    def __init__(self, weights: str | Path | None) -> None:
        if weights is None:
            raise ConfigError(f"finder yunet needs its weights: --finder-weights FILE, from {YUNET_SOURCE}")
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; --finder-weights takes the ONNX file from {YUNET_SOURCE}")
        try:
            self._network = cv2.FaceDetectorYN.create(str(path), "", (64, 64), score_threshold=0.6)
            # Another network's file loads, too; only running it shows that it is not YuNet.
            self._network.detect(np.zeros((64, 64, 3), dtype=np.uint8))
        except cv2.error as error:
            raise WeightsError(
                f"{path}: OpenCV cannot run it as YuNet ({error.err}); --finder-weights takes the ONNX file "
                f"from {YUNET_SOURCE}"
            ) from None

    def find(self, image: Image) -> Faces:
        """The faces of an ``(h, w, 3)`` uint8 RGB picture."""
        scale = _search_scale(image)
        search, border = _search_picture(np.asarray(image[..., ::-1], dtype=np.uint8), scale)
        self._network.setInputSize(search.shape[1::-1])
        _, found = self._network.detect(search)
        # Rows are x, y, width, height, five points (x, y), score.
        rows = np.zeros((0, 15)) if found is None else np.asarray(found, dtype=np.float64)
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        boxes = YUNET_MAP.apply((corners - border) / scale)
        return _keep_best(boxes, rows[:, -1].astype(np.float32), image.shape[1], image.shape[0])


class WholePicture:
    """No search: the picture is one face, cropped as in training (a square of 1.3 times the face's box).

    The box is the centred square whose crop is the whole picture. Pictures cut closer or wider than that give
    less precise points.
    """

    def find(self, image: Image) -> Faces:
        """The one box whose crop is the picture."""
        height, width = image.shape[:2]
        half = max(width, height) / MARGIN / 2
        box = [width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half]
        return Faces(np.array([box], dtype=np.float32), np.ones(1, dtype=np.float32))


FINDERS: dict[str, type[HaarFinder] | type[YuNetFinder] | type[WholePicture]] = {
    "haar": HaarFinder,
    "yunet": YuNetFinder,
    "none": WholePicture,
}
"""Face finders by the name that ``--finder`` takes."""


def create_finder(name: str, weights: str | Path | None = None) -> Finder:
    """A finder by name.

    Args:
        name: ``haar``, ``yunet`` or ``none``.
        weights: File of the finder's weights, for ``yunet``.

    Raises:
        ConfigError: If there is no finder of this name, it needs weights and none are given, or it takes none.
        WeightsError: If the weights cannot be read.
    """
    if name not in FINDERS:
        raise ConfigError(f"unknown face finder {name!r}; allowed: {', '.join(FINDERS)}")
    kind = FINDERS[name]
    if issubclass(kind, YuNetFinder):
        return kind(weights)
    if weights is not None:
        raise ConfigError(f"finder {name} takes no weights; leave out --finder-weights {weights}, or use yunet")
    return kind()
