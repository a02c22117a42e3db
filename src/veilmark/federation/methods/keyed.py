"""A shared generator in front of detectors that start from a common secret, PPIDSG's *key*, which the server lacks.

G, an image generator, learns with the detector behind it. What the detectors have in common they have from the secret:
nothing of them travels.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from veilmark.federation.messages import Update
from veilmark.federation.methods.fedavg import FedAvgClient, FedAvgServer, Precision, chosen_tensors, in_precision
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.tasks.landmarks import LandmarksTask
from veilmark.federation.tasks.task import Task
from veilmark.ppidsg.networks import start_from_secret
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import adamw
from veilmark.sht.generated_detector import Body, GeneratedDetector


class KeyedOptions(BaseModel):
    """Options of ``keyed``.

    Attributes:
        blocks: Blocks of G.
        body: What they are: residual blocks of the ``detail`` stream, or an ``hourglass`` each, which see the whole
            face.
        thin: A detector without an hourglass, which sees a few pixels at a time: what it is to find, G must show it.
        start: Where detectors start: ``key``, the common secret; ``own``, a secret of each client.
        detector: ``kept``: learns from round to round. ``restart``: learns, and starts anew every round. ``fixed``:
            stays at its start.
        share: How the names of the tensors begin that travel; ``[generator, detector]`` shares everything, ``[]``
            nothing: the two ends that the method lies between.
        precision: Of the numbers that travel; clients compute in single precision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    blocks: int = Field(3, ge=1)
    body: Body = "detail"
    thin: bool = False
    start: Literal["key", "own"] = "key"
    detector: Literal["kept", "restart", "fixed"] = "kept"
    share: tuple[str, ...] = ("generator",)
    precision: Precision = "single"

    def network(self, task: LandmarksTask, seed: int) -> GeneratedDetector:
        """The network with these options."""
        return generated_detector(task, seed, self.blocks, self.body, self.thin)


def landmarks_task(task: Task, method: str) -> LandmarksTask:
    """The task, where it is landmarks.

    Raises:
        ConfigError: If it is another.
    """
    if not isinstance(task, LandmarksTask):
        raise ConfigError(f"method {method} learns the task landmarks only; set task=landmarks")
    return task


def generated_detector(
    task: LandmarksTask, seed: int, blocks: int, body: Body = "detail", thin: bool = False
) -> GeneratedDetector:
    """G and a detector, whose first weights depend on the seed only: the server's and every client's."""
    network = task.config.network.model_dump(mode="json")
    return task.seeded(lambda: GeneratedDetector(network=network, blocks=blocks, body=body, thin=thin), seed)


def start_detector(network: GeneratedDetector, secret: Secret, fixed: bool) -> None:
    """Sets the detector from a secret.

    Args:
        network: Its detector is changed in place.
        secret: The secret.
        fixed: Whether it stays so. What learns keeps the zeros with which blocks start as the identity; in a network
            that stays at its start they would be no blocks at all.
    """
    zeros = [] if fixed else [parameter for parameter in network.detector.parameters() if not parameter.any()]
    start_from_secret(network.detector, secret, "detector")
    for parameter in zeros:
        nn.init.zeros_(parameter)


class KeyedClient(FedAvgClient):
    """Trains G and its own detector together.

    Args:
        view: What the client knows.
        options: Where its detector starts, and what of it lasts.
    """

    def __init__(self, view: ClientView, options: KeyedOptions) -> None:
        task = landmarks_task(view.task, "keyed")
        self.network, self.options = options.network(task, view.seed), options
        own = view.secrets.federation if options.start == "key" else view.secrets.own
        self.secret = own.derive(b"key")
        start_detector(self.network, self.secret, options.detector == "fixed")
        learner = task.learner_of(self.network, view.data, view.seed, view.number).to(view.device)
        if options.detector == "fixed":
            self.network.detector.requires_grad_(False)
        super().__init__(view, learner, chosen_tensors(self.network, options.share) if options.share else [])
        if self.lasting is not None and options.detector == "restart":
            self.lasting = adamw(learner.model, view.training, restarts="detector.")

    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """A round of G and the detector."""
        if self.options.detector == "restart":
            start_detector(self.network, self.secret, fixed=False)
            if self.lasting is not None:
                # What AdamW remembers is of the detector before.
                for parameter in self.network.detector.parameters():
                    self.lasting.state.pop(parameter, None)
        return super().train_round(broadcast, round_number)

    def join(self, broadcast: Tensors) -> None:
        """A newcomer's detector learns in one go."""
        if self.lasting is not None:
            self.lasting = adamw(self.learner.model, self.view.training)
        super().join(broadcast)


class Keyed(Method[KeyedOptions]):
    """FedAvg of an image generator in front of secret detectors."""

    summary = "an image generator in front of secret detectors"
    source = "Veilmark; the key after Ma, Yao and Xu 2024, arXiv 2312.10380"
    tasks = ("landmarks",)
    model = KeyedOptions

    @property
    def personal(self) -> bool:
        """Clients have detectors of their own."""
        return True

    def client(self, view: ClientView) -> Client:
        """A client with a detector of its own."""
        return KeyedClient(view, self.options)

    def server(self, view: ServerView) -> Server:
        """A server that averages generators."""
        task = landmarks_task(view.task, "keyed")
        network = self.options.network(task, view.seed)
        weights = network.state_dict()
        names = chosen_tensors(network, self.options.share) if self.options.share else []
        start = in_precision({name: weights[name] for name in names}, self.options.precision)
        return FedAvgServer(start, task.metrics)
