"""Running FPTN for its answers: faces painted in other poses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from veilmark.faces.crop import BoxError
from veilmark.faces.images import read_image, write_png
from veilmark.run.errors import ConfigError, DataError
from veilmark.sht.fptn import FPTN
from veilmark.sht.landmarker import Landmarker
from veilmark.sht.samples import to_faces


def paint_transfer(
    model: FPTN,
    faces: NDArray[np.uint8],
    source: NDArray[np.floating],
    target: NDArray[np.floating],
    batch: int = 32,
) -> NDArray[np.uint8]:
    """Paints faces of A in the pose of B.

    Args:
        model: The network, on the device where it is to run.
        faces: ``(n, size, size, 3)`` uint8 faces of A.
        source: ``(n, k, 2)`` landmarks of A as shares of the crop's side.
        target: ``(n, k, 2)`` landmarks of B as shares of its crop's side.
        batch: Faces at a time.

    Returns:
        ``(n, size, size, 3)`` uint8.
    """
    device = next(model.parameters()).device
    painted = [np.zeros((0, model.size, model.size, 3), dtype=np.uint8)]
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(faces), batch):
            part = slice(start, start + batch)
            points = [
                torch.as_tensor(np.asarray(p[part]) * model.size, dtype=torch.float32, device=device)
                for p in (source, target)
            ]
            said = model(to_faces(faces[part]).to(device), *points).face
            pixels = said.clamp(0, 1).mul(255).round().to(torch.uint8)
            painted.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(painted)


@dataclass(frozen=True)
class Painted:
    """The face of picture A in the pose of picture B, and what it was made from.

    Attributes:
        face: ``(size, size, 3)`` uint8, the painting.
        strip: ``(size, 4 * size, 3)`` uint8: A | A hallucinated | the painting | B.
        trust: How much the faces of A and B are trusted to be faces, 0 to 1.
    """

    face: NDArray[np.uint8]
    strip: NDArray[np.uint8]
    trust: tuple[float, float]


def transfer_pictures(landmarker: Landmarker, painter: FPTN, a: Path, b: Path) -> Painted:
    """Paints the most trusted face of A in the pose of the most trusted face of B.

    Args:
        landmarker: Finds the faces and hallucinates that of A.
        painter: The pose transfer network, on any device.
        a: Picture whose face is painted.
        b: Picture that gives the pose.

    Raises:
        ConfigError: If the networks do not fit together.
        ImageError: If a picture cannot be read.
        DataError: If a picture has no usable face; the message names it.
    """
    model = landmarker.model
    for option in ("scheme", "size"):
        found, wanted = getattr(model, option), getattr(painter, option)
        if found != wanted:
            raise ConfigError(
                f"the landmark network's {option} is {found}, the transfer network's {wanted}; give --weights and "
                "--transfer-weights of one training"
            )
    if not model.hallucinates:
        raise ConfigError("these landmark weights hallucinate no faces (detail is false); give others by --weights")
    crops, points, trust, looks = [], [], [], []
    for path in (a, b):
        image = read_image(path)
        try:
            seen = landmarker.detect([image], hallucinate=True)[0]
        except BoxError as error:
            raise DataError(f"{path}: {error}; give a picture in which the face is larger") from None
        if seen.faces is None:
            raise DataError(
                f"{path}: no face found; give another picture, or --finder none if it is the crop of a face"
            )
        crop = seen.crops[0]
        crops.append(crop.sample(image))
        points.append(crop.to_crop(seen.landmarks.points[0]) / crop.size)
        trust.append(float(seen.landmarks.trust[0]))
        looks.append(seen.faces[0])
    face = paint_transfer(painter, looks[0][None], points[0][None], points[1][None])[0]
    return Painted(face, np.hstack([crops[0], looks[0], face, crops[1]]), (trust[0], trust[1]))


def write_painted(painted: Painted, out: Path, sheet: bool) -> list[Path]:
    """Writes the painting as PNG and, where it is wanted, the strip beside it.

    Args:
        painted: The painting.
        out: The file.
        sheet: Whether to write ``<out>-sheet.png``, too.

    Returns:
        The files that were written.

    Raises:
        ImageError: If a file cannot be written.
    """
    pictures = dict(zip(outputs(out, sheet), (painted.face, painted.strip), strict=False))
    for path, picture in pictures.items():
        write_png(path, picture)
    return list(pictures)


def outputs(out: Path, sheet: bool) -> list[Path]:
    """The files that :func:`write_painted` writes: the painting, then the strip if it is wanted."""
    return [out, out.with_name(f"{out.stem}-sheet.png")] if sheet else [out]


def check_outputs(out: Path, sheet: bool, inputs: list[Path]) -> None:
    """Refuses, before any work, files that could not or must not be written.

    Args:
        out: The painting's file.
        sheet: Whether the strip is wanted, too.
        inputs: Pictures that must stay as they are.

    Raises:
        DataError: If ``out`` is no PNG, its folder is missing, or a file is one of the inputs or a folder.
    """
    if out.suffix.lower() != ".png":
        raise DataError(f"--out {out}: expected a name that ends in .png")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    for path in outputs(out, sheet):
        if path.is_dir():
            raise DataError(f"--out {out}: {path} is a folder; name a file")
        if path.exists() and any(other.exists() and path.samefile(other) for other in inputs):
            raise DataError(f"--out {out}: {path} is one of the input pictures; choose another name")
