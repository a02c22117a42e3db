"""The peer, MediaPipe FaceMesh: its environment, its points, and the script that runs in there.

    python peer_mediapipe.py pictures.npy points.npy

mediapipe 0.10.21 needs numpy below 2, so it lives in a virtual environment of its own, and this file imports
nothing of Veilmark. ``pictures.npy`` is ``(n, s, s, 3)`` uint8 RGB, one face each. ``points.npy`` becomes
``(n, 68, 2)`` float64: iBUG points as shares of the picture's width and height, corner origin, NaN for a picture
in which no face was found. ``points.json`` beside it holds the versions and the time of a face.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from peer_environment import call, environment

PEER = "mediapipe==0.10.21"
SHOWN = 512
"""Side in pixels to which a picture is enlarged (bicubic) before the peer sees it."""

_JAW = ((127,), (234,), (93,), (132, 58), (58, 172), (136,), (150,), (176,), (152,),
        (400,), (379,), (365,), (397, 288), (361,), (323,), (454,), (356,))  # fmt: skip
_BROWS = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
_BRIDGE = ((168, 6), (197, 195), (5,), (4,))
_NOSE_AND_EYES = (75, 97, 2, 326, 305, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380)
_LIPS = (61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91, 78, 82, 13, 312, 308, 317, 14, 87)
VERTICES: tuple[tuple[int, ...], ...] = (
    *_JAW, *((v,) for v in _BROWS), *_BRIDGE, *((v,) for v in _NOSE_AND_EYES), *((v,) for v in _LIPS)
)  # fmt: skip
"""Mesh vertices of each iBUG point, of two the mean: the correspondence of the package ``mediapipe2dlib``."""


def to_ibug68(mesh: NDArray[np.floating]) -> NDArray[np.float64]:
    """The 68 points of meshes ``(n, 468 or 478, 2)``: ``(n, 68, 2)`` in the same unit, NaN stays NaN."""
    return np.stack([mesh[:, list(own)].mean(axis=1) for own in VERTICES], axis=1).astype(np.float64)


def make_environment(folder: Path) -> Path:
    """The peer's virtual environment, of this very Python, made if it is not there; returns its Python.

    Raises:
        RuntimeError: If it cannot be made; the message holds the end of pip's output.
    """
    return environment(folder, [PEER])


def run_peer(python: Path, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Runs this file in the peer's environment.

    Args:
        python: The environment's Python.
        pictures: ``(n, s, s, 3)`` uint8 RGB.

    Returns:
        ``(n, 68, 2)`` shares of each picture, NaN where no face was found; versions and times.

    Raises:
        RuntimeError: If the script fails; the message holds the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "pictures.npy", Path(folder) / "points.npy"
        np.save(given, pictures)
        call([str(python), __file__, str(given), str(answer)])
        about: dict[str, Any] = json.loads(answer.with_suffix(".json").read_text(encoding="utf-8"))
        return np.load(answer, allow_pickle=False), about


def find_points(pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """What :func:`run_peer` returns, computed here: only where mediapipe is installed.

    Times are medians over the pictures in milliseconds, detector and mesh together, without the enlarging.
    """
    import mediapipe as mp  # type: ignore[import-not-found]

    points = np.full((len(pictures), len(VERTICES), 2), np.nan)
    wall, processor = [], []
    # Refined eyes and lips: fewer faces missed and a smaller error than without, so the better side of the peer.
    with mp.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True) as mesh:
        for row, picture in enumerate(pictures):
            shown = cv2.resize(picture, (SHOWN, SHOWN), interpolation=cv2.INTER_CUBIC)
            began, worked = time.perf_counter(), time.process_time()
            faces = mesh.process(shown).multi_face_landmarks
            wall.append(1000 * (time.perf_counter() - began))
            processor.append(1000 * (time.process_time() - worked))
            if faces:
                points[row] = to_ibug68(np.array([[(v.x, v.y) for v in faces[0].landmark]]))[0]
    about = {
        "mediapipe": mp.__version__,
        "python": platform.python_version(),
        "wall_ms": round(statistics.median(wall), 2),
        "processor_ms": round(statistics.median(processor), 2),
    }
    return points, about


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("points", type=Path)
    args = parser.parse_args()
    pictures = np.load(args.pictures, allow_pickle=False)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not len(pictures):
        parser.error(f"{args.pictures} holds {pictures.dtype} {pictures.shape}; expected uint8 (n, s, s, 3), n > 0")
    points, about = find_points(pictures)
    np.save(args.points, points)
    args.points.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
