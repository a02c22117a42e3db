"""DHLN, the Dual Hallucination Learning Network: landmarks and a high-resolution face from a small one.

The layers are this project's own reading of the SHT paper (arXiv 2601.12919), whose abstract gives the idea
but not the network. Two streams run through ``stages`` stages. The *structure* stream (an hourglass) yields
heatmaps; the *detail* stream (residual blocks, sub-pixel enlarging) yields the hallucinated face. In every
stage the heatmaps guide the detail stream, one attention map per facial component, and the detail features
enter the structure stream of the next stage. Every stage is supervised.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from veilmark.landmarks.heatmaps import decode
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError
from veilmark.sht.layers import ComponentAttention, DetailBlock, FinePainter, Hourglass, Norm, Painter, Stem, enlarge


class Stage(NamedTuple):
    """What one stage says about ``n`` faces; coordinates in pixels of the enlarged crop (``size``).

    Attributes:
        logits: ``(n, k, h, w)`` heatmap logits.
        points: ``(n, k, 2)`` landmarks.
        spread: ``(n, k)`` standard deviation of the heatmaps.
        face: ``(n, 3, size, size)`` hallucinated face in [0, 1] before clipping; None where it was skipped.
    """

    logits: Tensor
    points: Tensor
    spread: Tensor
    face: Tensor | None


class DHLNOutput(NamedTuple):
    """What DHLN says about ``n`` faces.

    Attributes:
        stages: One entry per stage; the last is the result.
        expected_error: ``(n, k)`` expected distance from the true point, in pixels of the enlarged crop.
        trust_logit: ``(n,)``; its sigmoid is the probability that this is a face and the fit makes sense.
    """

    stages: list[Stage]
    expected_error: Tensor
    trust_logit: Tensor

    def rows(self, start: int, stop: int) -> DHLNOutput:
        """What it says about some of the faces."""
        stages = []
        for logits, points, spread, face in self.stages:
            some = None if face is None else face[start:stop]
            stages.append(Stage(logits[start:stop], points[start:stop], spread[start:stop], some))
        return DHLNOutput(stages, self.expected_error[start:stop], self.trust_logit[start:stop])

    @property
    def points(self) -> Tensor:
        """Landmarks of the last stage, ``(n, k, 2)`` in pixels of the enlarged crop."""
        return self.stages[-1].points

    @property
    def face(self) -> Tensor | None:
        """Hallucinated face of the last stage, ``(n, 3, size, size)``."""
        return self.stages[-1].face


class ErrorHead(nn.Module):
    """Expected error per point, from how wide its heatmap is and how far the stages disagree.

    Args:
        points: Number of landmarks.
        stages: Number of stages that it compares.

    The inputs are detached: the claim must not change what it is a claim about.
    """

    calibration: Tensor

    def __init__(self, points: int, stages: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(points, 32))
        self.enter = nn.Linear(2 * stages - 1 + 2, 32)
        self.leave = nn.Linear(32, 1)
        # Fitted once after training, on people that no training saw: log error = a + b * log claim.
        self.register_buffer("calibration", torch.tensor([0.0, 1.0]))

    def forward(self, stages: list[Stage], size: int) -> Tensor:
        """Expected errors ``(n, k)`` in crop pixels."""
        spreads = [torch.log(stage.spread.detach() / size) for stage in stages]
        moves = [
            torch.log((b.points - a.points).detach().norm(dim=2) / size + 1e-3) for a, b in itertools.pairwise(stages)
        ]
        features = torch.stack(spreads + moves, dim=2)
        whole_face = features[..., len(stages) - 1 : len(stages)].mean(dim=1, keepdim=True)
        widest = features[..., len(stages) - 1 : len(stages)].amax(dim=1, keepdim=True)
        k = features.shape[1]
        features = torch.cat([features, whole_face.expand(-1, k, -1), widest.expand(-1, k, -1)], dim=2)
        claim = self.leave(nn.functional.silu(self.enter(features) + self.point)).squeeze(2) + spreads[-1]
        return torch.exp(self.calibration[0] + self.calibration[1] * claim) * size


_CARD = """---
{{ card_data }}
---

# DHLN

Facial landmarks, their expected errors and a hallucinated face, from faces of 16 to 128 px. Load with
`veilmark.Landmarker("THIS FOLDER")`, or `veilmark detect --weights THIS_FOLDER`.

