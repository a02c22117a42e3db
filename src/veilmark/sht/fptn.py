"""FPTN, the Facial Pose Transfer Network: the face of A in the pose of B.

The layers are this project's own reading of the SHT paper (arXiv 2601.12919). Of B, the network is told nothing
but where its landmarks are: they pass through a *geometric bottleneck*, Gaussians rendered anew from the points,
since heatmaps as they are would smuggle appearance. A thin-plate spline through the landmarks moves the pixels of
A first. Then *pose-attention blocks* (after Zhu et al. 2019, progressive pose attention) run: an image stream
and a pose stream that update each other. Last, the move is corrected and what no pixel of A shows is painted.
The whole is differentiable in the landmarks of B, which is how unlabelled faces teach a landmark network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from veilmark.landmarks.heatmaps import cell_centres, gaussian_maps
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError
from veilmark.sht.layers import FinePainter, Norm, Residual, Stem

STIFFNESS = 1e-3
"""Weight of the spline's bending energy: landmarks are a pixel or two off, and the face must not fold for that."""


def spline_move(target: Tensor, source: Tensor, cells: int, size: float) -> Tensor:
    """Where each cell of the moved picture comes from, by a thin-plate spline (Bookstein 1989).

    Args:
        target: ``(n, k, 2)`` points in the moved picture, in pixels.
        source: ``(n, k, 2)`` the same points in the picture that is moved.
        cells: Cells along each axis of the result.
        size: Side of both pictures in pixels. Eight points on the border stay where they are.

    Returns:
        ``(n, 2, cells, cells)``: x and y of the source minus those of the cell's centre, as shares of the side.
        Differentiable in both sets of points.
    """
    n = len(target)
    edge = torch.tensor([0.0, 0.5, 1.0], device=target.device, dtype=target.dtype)
    y, x = torch.meshgrid(edge, edge, indexing="ij")
    border = torch.stack([x, y], dim=2).reshape(9, 2)[[0, 1, 2, 3, 5, 6, 7, 8]].expand(n, -1, -1)
    to = torch.cat([target / size, border], dim=1)
    move = torch.cat([(source - target) / size, torch.zeros_like(border)], dim=1)
    m = to.shape[1]
    system = to.new_zeros(n, m + 3, m + 3)
    system[:, :m, :m] = _bend(to, to) + STIFFNESS * torch.eye(m, device=to.device, dtype=to.dtype)
    ones = to.new_ones(n, m, 1)
    affine = torch.cat([ones, to], dim=2)
    system[:, :m, m:], system[:, m:, :m] = affine, affine.transpose(1, 2)
    wanted = torch.cat([move, move.new_zeros(n, 3, 2)], dim=1)
    coefficients = torch.linalg.solve(system, wanted)
    centre = cell_centres(cells, 1 / cells, to)
    rows, columns = torch.meshgrid(centre, centre, indexing="ij")
    places = torch.stack([columns, rows], dim=2).reshape(1, -1, 2).expand(n, -1, -1)
    basis = torch.cat([_bend(places, to), places.new_ones(n, cells * cells, 1), places], dim=2)
    field: Tensor = basis @ coefficients
    return field.transpose(1, 2).reshape(n, 2, cells, cells)


def _bend(a: Tensor, b: Tensor) -> Tensor:
    """The spline's kernel r^2 log r between all points: ``(n, p, 2)`` and ``(n, q, 2)`` to ``(n, p, q)``."""
    square = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(dim=3)
    return 0.5 * square * (square + 1e-9).log()


def move_pixels(picture: Tensor, move: Tensor) -> Tensor:
    """The picture ``(n, c, s, s)`` sampled at every pixel's place plus ``move (n, 2, h, h)``, shares of the side."""
    side = picture.shape[2]
    fine = nn.functional.interpolate(move, (side, side), mode="bilinear", align_corners=False)
    centre = cell_centres(side, 1 / side, fine)
    rows, columns = torch.meshgrid(centre, centre, indexing="ij")
    places = torch.stack([columns, rows]) + fine
    return nn.functional.grid_sample(
        picture, 2 * places.permute(0, 2, 3, 1) - 1, mode="bilinear", padding_mode="border", align_corners=False
    )


