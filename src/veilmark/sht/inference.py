"""From crops to predictions: the one place where a landmark network is run for its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veilmark.landmarks.schemes import get_scheme
from veilmark.sht.dhln import DHLNOutput
from veilmark.sht.samples import to_faces


@dataclass(frozen=True)
class Prediction:
    """What a network says about ``n`` crops. Coordinates are shares of the crop's side, 0 to 1.

    Attributes:
        points: ``(n, k, 2)``.
        expected_error: ``(n, k)``.
        trust: ``(n,)`` in [0, 1].
        faces: ``(n, size, size, 3)`` uint8 hallucinated faces, or None.
    """

    points: NDArray[np.float64]
    expected_error: NDArray[np.float64]
    trust: NDArray[np.float64]
    faces: NDArray[np.uint8] | None


def _both_ways(output: DHLNOutput, mirrored: DHLNOutput, mirror_index: Tensor, size: int) -> tuple[Tensor, ...]:
    """Means of what a network says of faces and of their mirror images, brought back."""
    returned = mirrored.points[:, mirror_index]
    returned = torch.stack([size - returned[..., 0], returned[..., 1]], dim=2)
    points = (output.points + returned) / 2
    claim = (output.expected_error + mirrored.expected_error[:, mirror_index]) / 2
    return points, claim, (output.trust_logit + mirrored.trust_logit) / 2


def predict(
    model: nn.Module,
    crops: NDArray[np.uint8],
    *,
    mirror: bool = True,
    hallucinate: bool = False,
    batch: int = 32,
    advance: Callable[[int], object] = lambda done: None,
) -> Prediction:
    """Runs a network in evaluation mode, batch by batch, on the device where it lies.

    Args:
        model: A network that answers with :class:`DHLNOutput` and has ``scheme`` and ``size``.
        crops: ``(n, s, s, 3)`` uint8 RGB crops of one side.
        mirror: Whether every face is looked at mirrored, too, and the two answers averaged: twice the time,
            smaller errors.
        hallucinate: Whether faces are wanted.
        batch: Faces at a time.
        advance: Called with the number of faces done after each batch.
    """
    device = next(model.parameters()).device
    size = int(model.size)  # type: ignore[arg-type]
    index = torch.as_tensor(get_scheme(str(model.scheme)).mirror_index, device=device)
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    faces: list[NDArray[np.uint8]] = []
    with torch.inference_mode():
        for start in range(0, len(crops), batch):
            inputs = to_faces(crops[start : start + batch]).to(device)
            output = model(inputs, hallucinate=hallucinate)
            painted = output.face
            if mirror:
                other = model(inputs.flip(3), hallucinate=hallucinate)
                points, claim, logit = _both_ways(output, other, index, size)
                if painted is not None:
                    painted = (painted + other.face.flip(3)) / 2
            else:
                points, claim, logit = output.points, output.expected_error, output.trust_logit
            parts.append((points.cpu() / size, claim.cpu() / size, logit.sigmoid().cpu()))
            if painted is not None:
                pixels = painted.clamp(0, 1).mul(255).round().to(torch.uint8)
                faces.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
            advance(len(inputs))
    if not parts:
        k = len(index)
        return Prediction(np.zeros((0, k, 2)), np.zeros((0, k)), np.zeros(0), None)
    found, claims, trust = (torch.cat(column).double().numpy() for column in zip(*parts, strict=True))
    return Prediction(found, claims, trust, np.concatenate(faces) if faces else None)
