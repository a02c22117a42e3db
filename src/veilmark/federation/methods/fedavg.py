"""Federated averaging (McMahan et al. 2017): plain local training, weighted means. Most methods build on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from veilmark.federation.messages import Declared, Update
from veilmark.federation.methods.method import Client, ClientView, Server
from veilmark.federation.tasks.task import Learner
from veilmark.run.checkpoints import Tensors, pack_optimizer, unpack_optimizer
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training, adamw, batches, rate, set_share, sgd
from veilmark.run.seeds import rng_for

_OPTIMIZER = "optimizer."
"""How the names of the optimiser's tensors begin in a client's memory."""


def chosen_tensors(network: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    """Names of the tensors that travel.

    Args:
        network: The whole network.
        prefixes: How their names begin; none at all means every tensor.

    Raises:
        ConfigError: If a prefix names no tensor; the message lists the network's parts.
    """
    names = list(network.state_dict())
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ConfigError(f"options.share: the network has no tensor {prefix!r}; its parts: {', '.join(parts)}")
    return [name for name in names if not prefixes or name.startswith(prefixes)]


Precision = Literal["single", "half"]
"""Of the numbers that travel, both ways. Half has half of the bytes and eleven binary digits of each number."""


def in_precision(tensors: Tensors, precision: Precision) -> Tensors:
    """A share's start as it travels: what is broadcast, and what clients send back, is of its types."""
    if precision == "single":
        return tensors
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


def weighted_mean(updates: Mapping[int, Update], before: Tensors | None = None) -> Tensors:
    """The mean of the clients' tensors, weighted by their examples, summed in double precision in a fixed order.

    Args:
        updates: By client.
        before: What was broadcast. A client that sends a tensor back to the bit as it was has not trained it (a
            detector, say, where it has no labels), and has no say in its mean: it would only hold the others back.
            None gives everybody a say.

    Returns:
        The means; a tensor that nobody trained is as it was.
    """
    order = sorted(updates)
    means: Tensors = {}
    for name, like in updates[order[0]].tensors.items():
        sent = {number: updates[number].tensors[name] for number in order}
        having = order
        if before is not None:
            having = [number for number in order if not torch.equal(sent[number], before[name])]
            if not having:
                means[name] = before[name]
                continue
        total = sum(updates[number].examples for number in having)
        mean = torch.zeros(like.shape, dtype=torch.float64)
        for number in having:
            mean += sent[number].double() * (updates[number].examples / total)
        means[name] = mean.to(like.dtype)
    return means


def train_locally(
    learner: Learner,
    training: Training,
    rounds: int,
    seed: int,
    number: int,
    round_number: int,
    lasting: torch.optim.Optimizer | None = None,
) -> dict[str, float]:
    """A round of plain training on the learner's own examples.

    Args:
        learner: Network and examples; its network is changed.
        training: How long and how fast.
        rounds: Rounds of the run.
        seed: The run's seed.
        number: The client's number.
        round_number: From 0.
        lasting: An optimiser that remembers the rounds before; SGD of this round alone by default.

    Returns:
        Means of the learner's figures over the examples that were seen.
    """
    share = rate(round_number, rounds, training.decay_after)
    optimizer = lasting or sgd(learner.model, training, share)
    set_share(optimizer, training, share)
    sums: dict[str, float] = {}
    seen = 0
    for step, rows in enumerate(batches(learner.examples, training, seed, number, round_number)):
        optimizer.zero_grad(set_to_none=True)
        loss, figures = learner.loss(rows, rng_for(seed, 22, number, round_number, step))
        loss.backward()  # type: ignore[no-untyped-call]
        if training.clip:
            nn.utils.clip_grad_norm_(learner.model.parameters(), training.clip)
        optimizer.step()
        seen += len(rows)
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value * len(rows)
    return {name: value / seen for name, value in sums.items()}


