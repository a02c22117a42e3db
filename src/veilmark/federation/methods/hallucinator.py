"""Only the image generator of DHLN travels: its detail stream, which learns from faces with and without labels.

Structure stream and heatmap heads, which say where landmarks are, stay with the client. A client without labels teaches
the hallucination and never gets a detector of its own.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer, Precision, chosen_tensors, in_precision
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView


class HallucinatorOptions(BaseModel):
    """Options of ``hallucinator``.

    Attributes:
        share: How the names of the tensors begin that travel, one at least (for nothing there is ``local``).
            ``inform``, through which the structure stream reads detail features, is left out by default: it speaks the
            language of the client's own structure stream.
        precision: Of the numbers that travel; clients compute in single precision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    share: tuple[str, ...] = Field(("detail", "paint", "finish", "guide"), min_length=1)
    precision: Precision = "single"


class Hallucinator(Method[HallucinatorOptions]):
    """FedAvg of DHLN's detail stream."""

    summary = "the stream that hallucinates faces"
    source = "Veilmark; averaging after McMahan et al. 2017, arXiv 1602.05629"
    tasks = ("landmarks",)
    model = HallucinatorOptions

    @property
    def personal(self) -> bool:
        """Every client has a structure stream of its own."""
        return True

    def client(self, view: ClientView) -> Client:
        """A client that trains all of DHLN and sends the detail stream."""
        learner = view.learner()
        return FedAvgClient(view, learner, chosen_tensors(learner.model, self.options.share))

    def server(self, view: ServerView) -> Server:
        """A server that averages detail streams."""
        network = view.task.network(view.seed)
        weights = network.state_dict()
        start = {name: weights[name] for name in chosen_tensors(network, self.options.share)}
        return FedAvgServer(in_precision(start, self.options.precision), view.task.metrics)
