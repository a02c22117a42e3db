"""Running FPTN for its answers: faces painted in other poses."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from veilmark.sht.fptn import FPTN
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