class FedAvgClient(Client):
    """Trains the whole network, sends some or all of it; what does not travel stays its own.

    Methods that change what is sent override :meth:`protect`.

    Args:
        view: What the client knows.
        learner: Network and examples.
        shared: Names of the tensors that travel.
    """

    def __init__(self, view: ClientView, learner: Learner, shared: list[str]) -> None:
        self.view, self.learner, self.shared = view, learner, shared
        self.lasting: torch.optim.Optimizer | None = None
        if view.training.optimizer == "adamw":
            self.lasting = adamw(learner.model, view.training)
        elif not shared:
            # Nothing replaces the weights of a client alone: its momentum has no reason to start anew each round.
            self.lasting = sgd(learner.model, view.training, 1.0)

    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """Plain local training from the global share."""
        view = self.view
        self._take(broadcast)
        figures = train_locally(
            self.learner, view.training, view.rounds, view.seed, view.number, round_number, self.lasting
        )
        own = self.learner.model.state_dict()
        # As precise as the share travels.
        trained = {name: own[name].detach().to("cpu", broadcast[name].dtype, copy=True) for name in self.shared}
        return Update(self.protect(broadcast, trained, round_number), figures, self.learner.examples)

    def join(self, broadcast: Tensors) -> None:
        """All rounds of local training with the shared tensors as they are; nothing, where everything is shared."""
        view, model = self.view, self.learner.model
        self._take(broadcast)
        shared = set(self.shared)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in shared)
        if any(parameter.requires_grad for parameter in model.parameters()):
            for number in range(view.rounds):
                train_locally(self.learner, view.training, view.rounds, view.seed, view.number, number, self.lasting)

    def protect(self, broadcast: Tensors, trained: Tensors, round_number: int) -> Tensors:
        """What is sent in place of the trained tensors; they themselves, here.

        Args:
            broadcast: What training began with.
            trained: What it ended with.
            round_number: From 0.
        """
        return trained

    def predict(self, broadcast: Tensors, inputs: Tensor) -> Tensor:
        """Answers of the network with the global share."""
        self._take(broadcast)
        return self.learner.predict(inputs)

    def views(self, broadcast: Tensors, inputs: Tensor) -> dict[str, Tensor]:
        """What the network with the global share makes of inputs."""
        self._take(broadcast)
        return self.learner.views(inputs)

    def network_with(self, broadcast: Tensors) -> nn.Module:
        """The learner's network with the global share."""
        self._take(broadcast)
        return self.learner.model

    def _take(self, broadcast: Tensors) -> None:
        self.learner.model.load_state_dict(broadcast, strict=False)

    def state(self) -> Tensors:
        """Tensors that do not travel, and the memory of an optimiser that lasts."""
        shared = set(self.shared)
        own = {name: value for name, value in self.learner.model.state_dict().items() if name not in shared}
        return own | self._memory()

    def _memory(self) -> Tensors:
        if self.lasting is None:
            return {}
        return {f"{_OPTIMIZER}{name}": value for name, value in pack_optimizer(self.lasting).items()}

    def load_state(self, tensors: Tensors) -> None:
        """Puts them back."""
        self.learner.model.load_state_dict(tensors, strict=False)
        if self.lasting is not None:
            memory = {k.removeprefix(_OPTIMIZER): v for k, v in tensors.items() if k.startswith(_OPTIMIZER)}
            unpack_optimizer(self.lasting, memory)


class FedAvgServer(Server):
    """Holds the global share and replaces it by the weighted mean of the updates.

    Args:
        start: The share that the first round begins with.
        metrics: Names of the clients' metrics.
    """

    def __init__(self, start: Tensors, metrics: tuple[str, ...]) -> None:
        self.shared = {name: value.clone() for name, value in start.items()}
        self.metrics = metrics

    def broadcast(self) -> Tensors:
        """The global share."""
        return self.shared

    def declared(self) -> Declared:
        """Updates look like the share."""
        return Declared.like(self.shared, self.metrics)

    def rebuilt(self, broadcast: Tensors, tensors: Tensors) -> Tensors:
        """In single precision, as clients and attacks compute."""
        return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}

    def combine(self, updates: Mapping[int, Update]) -> None:
        """The weighted mean over those who trained a tensor."""
        self.shared = weighted_mean(updates, self.shared)

    def load_state(self, tensors: Tensors) -> None:
        """Puts the share back."""
        self.shared = tensors
