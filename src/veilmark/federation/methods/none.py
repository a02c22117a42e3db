"""No defence: the whole network travels and is averaged."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer, chosen_tensors
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView


class NoneOptions(BaseModel):
    """Options of ``none``.

    Attributes:
        share: How the names of the tensors begin that travel, e.g. ``[extractor]``; all of them by default. What does
            not travel stays the client's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    share: tuple[str, ...] = ()


class NoDefence(Method[NoneOptions]):
    """FedAvg of the whole network, or of some parts."""

    summary = "the whole network, in the clear"
    source = "McMahan et al. 2017, arXiv 1602.05629"
    tasks = ("classify", "landmarks")
    model = NoneOptions

    @property
    def personal(self) -> bool:
        """Clients differ where a part stays with them."""
        return bool(self.options.share)

    def client(self, view: ClientView) -> Client:
        """A client that trains everything."""
        learner = view.learner()
        return FedAvgClient(view, learner, chosen_tensors(learner.model, self.options.share))

    def server(self, view: ServerView) -> Server:
        """A server that averages."""
        network = view.task.network(view.seed)
        weights = network.state_dict()
        names = chosen_tensors(network, self.options.share)
        return FedAvgServer({name: weights[name] for name in names}, view.task.metrics)
