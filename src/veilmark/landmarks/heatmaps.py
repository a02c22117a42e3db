"""Heatmaps and sub-pixel decoding.

A heatmap is a softmax over the cells of a map; its expectation is the landmark, its spread says how sure the
network is. Coordinates are those of the crop: cell ``i`` of a map of stride ``s`` covers ``[s * i, s * (i + 1))``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cell_centres(cells: int, stride: float, like: Tensor) -> Tensor:
    """Centres of ``cells`` cells along one axis in crop pixels, ``(cells,)``, dtype and device of ``like``."""
    return (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) * stride


def decode(logits: Tensor, stride: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sub-pixel landmarks by expectation (integral regression; Sun et al. 2018, eq. 2).

    Args:
        logits: ``(n, k, h, w)`` unnormalised log-probabilities of the cells.
        stride: Crop pixels per cell.

    Returns:
        Points ``(n, k, 2)`` in crop pixels, spread ``(n, k)``: the root of the summed variances in crop
        pixels, and the probabilities ``(n, k, h, w)``.
    """
    n, k, h, w = logits.shape
    # Never in bfloat16: it keeps 8 bits, which would cost a tenth of a pixel.
    exact = logits if logits.dtype == torch.float64 else logits.float()
    probability = exact.flatten(2).softmax(dim=2).view(n, k, h, w)
    column = probability.sum(dim=2)
    row = probability.sum(dim=3)
    xs, ys = cell_centres(w, stride, column), cell_centres(h, stride, row)
    x, y = column @ xs, row @ ys
    variance_x = (column @ xs.square() - x.square()).clamp_min(0)
    variance_y = (row @ ys.square() - y.square()).clamp_min(0)
    spread = (variance_x + variance_y + 1e-8).sqrt()
    return torch.stack([x, y], dim=2), spread, probability


def gaussian_maps(points: Tensor, cells: int, stride: float, sigma: float) -> Tensor:
    """Normalised Gaussians around points: the targets of the heatmaps.

    Args:
        points: ``(n, k, 2)`` in crop pixels; points outside the crop peak at its border.
        cells: Cells along each axis.
        stride: Crop pixels per cell.
        sigma: Standard deviation in crop pixels, above 0.

    Returns:
        ``(n, k, cells, cells)``, each map summing to 1.
    """
    centres = cell_centres(cells, stride, points)
    side = cells * stride
    inside = points.clamp(0, side)
    x = torch.softmax(-(centres - inside[..., 0:1]).square() / (2 * sigma**2), dim=-1)
    y = torch.softmax(-(centres - inside[..., 1:2]).square() / (2 * sigma**2), dim=-1)
    return y.unsqueeze(-1) * x.unsqueeze(-2)
