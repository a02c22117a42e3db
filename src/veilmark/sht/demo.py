"""``veilmark demo``: landmarks on real pictures that arrive with the dependencies, at several sizes."""

from __future__ import annotations

import datetime
import os
import platform
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

import veilmark
from veilmark.faces.crop import MARGIN, Crop
from veilmark.faces.degrade import shrink
from veilmark.faces.images import write_png
from veilmark.landmarks.draw import draw_landmarks
from veilmark.landmarks.metrics import psnr
from veilmark.landmarks.result import Landmarks
from veilmark.run.folder import write_json
from veilmark.run.progress import progress_bar
from veilmark.sht.inference import Prediction, predict
from veilmark.sht.landmarker import Landmarker
from veilmark.sht.pretrained import weights_folder

SIZES = (16, 24, 32, 64, 128)
"""Face sizes of the photograph."""

SMALL_FACES = 4
"""How many of scikit-image's 25-px face crops are shown."""

_OVERLAY = 384


def photograph() -> NDArray[np.uint8]:
    """scikit-image's photograph of the astronaut Eileen Collins (NASA, public domain), ``(512, 512, 3)``."""
    return np.asarray(skimage.data.astronaut(), dtype=np.uint8)  # type: ignore[no-untyped-call]


def small_faces(count: int) -> NDArray[np.uint8]:
    """The first face crops of scikit-image's ``lfw_subset``, ``(count, 25, 25, 3)``, gray."""
    gray = np.asarray(skimage.data.lfw_subset()[:count])  # type: ignore[no-untyped-call]
    return np.repeat(np.round(gray * 255).astype(np.uint8)[..., None], 3, axis=3)


def _row(
    out: Path, stem: str, small: NDArray[np.uint8], looked: Prediction, reference: NDArray[np.uint8] | None, scheme: str
) -> dict[str, Any]:
    """Writes the pictures of one face at one size, and says what was found. Points are shares of the side."""
    size = small.shape[0]
    points, claims, trust = looked.points[0], looked.expected_error[0], looked.trust[0]
    hallucinated = small if looked.faces is None else looked.faces[0]

    def overlay(picture: NDArray[np.uint8], kernel: int) -> NDArray[np.uint8]:
        canvas = np.asarray(cv2.resize(picture, (_OVERLAY, _OVERLAY), interpolation=kernel), dtype=np.uint8)
        boxes = np.array([[0, 0, _OVERLAY, _OVERLAY]])
        on_canvas = Landmarks(points[None] * _OVERLAY, claims[None] * _OVERLAY, np.array([trust]), boxes, scheme)
        return draw_landmarks(canvas, on_canvas, scale=1, boxes=False)

    pictures = {
        "input": small,
        "hallucinated": hallucinated,
        "overlay_input": overlay(small, cv2.INTER_NEAREST),
        "overlay_hallucinated": overlay(hallucinated, cv2.INTER_CUBIC),
    }
    row: dict[str, Any] = {"size": size}
    for name, picture in pictures.items():
        row[name] = f"faces/{stem}_{size}_{name}.png"
        write_png(out / row[name], picture)
    a, b = Landmarks.empty(scheme).definition.inter_ocular
    row["inter_ocular"] = float(np.linalg.norm(points[a] - points[b]))
    row["trust"] = float(trust)
    row["expected_error_percent"] = 100 * float(claims.mean()) / row["inter_ocular"]
    row["psnr"] = row["bicubic_psnr"] = None
    if reference is not None and size < reference.shape[0]:
        side = reference.shape[:2]
        row["psnr"] = psnr(hallucinated, reference)
        row["bicubic_psnr"] = psnr(cv2.resize(small, side, interpolation=cv2.INTER_CUBIC), reference)
    return row


def run_demo(out: Path, weights: str, device: str) -> dict[str, Any]:
    """Runs the demo and writes ``summary.json`` and its pictures.

    Args:
        out: Run folder.
        weights: Name of packaged weights, a folder, or ``hub:owner/name``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The summary, as written.
    """
    began = time.monotonic()
    landmarker = Landmarker(weights, "haar", device=device)
    model, scheme = landmarker.model, landmarker.model.scheme
    (out / "faces").mkdir(parents=True, exist_ok=True)
    faces: list[dict[str, Any]] = []
    with progress_bar("looks") as bar:
        task = bar.add_task("demo", total=len(SIZES) + SMALL_FACES, note="")
        photo = photograph()
        found = landmarker(photo)
        x0, y0, x1, y1 = found.boxes[0]
        reference = Crop.from_box((x0, y0, x1, y1), MARGIN, model.size).sample(photo)
        rows, shapes = [], []
        for size in SIZES:
            small = shrink(reference, size)
            looked = predict(model, small[None], hallucinate=True)
            rows.append(_row(out, "astronaut", small, looked, reference, scheme))
            shapes.append(looked.points[0])
            bar.advance(task)
        for row, shape in zip(rows, shapes, strict=True):
            moved = float(np.linalg.norm(shape - shapes[-1], axis=1).mean())
            row["shift_percent"] = None if row is rows[-1] else 100 * moved / rows[-1]["inter_ocular"]
        source = "scikit-image, astronaut(): Eileen Collins, photograph by NASA, public domain"
        faces.append({"name": "astronaut", "source": source, "rows": rows})
        for number, face in enumerate(small_faces(SMALL_FACES), start=1):
            looked = predict(model, face[None], hallucinate=True)
            row = _row(out, f"lfw{number}", face, looked, None, scheme) | {"shift_percent": None}
            faces.append({"name": f"25-px face {number}", "source": "scikit-image, lfw_subset()", "rows": [row]})
            bar.advance(task)
    tensors = weights_folder(weights) / "model.safetensors"
    summary = {
        "title": "Landmarks from faces too small to see",
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": veilmark.__version__,
        "weights": {
            "name": weights,
            "parameters": sum(p.numel() for p in model.parameters()),
            "megabytes": round(tensors.stat().st_size / 1e6, 2),
        },
        "seconds": round(time.monotonic() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {landmarker.device}",
        "faces": faces,
    }
    write_json(out / "summary.json", summary)
    return summary