A hallucinated face is the most likely one given the training faces: it is no evidence of anybody's looks.
The packaged weights were trained on frames of YouTube Faces (Wolf, Hassner and Maoz 2011), which are released for
research; take these weights as bound to the same use. Data, recipe and figures: `docs/model-card.md`.
"""


class DHLN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="veilmark",
    license="other",
    license_name="research-data",
    tags=["facial-landmarks", "face-hallucination"],
    model_card_template=_CARD,
):
    """Dual Hallucination Learning Network.

    The keyword arguments are the config: ``save_pretrained`` writes them to ``config.json`` beside the
    safetensors weights, ``from_pretrained`` builds the network from them.

    Args:
        scheme: Landmark scheme.
        size: Side in pixels of the hallucinated face, and of the grid that every input is enlarged to.
        trunk_stride: Pixels of that grid per cell of the streams: 2, 4 or 8.
        map_stride: Pixels of that grid per heatmap cell, at most ``trunk_stride``: 1, 2, 4 or 8.
        stages: Number of stages, at least 1.
        structure_widths: Channels of the structure stream, per hourglass level.
        detail_widths: Channels of the detail stream, at full and at half map size.
        painter_width: Channels of the last painter's first step.
        detail: Whether there is a detail stream at all; without it, "heatmaps only".
        heatmap_guidance: Whether heatmaps guide the detail stream.
        detail_guidance: Whether detail features enter the structure stream.

    Raises:
        ConfigError: If a value is out of its range.
    """

    mean_shape: Tensor

    def __init__(
        self,
        scheme: str = "ibug68",
        size: int = 128,
        trunk_stride: int = 8,
        map_stride: int = 4,
        stages: int = 2,
        structure_widths: tuple[int, ...] = (80, 128, 128),
        detail_widths: tuple[int, int] = (64, 96),
        painter_width: int = 32,
        detail: bool = True,
        heatmap_guidance: bool = True,
        detail_guidance: bool = True,
    ) -> None:
        super().__init__()
        if trunk_stride not in (2, 4, 8):
            raise ConfigError(f"trunk_stride is {trunk_stride}; allowed: 2, 4, 8")
        if map_stride not in (1, 2, 4, 8) or map_stride > trunk_stride:
            raise ConfigError(f"map_stride is {map_stride}; allowed: 1, 2, 4, 8, at most trunk_stride")
        if stages < 1:
            raise ConfigError(f"stages is {stages}; allowed: 1 or more")
        coarsest = trunk_stride * 2 ** max(1, len(structure_widths) - 1)
        if size % coarsest:
            raise ConfigError(
                f"size {size} is not divisible by {coarsest} (trunk_stride x 2 per hourglass level); "
                f"use {size + coarsest - size % coarsest}"
            )
        self.scheme, self.size, self.map_stride, self.finer = (
            scheme,
            size,
            map_stride,
            trunk_stride // map_stride,
        )
        definition = get_scheme(scheme)
        k = len(definition)
        width = structure_widths[0]
        self.structure_stem = Stem(width, trunk_stride, size // trunk_stride)
        self.structure = nn.ModuleList(Hourglass(tuple(structure_widths)) for _ in range(stages))
        self.heatmap = nn.ModuleList(
            nn.Sequential(Norm(width), nn.SiLU(), nn.Conv2d(width, k * self.finer**2, 1), nn.PixelShuffle(self.finer))
            for _ in range(stages)
        )
        self.again = nn.ModuleList(nn.Conv2d(k, width, 1) for _ in range(stages - 1))
        self.trust = nn.Linear(structure_widths[-1], 1)
        self.error = ErrorHead(k, stages)
        # The mean face of the training set as shares of the crop: the floor that every table shows.
        self.register_buffer("mean_shape", torch.full((k, 2), 0.5))
        self.detail: nn.ModuleList | None = None
        if detail:
            component_of = tuple(int(c) for c in definition.component_of)
            fine = detail_widths[0]
            self.detail_stem = Stem(fine, trunk_stride, size // trunk_stride, hidden=16)
            self.detail = nn.ModuleList(DetailBlock(*detail_widths) for _ in range(stages))
            self.paint = nn.ModuleList(Painter(fine, trunk_stride) for _ in range(stages - 1))
            self.finish = FinePainter(fine, trunk_stride, painter_width)
            if heatmap_guidance:
                self.guide = nn.ModuleList(ComponentAttention(fine, component_of) for _ in range(stages))
            if detail_guidance:
                self.inform = nn.ModuleList(nn.Conv2d(fine, width, 1) for _ in range(stages - 1))
        self.heatmap_guidance, self.detail_guidance = heatmap_guidance, detail_guidance

    @property
    def hallucinates(self) -> bool:
        """Whether there is a detail stream, which makes faces."""
        return self.detail is not None

    def forward(self, faces: Tensor, hallucinate: bool = True) -> DHLNOutput:
        """Landmarks, their expected error and the hallucinated face.

        Args:
            faces: ``(n, 3, s, s)`` in [0, 1]; enlarged inside by
                :func:`veilmark.sht.layers.enlarge`.
            hallucinate: Whether to paint the faces. Detail features that the structure stream reads are
                computed either way.

        Returns:
            The output of every stage; see :class:`DHLNOutput`.
        """
        grid = enlarge(faces, self.size)
        centred = (4 * (grid - 0.5)).contiguous(memory_format=torch.channels_last)
        structure = self.structure_stem(centred)
        detail = self.detail_stem(centred) if self.detail is not None else None
        stages: list[Stage] = []
        for t, hourglass in enumerate(self.structure):
            structure, bottom = hourglass(structure)
            last = t == len(self.structure) - 1
            # Sums over maps are several times as fast where a map lies in one piece.
            logits = self.heatmap[t](structure).contiguous()
            points, spread, probability = decode(logits, self.map_stride)
            coarse = nn.functional.avg_pool2d(probability, self.finer).to(structure.dtype)
            coarse = coarse.contiguous(memory_format=torch.channels_last)
            face = None
            if detail is not None and self.detail is not None and (hallucinate or not last):
                if self.heatmap_guidance:
                    detail = self.guide[t](detail, coarse)
                detail = self.detail[t](detail)
                if hallucinate:
                    painted = self.finish(detail, centred) if last else self.paint[t](detail)
                    face = grid + painted.float()
            stages.append(Stage(logits, points, spread, face))
            if not last:
                # A map sums to 1 over all cells: scaled so that a sharp peak is about 1.
                structure = structure + self.again[t](coarse * self.finer**2)
                if detail is not None and self.detail_guidance:
                    structure = structure + self.inform[t](detail)
        trust_logit = self.trust(bottom.mean(dim=(2, 3))).squeeze(1).float()
        return DHLNOutput(stages, self.error(stages, self.size), trust_logit)
