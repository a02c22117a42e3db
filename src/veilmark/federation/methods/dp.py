"""Noise on updates: NbAFL (Wei et al. 2020, arXiv 1911.00222).

A client bounds what it sends and adds Gaussian noise; where there are many rounds, the server adds some more to what
it broadcasts. With N clients, T rounds, m examples of a client, L times that its upload is seen and a bound C:

- uplink: ``sigma_U = c L (2 C / m) / epsilon`` with ``c = sqrt(2 ln(1.25 / delta))`` (Theorem 1 and what precedes it);
- downlink: ``sigma_D = 2 c C sqrt(T^2 - L^2 N) / (m N epsilon)`` where ``T > L sqrt(N)``, else none.

**Epsilon is counted as its authors count it**, and that count is generous: the sensitivity ``2 C / m`` assumes that one
example moves a client's result no more than if the result were the mean of m clipped contributions, which several steps
of SGD with momentum do not promise; the Gaussian mechanism with this c is proven for epsilon below 1; and rounds are
composed by the factor L alone. It is not the epsilon of an accountant of noisy SGD.

What differs from the paper: local training has no proximal term, and m is each client's own number of examples, where
the paper takes the smallest. How well a client fits its examples is not sent: no noise would cover it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from veilmark.federation.messages import Update
from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.methods.release import bounded, gaussian, private_rng, released, secret_for
from veilmark.federation.tasks.task import Learner
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for


class DPOptions(BaseModel):
    """Options of ``dp``.

    Attributes:
        epsilon: As its authors count it, for the whole run.
        delta: As its authors count it.
        clip: C, the largest norm of what is bounded.
        clips: What is bounded: the ``update``, or the ``weights`` themselves as in the paper. A network of millions of
            weights has a norm far above any C that leaves something to learn, so the update is bounded by default.
        exposures: L; none means every round.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epsilon: float = Field(50.0, gt=0)
    delta: float = Field(0.01, gt=0, lt=1)
    clip: float = Field(1.0, gt=0)
    clips: Literal["update", "weights"] = "update"
    exposures: int | None = Field(None, ge=1)


def uplink_deviation(options: DPOptions, examples: int, rounds: int) -> float:
    """Standard deviation of the noise that a client adds to every number it sends.

    Args:
        options: Epsilon, delta, C, L.
        examples: m, the client's examples.
        rounds: T, which is L by default.
    """
    exposures = options.exposures or rounds
    return _constant(options.delta) * exposures * 2 * options.clip / (examples * options.epsilon)


def downlink_deviation(options: DPOptions, examples: int, clients: int, rounds: int) -> float:
    """Standard deviation of the noise that the server adds to every number it broadcasts; 0 where none is needed.

    Args:
        options: Epsilon, delta, C, L.
        examples: m, the fewest examples of any client.
        clients: N.
        rounds: T.
    """
    exposures = options.exposures or rounds
    left = rounds**2 - exposures**2 * clients
    if left <= 0:
        return 0.0
    return 2 * _constant(options.delta) * options.clip * math.sqrt(left) / (examples * clients * options.epsilon)


def _constant(delta: float) -> float:
    return math.sqrt(2 * math.log(1.25 / delta))


class NoisyClient(FedAvgClient):
    """Trains the whole network, bounds what it sends, adds noise.

    Args:
        view: What the client knows.
        learner: Network and examples.
        options: Bound and noise.
    """

    def __init__(self, view: ClientView, learner: Learner, options: DPOptions) -> None:
        super().__init__(view, learner, list(learner.model.state_dict()))
        self.options = options

    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """A round of training; its losses stay with the client."""
        update = super().train_round(broadcast, round_number)
        return Update(update.tensors, {}, update.examples)

    def protect(self, broadcast: Tensors, trained: Tensors, round_number: int) -> Tensors:
        """The bounded result with noise, from the client's secret: whoever could draw it again could take it off."""
        options = self.options
        secret, purpose = self.view.secrets.own, f"dp noise|{round_number}"
        deviation = uplink_deviation(options, self.learner.examples, self.view.rounds)
        if options.clips == "update":
            return released(broadcast, trained, options.clip, deviation, secret, purpose)
        rng = private_rng(secret_for(secret, f"{purpose}|{options.clip}|{deviation}", trained), "noise")
        return {
            name: value + deviation * gaussian(rng, value) for name, value in bounded(trained, options.clip).items()
        }


class NoisyServer(FedAvgServer):
    """Averages, and adds noise to what it broadcasts where the rounds ask for it.

    Its noise comes from the run's seed: who wants to know the updates is the server, which knows its own noise anyway.

    Args:
        view: What the server knows.
        options: Bound and noise.
    """

    def __init__(self, view: ServerView, options: DPOptions) -> None:
        super().__init__(view.task.network(view.seed).state_dict(), ())
        self.view, self.options, self.rounds = view, options, 0

    def combine(self, updates: Mapping[int, Update]) -> None:
        """The weighted mean, and noise."""
        super().combine(updates)
        self.rounds += 1
        fewest = min(update.examples for update in updates.values())
        deviation = downlink_deviation(self.options, fewest, self.view.clients, self.view.rounds)
        if deviation:
            rng = rng_for(self.view.seed, 30, self.rounds)
            self.shared = {name: value + deviation * gaussian(rng, value) for name, value in self.shared.items()}

    def state(self) -> Tensors:
        """The share, and how many rounds have drawn noise."""
        return {**self.shared, "rounds": torch.tensor(self.rounds)}

    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""
        self.rounds = int(tensors["rounds"])
        super().load_state({name: value for name, value in tensors.items() if name != "rounds"})


class UpdateNoise(Method[DPOptions]):
    """Bounded updates with Gaussian noise."""

    summary = "the whole network, bounded and with noise"
    source = "Wei et al. 2020, arXiv 1911.00222"
    tasks = ("classify",)
    model = DPOptions

    def client(self, view: ClientView) -> Client:
        """A client that adds noise."""
        return NoisyClient(view, view.learner(), self.options)

    def server(self, view: ServerView) -> Server:
        """A server that may add noise."""
        return NoisyServer(view, self.options)
