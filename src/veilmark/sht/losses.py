"""The losses of SHT: one small function each, and their sum for the training of DHLN.

All distances are in pixels of the enlarged crop; faces are in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from veilmark.landmarks.heatmaps import gaussian_maps
from veilmark.landmarks.schemes import get_scheme
from veilmark.sht.dhln import DHLNOutput


@dataclass(frozen=True)
class Batch:
    """Training faces.

    Attributes:
        grid: ``(n, 3, size, size)`` degraded faces in [0, 1], enlarged to the network's grid.
        target: ``(n, 3, size, size)`` the same crops before degradation.
        points: ``(n, k, 2)`` landmarks in pixels of the grid; zeros where there are none.
        labelled: ``(n,)`` bool: whether ``points`` counts.
        is_face: ``(n,)`` bool: False for crops that show no face, or only a part of one.
        visible: ``(n, k)`` bool: which landmarks count; all, where it is left out.
    """

    grid: Tensor
    target: Tensor
    points: Tensor
    labelled: Tensor
    is_face: Tensor
    visible: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What goes through the network."""
        return (self.grid,)

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        tensors = (self.grid, self.target, self.points, self.labelled, self.is_face, self.visible)
        return Batch(*(None if tensor is None else tensor.to(device, non_blocking=True) for tensor in tensors))  # type: ignore[arg-type]

    def over_points(self, values: Tensor) -> Tensor:
        """Means ``(n,)`` of ``(n, k)`` values over each face's visible landmarks."""
        if self.visible is None:
            return values.mean(dim=1)
        seen = self.visible.to(values.dtype)
        return (values * seen).sum(dim=1) / seen.sum(dim=1).clamp_min(1)


def point_distance(points: Tensor, target: Tensor) -> Tensor:
    """Distance per point with a gradient that fades within a quarter of a pixel: ``(n, k)``.

    A pseudo-Huber norm, ``sqrt(d^2 + 1/16) - 1/4``: linear far away as the metric is, smooth at zero.
    """
    return ((points - target).square().sum(dim=-1) + 0.0625).sqrt() - 0.25


def heatmap_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between target maps, each summing to 1, and the softmax of ``logits``: ``(n, k)``."""
    return -(target.flatten(2) * logits.flatten(2).log_softmax(dim=2, dtype=target.dtype)).sum(dim=2)


def pixel_loss(face: Tensor, target: Tensor, level: float) -> Tensor:
    """Negative PSNR per face in dB, levelling off at ``level`` dB, ``(n,)``.

    ``10 log10(mse + 10 ** (-level / 10))``. Where the level is high, large faces, which bicubic enlarging
    already restores well, rule the gradient by their small errors; where it is low, this is the plain MSE.
    """
    return 10 * torch.log10((face - target).square().mean(dim=(1, 2, 3)) + 10 ** (-level / 10))


def claim_loss(claim: Tensor, distance: Tensor) -> Tensor:
    """``log c + d / c``: least, in expectation, where the claim ``c`` is the mean distance ``d``."""
    return claim.log() + distance / claim


class Weights(BaseModel):
    """How much each loss counts.

    Attributes:
        points: Mean distance over inter-ocular distance, in units of 5 %.
        heatmaps: Cross-entropy to Gaussians of one map cell.
        face: Negative PSNR of the hallucinated face, in dB.
        face_level: PSNR in dB at which that loss levels off.
        claim: Expected error; its inputs are detached.
        trust: Binary cross-entropy of "this is a face".
        early: Weight of every stage before the last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    points: float = Field(1.0, ge=0)
    heatmaps: float = Field(0.6, ge=0)
    face: float = Field(0.1, ge=0)
    face_level: float = Field(34.0, gt=0)
    claim: float = Field(0.1, ge=0)
    trust: float = Field(0.1, ge=0)
    early: float = Field(0.5, ge=0)


def shares(counts: Tensor) -> Tensor:
    """Weights by which a sum over faces becomes the mean over those that count: ``(n,)`` bool to float.

    Gradients are averaged over the processes of a distributed training. So the count is its mean over processes:
    the mean of their sums is then the mean over the faces of all, however unevenly labels are spread.
    """
    weights = counts.float()
    count = weights.sum()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return weights / count.clamp_min(1e-6)


class Losses(NamedTuple):
    """The total, which is minimised, and its parts by name."""

    total: Tensor
    parts: dict[str, Tensor]


_TYPICAL_EYES = 0.4
"""Inter-ocular distance of a face whose eye corners are not both seen, as a share of the crop's side: about that of a
head turned by 30 to 45 degrees."""


class DHLNLoss:
    """Supervises every stage of DHLN.

    Args:
        weights: How much each loss counts.
        scheme: Landmark scheme, for the inter-ocular distance.
        size: Side of the grid in pixels.
        map_stride: Pixels per heatmap cell.
    """

    def __init__(self, weights: Weights, scheme: str, size: int, map_stride: int) -> None:
        self.weights, self.size, self.map_stride = weights, size, map_stride
        self.eyes = get_scheme(scheme).inter_ocular

    def __call__(self, output: DHLNOutput, batch: Batch) -> Losses:
        """The losses of one batch. Faces without labels count in the hallucination only, no-faces in trust only."""
        parts = self.parts(output, batch)
        zero = output.expected_error.new_zeros(())
        total = sum((getattr(self.weights, name) * value for name, value in parts.items()), start=zero)
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def parts(self, output: DHLNOutput, batch: Batch) -> dict[str, Tensor]:
        """Every part before it is weighed: points, heatmaps, face, claim, trust."""
        weights, last = self.weights, len(output.stages) - 1
        share = shares(batch.labelled & batch.is_face)
        painted = shares(batch.is_face)
        a, b = self.eyes
        # The floor keeps single profile faces, whose eye corners nearly meet, from ruling a batch.
        inter_ocular = (batch.points[:, a] - batch.points[:, b]).norm(dim=1).clamp_min(0.15 * self.size)
        if batch.visible is not None:
            # A guessed eye corner must not scale the errors of the points that are seen.
            eyes_seen = batch.visible[:, a] & batch.visible[:, b]
            inter_ocular = torch.where(eyes_seen, inter_ocular, _TYPICAL_EYES * self.size)
        maps = gaussian_maps(
            batch.points, output.stages[0].logits.shape[-1], self.map_stride, sigma=float(self.map_stride)
        )
        zero = output.expected_error.new_zeros(())
        parts = dict.fromkeys(("points", "heatmaps", "face"), zero)
        for t, stage in enumerate(output.stages):
            weight = 1.0 if t == last else weights.early
            distance = batch.over_points(point_distance(stage.points, batch.points))
            parts["points"] = parts["points"] + weight * (share * distance / inter_ocular).sum() / 0.05
            entropy = batch.over_points(heatmap_cross_entropy(stage.logits, maps))
            parts["heatmaps"] = parts["heatmaps"] + weight * (share * entropy).sum()
            if stage.face is not None:
                parts["face"] = (
                    parts["face"] + weight * (painted * pixel_loss(stage.face, batch.target, weights.face_level)).sum()
                )
        distance = (output.points.detach() - batch.points).norm(dim=2)
        parts["claim"] = (share * batch.over_points(claim_loss(output.expected_error, distance))).sum()
        parts["trust"] = torch.nn.functional.binary_cross_entropy_with_logits(output.trust_logit, batch.is_face.float())
        return parts
