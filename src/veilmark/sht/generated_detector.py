"""An image generator in front of a detector: what is shared, and what stays with a client, where only G travels.

The layers are SHT's; the idea, a generator that travels in front of networks that do not, is PPIDSG's (arXiv
2312.10380).
"""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub import PyTorchModelHubMixin
from pydantic import ValidationError
from torch import Tensor, nn

from veilmark.run.errors import ConfigError
from veilmark.sht.dhln import DHLN, DHLNOutput
from veilmark.sht.layers import DetailBlock, FinePainter, Hourglass, Stem, enlarge
from veilmark.sht.training_sets import NetworkConfig

Body = Literal["detail", "hourglass"]


class _Whole(nn.Module):
    """An hourglass without what its bottom says."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.hourglass = Hourglass(widths)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.hourglass(x)[0]
        return y


class FaceGenerator(nn.Module):
    """G: a face to a face of the same size, at first the same one.

    Args:
        network: Sizes and widths.
        blocks: Blocks in a row.
        body: What blocks are. ``detail``: DHLN's detail stream without a structure stream, which sees a neighbourhood
            of a few pixels. ``hourglass``: each sees the whole face.
    """

    def __init__(self, network: NetworkConfig, blocks: int, body: Body = "detail") -> None:
        super().__init__()
        stride, cells = network.trunk_stride, network.size // network.trunk_stride
        width = network.detail_widths[0] if body == "detail" else network.structure_widths[0]
        self.stem = Stem(width, stride, cells, hidden=16)
        self.blocks = nn.Sequential(
            *(
                DetailBlock(*network.detail_widths) if body == "detail" else _Whole(network.structure_widths)
                for _ in range(blocks)
            )
        )
        self.finish = FinePainter(width, stride, network.painter_width)

    def forward(self, grid: Tensor) -> Tensor:
        """Faces ``(n, 3, size, size)`` in [0, 1] to faces of the same shape, not clipped."""
        centred = 4 * (grid - 0.5)
        y: Tensor = grid + self.finish(self.blocks(self.stem(centred)), centred)
        return y


class GeneratedDetector(nn.Module, PyTorchModelHubMixin, library_name="veilmark", license="other"):
    """G, and a detector that reads what G makes.

    The keyword arguments are the config, as for :class:`veilmark.sht.dhln.DHLN`.

    Args:
        network: DHLN's config; the detector is its structure stream, with nothing to paint.
        blocks: Blocks of G.
        body: What blocks of G are.
        thin: A detector of a few pixels' view, without an hourglass: a stem and one stage's heatmap head. What is to
            be seen, G must show.

    Raises:
        ConfigError: If a value is out of its range.
    """

    def __init__(self, network: dict[str, Any], blocks: int = 3, body: Body = "detail", thin: bool = False) -> None:
        super().__init__()
        try:
            known = NetworkConfig.model_validate(network)
        except ValidationError as error:
            raise ConfigError(f"network: {error}") from None
        reading: dict[str, Any] = known.model_dump() | {"detail": False}
        if thin:
            reading |= {"stages": 1, "structure_widths": known.structure_widths[:1]}
        self.generator = FaceGenerator(known, blocks, body)
        self.detector = DHLN(**reading)
        self.scheme, self.size, self.map_stride = known.scheme, known.size, known.map_stride

    @property
    def hallucinates(self) -> bool:
        """G always makes a face."""
        return True

    @property
    def mean_shape(self) -> Tensor:
        """The mean face of the training set as shares of the crop, ``(k, 2)``."""
        return self.detector.mean_shape

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
