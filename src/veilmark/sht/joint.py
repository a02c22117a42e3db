"""The joint step of SHT: labelled faces teach landmarks, pairs of unlabelled faces hold them to the picture.

Every step carries a labelled batch: transfer alone asks for consistency, not for meaning, and landmarks could
drift together. A pair (A, B) shows one person twice. Both faces are degraded, found and hallucinated; FPTN then
paints the hallucinated A in the pose of B and is held against the real B. The landmarks of B learn from how well
that goes, those of A do not: gradients stop on one side of the pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from veilmark.sht.dhln import DHLN, DHLNOutput
from veilmark.sht.discriminators import Discriminators, discriminator_loss, generator_loss
from veilmark.sht.fptn import FPTN, Transfer
from veilmark.sht.losses import Batch, DHLNLoss, Losses, shares


@dataclass(frozen=True)
class JointBatch:
    """What a joint step sees.

    Attributes:
        labelled: Labelled faces.
        pairs: Faces without labels: the first half are A, the second half B, in the same order. ``labelled``
            there marks faces whose ``points`` are pseudo labels.
    """

    labelled: Batch
    pairs: Batch

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What goes through the network."""
        return (self.labelled.grid, self.pairs.grid)

    def to(self, device: torch.device) -> JointBatch:
        """The batch on another device."""
        return JointBatch(self.labelled.to(device), self.pairs.to(device))


class JointOutput(NamedTuple):
    """What both networks say.

    Attributes:
        labelled: DHLN on the labelled faces.
        pairs: DHLN on the pairs, A before B.
        transfer: FPTN's faces of A in the pose of B.
        maps: ``(m, k, h, h)`` the landmarks of B as FPTN saw them.
    """

    labelled: DHLNOutput
    pairs: DHLNOutput
    transfer: Transfer
    maps: Tensor


class SHT(nn.Module):
    """DHLN and FPTN as one network, so that one backward pass reaches both.

    Args:
        dhln: Finds landmarks and hallucinates.
        fptn: Transfers poses.
    """

    def __init__(self, dhln: DHLN, fptn: FPTN) -> None:
        super().__init__()
        self.dhln, self.fptn = dhln, fptn

    def forward(self, labelled: Tensor, pairs: Tensor) -> JointOutput:
        """Runs both networks.

        Args:
            labelled: ``(n, 3, size, size)`` degraded labelled faces, enlarged to the grid.
            pairs: ``(2 m, 3, size, size)`` degraded faces of pairs, A before B.
        """
        everything: DHLNOutput = self.dhln(torch.cat([labelled, pairs]))
        n, m = len(labelled), len(pairs) // 2
        of_pairs = everything.rows(n, n + 2 * m)
        source, target = of_pairs.points[:m].detach(), of_pairs.points[m:]
        if of_pairs.face is None:
            raise ValueError("a joint step transfers hallucinated faces; this DHLN has no detail stream")
        transfer = self.fptn(of_pairs.face[:m].clamp(0, 1), source, target)
        return JointOutput(everything.rows(0, n), of_pairs, transfer, self.fptn.render(target.detach()))


