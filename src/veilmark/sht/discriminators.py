"""Two patch discriminators for transferred faces: is it the look of A, and is it the pose of B?

Least-squares adversarial losses (Mao et al. 2017) over patches (Isola et al. 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from veilmark.sht.layers import Norm


class PatchDiscriminator(nn.Module):
    """Says of every patch of a picture whether it is real, given a condition.

    Args:
        channels: Channels of picture and condition together.
        width: Channels of its first layer.
    """

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=4),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            Norm(2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            Norm(2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps ``(n, channels, s, s)`` to verdicts ``(n, 1, s / 8, s / 8)``: 1 is real, 0 is painted."""
        verdicts: Tensor = self.layers(pictures)
        return verdicts


class Discriminators(nn.Module):
    """Judges a face as the look of A and as the pose of B.

    Args:
        points: Number of landmarks.
        size: Side of the faces in pixels.
    """

    def __init__(self, points: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.appearance = PatchDiscriminator(6)
        self.pose = PatchDiscriminator(3 + 8)
        # Points become a few maps of places: 68 full maps would cost more than the rest of the network.
        self.places = nn.Linear(points, 8, bias=False)

    def forward(self, faces: Tensor, look: Tensor, maps: Tensor) -> Tensor:
        """Verdicts of both.

        Args:
            faces: ``(n, 3, size, size)`` faces to be judged.
            look: ``(n, 3, size, size)`` faces of A.
            maps: ``(n, k, h, h)`` rendered landmarks of B.

        Returns:
            ``(n, 2, size / 8, size / 8)``.
        """
        few = self.places(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        few = nn.functional.interpolate(few, (self.size, self.size), mode="bilinear", align_corners=False)
        faces, look = faces - 0.5, look - 0.5
        verdicts = (self.appearance(torch.cat([faces, look], dim=1)), self.pose(torch.cat([faces, few], dim=1)))
        return torch.cat(verdicts, dim=1)


def generator_loss(painted: Tensor) -> Tensor:
    """How far the verdicts on painted faces are from "real": the mean of ``(v - 1)^2``."""
    return (painted - 1).square().mean()


def discriminator_loss(real: Tensor, painted: Tensor) -> Tensor:
    """How far the verdicts are from the truth: the mean of ``((r - 1)^2 + p^2) / 2``."""
    return 0.5 * ((real - 1).square().mean() + painted.square().mean())