class PoseAttention(nn.Module):
    """One step of the transfer: the pose says where the image changes, the image says what the pose means.

    Args:
        channels: Channels of either stream.
        answers: Whether the image is told to the pose; nobody would hear it after the last step.
    """

    def __init__(self, channels: int, answers: bool = True) -> None:
        super().__init__()
        self.image, self.pose = Residual(channels), Residual(channels)
        self.attention = nn.Sequential(Norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 1), nn.Sigmoid())
        self.update = nn.Conv2d(2 * channels, channels, 1) if answers else None

    def forward(self, image: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Maps both streams ``(n, c, h, w)`` to the same shapes."""
        pose = self.pose(pose)
        image = image + self.attention(pose) * self.image(image)
        if self.update is not None:
            pose = pose + self.update(torch.cat([pose, image], dim=1))
        return image, pose


class Transfer(NamedTuple):
    """The face of A in the pose of B.

    Attributes:
        face: ``(n, 3, size, size)`` in [0, 1] before clipping.
        moved: ``(n, 3, size, size)`` the pixels of A that were moved there, before anything was painted.
    """

    face: Tensor
    moved: Tensor


_CARD = """---
{{ card_data }}
---

# FPTN

The face of one picture in the pose of another. Use with
`veilmark transfer A.jpg B.jpg --transfer-weights THIS_FOLDER`.

A transferred face is a painting after A, and no evidence of what anybody looked like or did. The packaged weights
were trained on frames of YouTube Faces (Wolf, Hassner and Maoz 2011), which are released for research; take these
weights as bound to the same use. Data, recipe and figures: `docs/model-card.md`.
"""


class FPTN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="veilmark",
    license="other",
    license_name="research-data",
    tags=["facial-landmarks", "pose-transfer"],
    model_card_template=_CARD,
):
    """Facial Pose Transfer Network.

    Args:
        scheme: Landmark scheme.
        size: Side of the faces in pixels.
        stride: Pixels per cell of the streams: 4 or 8.
        channels: Channels of either stream.
        blocks: Pose-attention blocks.
        painter_width: Channels of the painter's first step.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(
        self,
        scheme: str = "ibug68",
        size: int = 128,
        stride: int = 8,
        channels: int = 64,
        blocks: int = 3,
        painter_width: int = 32,
    ) -> None:
        super().__init__()
        if stride not in (4, 8) or size % stride:
            raise ConfigError(f"stride is {stride}, size {size}; allowed: strides 4 and 8 that divide the size")
        if blocks < 1:
            raise ConfigError(f"blocks is {blocks}; allowed: 1 or more")
        self.scheme, self.size, self.stride = scheme, size, stride
        cells, k = size // stride, len(get_scheme(scheme))
        self.image_stem = Stem(channels, stride, cells)
        self.pose_stem = nn.Conv2d(2 * k, channels, 3, padding=1)
        self.blocks = nn.ModuleList(PoseAttention(channels, step < blocks - 1) for step in range(blocks))
        self.correct = nn.Conv2d(channels, 2, 3, padding=1)
        self.finish = FinePainter(channels, stride, painter_width)
        # It starts as the spline alone, which is the baseline that it has to beat.
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)  # type: ignore[arg-type]

    def render(self, points: Tensor) -> Tensor:
        """The geometric bottleneck: Gaussians of one cell, about 1 at their peaks, ``(n, k, cells, cells)``."""
        maps = gaussian_maps(points, self.size // self.stride, self.stride, sigma=float(self.stride))
        return 2 * math.pi * maps

    def forward(self, faces: Tensor, source: Tensor, target: Tensor) -> Transfer:
        """Paints ``faces`` in the pose of ``target``.

        Args:
            faces: ``(n, 3, size, size)`` faces of A in [0, 1].
            source: ``(n, k, 2)`` landmarks of A in pixels of the crop.
            target: ``(n, k, 2)`` landmarks of B in pixels of its crop.

        Raises:
            ValueError: If the faces have another size.
        """
        if faces.shape[2:] != (self.size, self.size):
            raise ValueError(f"faces have shape {tuple(faces.shape)}; expected (n, 3, {self.size}, {self.size})")
        source, target = source.float(), target.float()
        # The linear system is solved in float32 whatever the precision of the training is.
        with torch.autocast(faces.device.type, enabled=False):
            move = spline_move(target, source, self.size // self.stride, self.size)
            moved = move_pixels(faces.float(), move)
        image = self.image_stem(_centred(moved))
        pose = self.pose_stem(torch.cat([self.render(source), self.render(target)], dim=1))
        for block in self.blocks:
            image, pose = block(image, pose)
        # A tenth of the side is far: a step of the optimiser then moves pixels by little.
        move = move + 0.1 * self.correct(image).float()
        moved = move_pixels(faces.float(), move)
        return Transfer(moved + self.finish(image, _centred(moved)).float(), moved)


def _centred(faces: Tensor) -> Tensor:
    return (4 * (faces - 0.5)).contiguous(memory_format=torch.channels_last)
