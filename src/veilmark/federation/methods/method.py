"""The interface of a method: what a client trains, what it shares, and how the server combines it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from veilmark.federation.messages import Declared, Update
from veilmark.federation.tasks.task import Data, Learner, Task
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.devices import ComputedIn
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training


class NoOptions(BaseModel):
    """Options of a method that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True, eq=False)
class Secrets:
    """What the server never has.

    Attributes:
        federation: The secret that all clients share.
        own: The client's own, which never leaves it.
    """

    federation: Secret
    own: Secret


@dataclass(frozen=True, eq=False)
class ClientView:
    """What a client knows when it starts a round.

    Attributes:
        number: Its number, from 0.
        task: What is learned.
        data: Its own examples.
        training: How long and how fast clients learn.
        rounds: Rounds of the run.
        seed: The run's seed.
        secrets: Its secrets.
        device: Where it computes. What it sends, and what it answers, lies on the CPU.
    """

    number: int
    task: Task
    data: Data
    training: Training
    rounds: int
    seed: int
    secrets: Secrets
    device: torch.device | str = "cpu"

    def learner(self, data: Data | None = None) -> Learner:
        """The task's whole network with these examples (the client's own by default), on the client's device."""
        made = self.task.learner(data or self.data, self.training, self.rounds, self.seed, self.number)
        return made.to(self.device)


@dataclass(frozen=True, eq=False)
class ServerView:
    """What the server knows: the public configuration. No example, no secret.

    Attributes:
        task: What is learned (its networks; not its data).
        clients: How many clients there are.
        rounds: Rounds of the run.
        seed: The run's seed.
        training: How long and how fast clients learn.
    """

    task: Task
    clients: int
    rounds: int
    seed: int
    training: Training


class Client(ABC):
    """A client during one round: built anew each time, its memory comes from :meth:`load_state`."""

    @abstractmethod
    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """Trains on its own examples.

        Args:
            broadcast: What the server sent.
            round_number: From 0.
        """

    @abstractmethod
    def predict(self, broadcast: Tensors, inputs: Tensor) -> Tensor:
        """What this client would answer, with the global share and its own networks.

        Args:
            broadcast: What the server holds after the round.
            inputs: Untouched test inputs, as the task has them.

        Returns:
            The task's outputs, one row an input.
        """

    def views(self, broadcast: Tensors, inputs: Tensor) -> dict[str, Tensor]:
        """What it makes of public inputs, for the report's samples.

        Args:
            broadcast: The global share.
            inputs: ``(n, c, s, s)`` uint8.

        Returns:
            Pictures like ``inputs``, by what they are, e.g. ``scramble(x)``; nothing where inputs stay as they are.
        """
        return {}

    def join(self, broadcast: Tensors) -> None:
        """Comes when the federation is over: trains what stays with a client, in front of or behind the finished share.

        The share stays as it is, and nothing is sent.

        Args:
            broadcast: What the server holds at the end.

        Raises:
            ConfigError: If the method has no such thing.
        """
        raise ConfigError(f"{type(self).__name__} cannot join a federation that is over; landmark methods can")

    def network_with(self, broadcast: Tensors) -> nn.Module:
        """The network that answers: the global share and its own parts.

        Args:
            broadcast: The global share.

        Raises:
            ConfigError: If the method has none that stands alone.
        """
        raise ConfigError(f"{type(self).__name__} has no network that stands alone; landmark methods have")

    @abstractmethod
    def state(self) -> Tensors:
        """What it keeps on its own disk until the next round."""

    @abstractmethod
    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""


class Server(ABC):
    """The server's side: what it sends, what it accepts, how it combines."""

    @abstractmethod
    def broadcast(self) -> Tensors:
        """What goes to every client."""

    @abstractmethod
    def declared(self) -> Declared:
        """What an update must look like."""

    def check(self, update: Update) -> None:
        """What a method asks of an update beyond names, shapes, types and finite values.

        Raises:
            UpdateRefused: If it is not so.
        """
        return None

    def rebuilt(self, broadcast: Tensors, tensors: Tensors) -> Tensors:
        """What an update says in the terms of what was broadcast; for most methods it is just that.

        Args:
            broadcast: What the client was sent.
            tensors: What it sent back.
        """
        return tensors

    @abstractmethod
    def combine(self, updates: Mapping[int, Update]) -> None:
        """Takes the accepted updates of a round in, by client; there is one at least."""

    def state(self) -> Tensors:
        """What a resumed run needs; what is broadcast, by default."""
        return self.broadcast()

    @abstractmethod
    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""


class Method(ABC, Generic[Options]):
    """A method with its options.

    Args:
        options: Its options, checked.
    """

    summary: ClassVar[str]
    """One line: what is shared."""
    source: ClassVar[str]
    """Paper."""
    tasks: ClassVar[tuple[str, ...]]
    """Tasks that it can learn."""
    model: ClassVar[type[BaseModel]] = NoOptions
    """What its options must be."""
    plain_sgd: ClassVar[bool] = False
    """Whether ``training.optimizer`` and ``training.clip`` have no say in how it trains."""
    prunes: ClassVar[bool] = False
    """Whether only a part of what changed travels."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def personal(self) -> bool:
        """Whether clients differ in what they answer; else one is scored for all."""
        return False

    def computes_in(self, device: torch.device) -> ComputedIn:
        """In which precision layers learn on a device, where an option says ``auto`` too."""
        return "32-true"

    def sent_of(self, change: Tensor) -> Tensor:
        """What the server has of a tensor's change, noise aside: all of it; zeros for what is pruned."""
        return change

    @abstractmethod
    def client(self, view: ClientView) -> Client:
        """A client of this method.

        Raises:
            ConfigError: If the options do not fit the data.
        """

    @abstractmethod
    def server(self, view: ServerView) -> Server:
        """The server of this method.

        Raises:
            ConfigError: If the options do not fit the task's networks.
        """
