"""An image generator in front of a detector: what is shared, and what stays with a client, where only G travels.

The layers are SHT's; the idea, a generator that travels in front of networks that do not, is PPIDSG's (arXiv
2312.10380).
"""

from __future__ import annotations

from torch import Tensor, nn

from veilmark.sht.dhln import DHLN, DHLNOutput
from veilmark.sht.layers import DetailBlock, FinePainter, Stem, enlarge
from veilmark.sht.training_sets import NetworkConfig


class FaceGenerator(nn.Module):
    """G: a face to a face of the same size, at first the same one: DHLN's detail stream without a structure stream.

    Args:
        network: Sizes and widths; those of DHLN's detail stream.
        blocks: Residual blocks in a row.
    """

    def __init__(self, network: NetworkConfig, blocks: int) -> None:
        super().__init__()
        fine, stride = network.detail_widths[0], network.trunk_stride
        self.stem = Stem(fine, stride, network.size // stride, hidden=16)
        self.blocks = nn.Sequential(*(DetailBlock(*network.detail_widths) for _ in range(blocks)))
        self.finish = FinePainter(fine, stride, network.painter_width)

    def forward(self, grid: Tensor) -> Tensor:
        """Faces ``(n, 3, size, size)`` in [0, 1] to faces of the same shape, not clipped."""
        centred = 4 * (grid - 0.5)
        y: Tensor = grid + self.finish(self.blocks(self.stem(centred)), centred)
        return y


class GeneratedDetector(nn.Module):
    """G, and a detector that reads what G makes.

    Args:
        network: DHLN's config; the detector is its structure stream, with nothing to paint.
        blocks: Residual blocks of G.
    """

    def __init__(self, network: NetworkConfig, blocks: int) -> None:
        super().__init__()
        self.generator = FaceGenerator(network, blocks)
        self.detector = DHLN(**(network.model_dump() | {"detail": False}))
        self.scheme, self.size, self.map_stride = network.scheme, network.size, network.map_stride

    def forward(self, faces: Tensor, hallucinate: bool = True) -> DHLNOutput:
        """What the detector says of G's faces; the face of the last stage is G's.

        Args:
            faces: ``(n, 3, s, s)`` in [0, 1].
            hallucinate: Whether G's faces are handed out; they are made either way.
        """
        made = self.generator(enlarge(faces, self.size))
        output: DHLNOutput = self.detector(made)
        if not hallucinate:
            return output
        *before, last = output.stages
        return output._replace(stages=[*before, last._replace(face=made)])
