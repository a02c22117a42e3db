"""What travels between clients and server: tensors, declared metrics, a sample count. Nothing else is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from veilmark.run.checkpoints import Tensors
from veilmark.run.errors import VeilmarkError

LARGEST_MAGNITUDE = 1e6
"""No weight of a network in training comes near it; an update beyond is an error or an attack."""


class UpdateRefused(VeilmarkError):
    """An update that is not what the method declared."""


@dataclass(frozen=True, eq=False)
class Update:
    """One message of a client to the server.

    Attributes:
        tensors: What is shared, by name.
        metrics: Declared figures of the training.
        examples: How many examples the client says it trained on.
    """

    tensors: Tensors
    metrics: Mapping[str, float]
    examples: int

    def size(self) -> int:
        """Bytes of the tensors."""
        return tensor_bytes(self.tensors)


@dataclass(frozen=True)
class Declared:
    """What an update of a method looks like, known to everybody before the run.

    Attributes:
        tensors: Shape and type of each tensor, by name.
        metrics: Names of the metrics.
    """

    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    metrics: tuple[str, ...] = ()

    @classmethod
    def like(cls, tensors: Tensors, metrics: tuple[str, ...] = ()) -> Declared:
        """The declaration of updates that look like ``tensors``."""
        return cls({name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}, metrics)

    def size(self) -> int:
        """Bytes of the tensors of one update."""
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.tensors.values())


def tensor_bytes(tensors: Tensors) -> int:
    """Bytes of tensors, as they travel."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def check_update(update: Update, declared: Declared, most_examples: int) -> Update:
    """The update, if it is exactly what was declared; its sample count is cut to what one client may weigh.

    Args:
        update: What a client sent.
        declared: What the method declares.
        most_examples: The largest sample count that is believed.

    Raises:
        UpdateRefused: If a tensor is missing, not declared, of another shape or type, not finite or beyond any
            weight's magnitude; or a metric is not declared or not finite; or the count is below 1.
    """
    for what, given, known in (
        ("tensor", set(update.tensors), set(declared.tensors)),
        ("metric", set(update.metrics), set(declared.metrics)),
    ):
        if given != known:
            missing, extra = sorted(known - given), sorted(given - known)
            parts = [f"lacks {missing[0]!r}"] if missing else []
            parts += [f"has {extra[0]!r}, which is not declared"] if extra else []
            raise UpdateRefused(f"{what}s: the update {' and '.join(parts)}")
    for name, value in update.tensors.items():
        shape, dtype = declared.tensors[name]
        if tuple(value.shape) != shape or value.dtype != dtype:
            raise UpdateRefused(f"tensor {name!r} is {tuple(value.shape)} {value.dtype}, not {shape} {dtype}")
        if value.is_floating_point():
            # One pass: a maximum of magnitudes is NaN or infinite where any of them is.
            largest = float(value.abs().max()) if value.numel() else 0.0
            if not largest <= LARGEST_MAGNITUDE:
                raise UpdateRefused(f"tensor {name!r} holds {largest:g}; finite values up to {LARGEST_MAGNITUDE:g}")
    for name, figure in update.metrics.items():
        if not abs(figure) < float("inf"):
            raise UpdateRefused(f"metric {name!r} is {figure}; finite figures only")
    if update.examples < 1:
        raise UpdateRefused(f"{update.examples} examples; at least 1")
    return Update(update.tensors, update.metrics, min(update.examples, most_examples))
