"""Gradient compression: only the largest part of an update travels (Lin et al. 2018, arXiv 1712.01887).

Zhu, Liu and Han 2019 (arXiv 1906.08935, section 5) found that reconstruction from gradients fails where enough of
them are pruned; it is one of the five defences that PPIDSG was compared with.

What differs from Lin et al.: what a client's round has changed is pruned, not the gradient of a step, and momentum
correction, masking, local clipping and the warm-up of the share are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from veilmark.federation.messages import Declared, Update, UpdateRefused
from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.tasks.task import Learner
from veilmark.run.checkpoints import Tensors

VALUES, INDICES = ".values", ".indices"
"""How the names of the two tensors end that a sparse one travels as."""


_LEFT = "left."


class GCOptions(BaseModel):
    """Options of ``gc``.

    Attributes:
        keep: Share of every tensor's values that travels: the largest in magnitude. The paper has 0.1, 0.2 and 0.4.
        feedback: Whether what was left out stays with the client and is added to its next update (Lin et al.,
            section 3.1: without it small but steady gradients never arrive). As a defence the paper has it off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    keep: float = Field(0.1, gt=0, le=1)
    feedback: bool = False


def kept_count(size: int, keep: float) -> int:
    """How many of a tensor's values travel: at least one."""
    return max(1, round(keep * size))


def largest(values: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """The largest values of a tensor in magnitude.

    Each tensor is pruned by itself: over the whole network the head's millions of small weights would crowd out the
    convolutions, whose gradients are of another scale.

    Args:
        values: Of any shape.
        keep: The share that is kept.

    Returns:
        Values ``(k,)`` and their places in the flat tensor ``(k,)`` int32, ascending.
    """
    flat = values.flatten()
    places = torch.topk(flat.abs(), kept_count(flat.numel(), keep), sorted=False).indices.sort().values
    return flat[places], places.to(torch.int32)


class SparseClient(FedAvgClient):
    """Trains the whole network and sends the largest part of what changed.

    Args:
        view: What the client knows.
        learner: Network and examples.
        options: What is kept.
    """

    def __init__(self, view: ClientView, learner: Learner, options: GCOptions) -> None:
        super().__init__(view, learner, list(learner.model.state_dict()))
        self.options = options
        self.left: Tensors = {}

    def protect(self, broadcast: Tensors, trained: Tensors, round_number: int) -> Tensors:
        """Values and places of the largest changes, for every tensor."""
        sent: Tensors = {}
        for name, value in trained.items():
            change = value - broadcast[name]
            if name in self.left:
                change = change + self.left[name]
            values, places = largest(change, self.options.keep)
            sent |= {f"{name}{VALUES}": values, f"{name}{INDICES}": places}
            if self.options.feedback:
                rest = change.flatten().clone()
                rest[places.long()] = 0
                self.left[name] = rest.view_as(change)
        return sent

    def state(self) -> Tensors:
        """What was left out, where that is kept, and the memory of an optimiser that lasts."""
        return {f"{_LEFT}{name}": value for name, value in self.left.items()} | super().state()

    def load_state(self, tensors: Tensors) -> None:
        """Puts it back."""
        super().load_state(tensors)
        self.left = {k.removeprefix(_LEFT): v for k, v in tensors.items() if k.startswith(_LEFT)}


class SparseServer(FedAvgServer):
    """Adds the weighted mean of sparse changes to the share.

    Args:
        start: The share that the first round begins with.
        metrics: Names of the clients' metrics.
        keep: The share of values that clients send.
    """

    def __init__(self, start: Tensors, metrics: tuple[str, ...], keep: float) -> None:
        super().__init__(start, metrics)
        self.keep = keep

    def declared(self) -> Declared:
        """Two tensors for each of the share's: values and places."""
        tensors: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, value in self.shared.items():
            count = kept_count(value.numel(), self.keep)
            tensors |= {f"{name}{VALUES}": ((count,), value.dtype), f"{name}{INDICES}": ((count,), torch.int32)}
        return Declared(tensors, self.metrics)

    def check(self, update: Update) -> None:
        """Refuses places that are out of range, out of order or named twice."""
        for name, value in self.shared.items():
            places = update.tensors[f"{name}{INDICES}"].long()
            rising = bool((places.diff() > 0).all())
            if not rising or int(places[0]) < 0 or int(places[-1]) >= value.numel():
                raise UpdateRefused(f"tensor {name + INDICES!r}: places must ascend from 0 to {value.numel() - 1}")

    def rebuilt(self, broadcast: Tensors, tensors: Tensors) -> Tensors:
        """The broadcast with the changes that were sent."""
        made = {}
        for name, value in broadcast.items():
            changed = value.flatten().clone()
            changed[tensors[f"{name}{INDICES}"].long()] += tensors[f"{name}{VALUES}"]
            made[name] = changed.view_as(value)
        return made

    def combine(self, updates: Mapping[int, Update]) -> None:
        """The weighted mean of the changes; what was not sent counts as no change.

        As in plain averaging, a client that changed nothing of a tensor has not trained it and has no say in it.
        """
        for name, value in self.shared.items():
            sent = {number: updates[number].tensors[f"{name}{VALUES}"] for number in sorted(updates)}
            having = [number for number, values in sent.items() if bool(values.any())]
            total = sum(updates[number].examples for number in having)
            change = torch.zeros(value.numel(), dtype=torch.float64)
            for number in having:
                places = updates[number].tensors[f"{name}{INDICES}"].long()
                change[places] += updates[number].examples / total * sent[number].double()
            self.shared[name] = (value.double() + change.view(value.shape)).to(value.dtype)


class GradientCompression(Method[GCOptions]):
    """Pruned updates."""

    summary = "the largest part of the whole network's update"
    source = "Lin et al. 2018, arXiv 1712.01887; Zhu, Liu and Han 2019, arXiv 1906.08935"
    tasks = ("classify", "landmarks")
    model = GCOptions
    prunes = True

    def sent_of(self, change: Tensor) -> Tensor:
        """The largest of its values, in their places."""
        values, places = largest(change, self.options.keep)
        sent = torch.zeros_like(change).flatten()
        sent[places.long()] = values
        return sent.view_as(change)

    def client(self, view: ClientView) -> Client:
        """A client that prunes."""
        return SparseClient(view, view.learner(), self.options)

    def server(self, view: ServerView) -> Server:
        """A server that rebuilds."""
        start = view.task.network(view.seed).state_dict()
        return SparseServer(start, view.task.metrics, self.options.keep)