class JointWeights(BaseModel):
    """How much the losses on pairs count, beside the labelled batch's, which count in full.

    Attributes:
        transfer: All of transfer: pixels, structure and the discriminators.
        structure: Structural dissimilarity within transfer, beside the mean absolute error.
        adversarial: The discriminators' share within transfer.
        hallucination: Hallucination of the pairs' faces, beside that of labelled faces.
        teacher: Pseudo labels of the averaged network, which sees the pair's faces before degradation.
        confident: Pairs and pseudo labels count where the expected error is below this share of the crop's
            side, and trust is above one half.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    transfer: float = Field(0.15, ge=0)
    structure: float = Field(0.25, ge=0)
    adversarial: float = Field(0.01, ge=0)
    hallucination: float = Field(0.5, ge=0)
    teacher: float = Field(0.0, ge=0)
    confident: float = Field(0.04, gt=0)


def confident(output: DHLNOutput, size: int, limit: float) -> Tensor:
    """Which faces the network is sure of, ``(n,)`` bool: trust above one half, expected error below the limit.

    Args:
        output: DHLN's answer.
        size: Side of the grid in pixels.
        limit: Largest mean expected error as a share of the side.
    """
    error = output.expected_error.detach().mean(dim=1) / size
    return (output.trust_logit.detach() > 0) & (error < limit)


def structural_dissimilarity(faces: Tensor, truth: Tensor) -> Tensor:
    """``(1 - SSIM) / 2`` per face, ``(n,)``, data range 1 (Wang et al. 2004; torchmetrics' implementation)."""
    similarity = structural_similarity_index_measure(faces, truth, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return (1 - similarity) / 2


class JointLoss:
    """The sum of all losses of a joint step; also trains the discriminators (see ``Trainer``'s ``critic``).

    Args:
        labelled: The losses of DHLN, for labelled faces and for hallucination.
        weights: How much the pairs count.
        network: The discriminators.
    """

    def __init__(self, labelled: DHLNLoss, weights: JointWeights, network: Discriminators) -> None:
        self.network: nn.Module
        self.dhln, self.weights, self.network = labelled, weights, network

    def __call__(self, output: JointOutput, batch: JointBatch) -> Losses:
        """The losses of one batch."""
        weights, m = self.weights, len(output.transfer.face)
        base = self.dhln(output.labelled, batch.labelled)
        pairs, known = self.dhln.parts(output.pairs, batch.pairs), self.dhln.weights
        sure = confident(output.pairs, self.dhln.size, weights.confident)
        both = sure[:m] & sure[m:]
        share = shares(both)
        truth, painted = batch.pairs.target[m:], output.transfer.face
        pixels = (share * (painted - truth).abs().mean(dim=(1, 2, 3))).sum()
        structure = (share * structural_dissimilarity(painted, truth)).sum()
        # In units of 5 % of the brightness range, as landmark errors are in units of 5 % of the eyes' distance.
        transfer = (pixels + weights.structure * structure) / 0.05
        parts = {"transfer": pixels, "structure": structure, "confident": both.float().mean()}
        if weights.adversarial:
            self.network.requires_grad_(False)
            verdicts = self.network(painted, batch.pairs.target[:m], output.maps)
            self.network.requires_grad_(True)
            parts["adversarial"] = generator_loss(verdicts)
            transfer = transfer + weights.adversarial / 0.05 * parts["adversarial"]
        total = base.total + weights.transfer * transfer + weights.hallucination * known.face * pairs["face"]
        if weights.teacher:
            parts["teacher"] = known.points * pairs["points"] + known.heatmaps * pairs["heatmaps"]
            total = total + weights.teacher * parts["teacher"]
        return Losses(total, base.parts | {name: value.detach() for name, value in parts.items()})

    def loss(self, network: nn.Module, output: JointOutput, batch: JointBatch) -> Tensor:
        """What the discriminators minimise: the real B against the painted one."""
        m = len(output.transfer.face)
        look, maps = batch.pairs.target[:m], output.maps.detach()
        faces = torch.cat([batch.pairs.target[m:], output.transfer.face.detach()])
        real, painted = network(faces, torch.cat([look, look]), torch.cat([maps, maps])).chunk(2)
        return discriminator_loss(real, painted)


def add_pseudo_labels(average: SHT, batch: JointBatch, limit: float) -> JointBatch:
    """Gives the pairs' faces the points that the averaged network finds before degradation, where it is sure.

    Args:
        average: The moving average of the network, the teacher.
        batch: A joint batch.
        limit: As :class:`JointWeights.confident`.
    """
    with torch.no_grad():
        said = average.dhln(batch.pairs.target, hallucinate=False)
    sure = confident(said, average.dhln.size, limit)
    return JointBatch(batch.labelled, replace(batch.pairs, points=said.points, labelled=sure))
