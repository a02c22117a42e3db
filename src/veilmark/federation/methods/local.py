"""No sharing: every client learns alone. The floor that any federation must beat."""

from __future__ import annotations

from collections.abc import Mapping

from veilmark.federation.messages import Declared, Update
from veilmark.federation.methods.fedavg import FedAvgClient
from veilmark.federation.methods.method import Client, ClientView, Method, NoOptions, Server, ServerView
from veilmark.run.checkpoints import Tensors


class Silent(Server):
    """A server that sends nothing and takes nothing but metrics.

    Args:
        metrics: Names of the clients' metrics.
    """

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.metrics = metrics

    def broadcast(self) -> Tensors:
        """Nothing."""
        return {}

    def declared(self) -> Declared:
        """Metrics only."""
        return Declared({}, self.metrics)

    def combine(self, updates: Mapping[int, Update]) -> None:
        """There is nothing to combine."""

    def load_state(self, tensors: Tensors) -> None:
        """There is nothing to keep."""


class Local(Method[NoOptions]):
    """Local training only."""

    summary = "nothing"
    source = "the floor of every comparison"
    tasks = ("classify", "landmarks")

    @property
    def personal(self) -> bool:
        """Every client has networks of its own."""
        return True

    def client(self, view: ClientView) -> Client:
        """A client that keeps its whole network, and its momentum; all begin alike."""
        return FedAvgClient(view, view.learner(), [])

    def server(self, view: ServerView) -> Server:
        """A server that averages nothing."""
        return Silent(view.task.metrics)
