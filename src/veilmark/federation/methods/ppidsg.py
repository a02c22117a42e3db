"""PPIDSG (arXiv 2312.10380): only the generator travels; discriminator, extractor and classifier never do."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from veilmark.federation.messages import Update
from veilmark.federation.methods.fedavg import FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.tasks.classify import Classify
from veilmark.ppidsg.cipher import STEPS, Cipher
from veilmark.ppidsg.client_training import ClientConfig, PPIDSGClient, to_bytes, to_unit
from veilmark.ppidsg.networks import Generator
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.errors import ConfigError

Scope = Literal["federation", "client", "image"]


class PPIDSGOptions(ClientConfig):
    """Options of ``ppidsg``: those of its client, and these.

    Attributes:
        scope: Whose secret scrambles: one that all clients share (``federation``), one of each ``client``, or one of
            each ``image``, derived from the client's.
        block: Side of the cipher's blocks in pixels.
        without: Steps of the cipher that are left out.
        share: Parts that travel: ``[generator]``, or ``[]`` to see what sharing is worth.
    """

    scope: Scope = "federation"
    block: int = 4
    without: tuple[str, ...] = ()
    share: tuple[str, ...] = Field(default=("generator",))

    @field_validator("without")
    @classmethod
    def _steps(cls, without: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [step for step in without if step not in STEPS]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no step of the cipher; known: {', '.join(STEPS)}")
        return without

    @field_validator("share")
    @classmethod
    def _shared(cls, share: tuple[str, ...]) -> tuple[str, ...]:
        if set(share) - {"generator"}:
            raise ValueError(f"{list(share)}: of PPIDSG's networks only [generator] may travel, or []")
        return share


def cipher_of(options: PPIDSGOptions, federation: Secret, own: Secret) -> Cipher:
    """What a client scrambles with.

    Args:
        options: Scope, block, steps.
        federation: The secret that all clients share.
        own: The client's own.
    """
    secret = federation if options.scope == "federation" else own
    steps = [step for step in STEPS if step not in options.without]
    return Cipher(secret.derive(b"cipher"), options.block, steps)


class GeneratorClient(Client):
    """A client of PPIDSG in the federation.

    Args:
        view: What it knows.
        options: How it trains.
    """

    def __init__(self, view: ClientView, options: PPIDSGOptions) -> None:
        task = _classify(view.task)
        cipher = cipher_of(options, view.secrets.federation, view.secrets.own)
        self.shares, self.cipher, self.scope = bool(options.share), cipher, options.scope
        self.examples = len(view.data)
        self.client = PPIDSGClient(
            view.data.inputs,
            view.data.targets,
            len(task.classes),
            cipher,
            view.secrets.federation.derive(b"key"),
            options,
            training=view.training,
            rounds=view.rounds,
            head_widths=task.head_widths,
            seed=view.seed,
            number=view.number,
            names=list(view.data.names) if options.scope == "image" else None,
            device=view.device,
        )

    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """G, F, C and D in turns; G is sent."""
        generator = self.client.generator
        start = broadcast if self.shares else {k: v.clone() for k, v in generator.state_dict().items()}
        figures = self.client.train_round(start, round_number)
        shared = {k: v.clone().cpu() for k, v in generator.state_dict().items()} if self.shares else {}
        return Update(shared, figures, self.examples)

    def predict(self, broadcast: Tensors, inputs: Tensor) -> Tensor:
        """Classes by the global G and the client's own F and C."""
        if self.shares:
            self.client.generator.load_state_dict(broadcast)
        return self.client.predict(inputs)

    def views(self, broadcast: Tensors, inputs: Tensor) -> dict[str, Tensor]:
        """The scrambled picture that G imitates, and what G makes."""
        if self.shares:
            self.client.generator.load_state_dict(broadcast)
        names = [f"public/{row}".encode() for row in range(len(inputs))] if self.scope == "image" else None
        with torch.inference_mode():
            generated = self.client.generator(to_unit(inputs.to(self.client.device))).cpu()
        return {"scramble(x)": self.cipher.scramble(inputs, names), "G(x)": to_bytes(generated)}

    def state(self) -> Tensors:
        """D, F, C, optimisers, history; G too where it is not shared."""
        own = {} if self.shares else {f"generator.{k}": v for k, v in self.client.generator.state_dict().items()}
        return self.client.state() | own

    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""
        self.client.load_state(tensors)
        if not self.shares:
            own = {k.removeprefix("generator."): v for k, v in tensors.items() if k.startswith("generator.")}
            self.client.generator.load_state_dict(own)


class PPIDSG(Method[PPIDSGOptions]):
    """Image distribution sharing."""

    summary = "the generator only"
    source = "Ma, Yao and Xu 2024, arXiv 2312.10380"
    tasks = ("classify",)
    model = PPIDSGOptions

    @property
    def personal(self) -> bool:
        """Every client has networks of its own."""
        return True

    def client(self, view: ClientView) -> Client:
        """A client with all four networks."""
        return GeneratorClient(view, self.options)

    def server(self, view: ServerView) -> Server:
        """A server that averages generators."""
        task = _classify(view.task)
        # Every client starts from the same G: the weights of different starts cannot be averaged.
        start = task.seeded(lambda: Generator(task.channels, skip=not self.options.published), view.seed)
        return FedAvgServer(start.state_dict() if self.options.share else {}, metric_names(self.options))


def metric_names(options: PPIDSGOptions) -> tuple[str, ...]:
    """The figures that a client declares."""
    names = ("adversarial", "semantic", "class", "discriminator", "head", "accuracy")
    return (*names, "reconstruction") if options.extractor in ("separate", "key", "joint") else names


def _classify(task: object) -> Classify:
    if not isinstance(task, Classify):
        raise ConfigError("method ppidsg learns the task classify only")
    return task
