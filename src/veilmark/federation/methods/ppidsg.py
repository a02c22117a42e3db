"""PPIDSG (arXiv 2312.10380): only the generator travels; discriminator, extractor and classifier never do.

Beside the paper's method there are switches for what it might be repaired with, or spoiled by: whose key scrambles
(``scope``), how large its blocks are, whether D travels too (``share``), and a bound with noise on what travels
(``clip``, ``noise``), whose epsilon is counted by client (``release.py``). By single example nothing can be said: G's
gradient goes through D, F and C, which the client trained on the same examples without noise, so a bound on an
example's gradient of G would not bound what the example does. That takes noisy SGD in all four networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from veilmark.federation.messages import Update
from veilmark.federation.methods.fedavg import FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.methods.release import client_epsilon, released
from veilmark.federation.tasks.classify import Classify
from veilmark.ppidsg.cipher import BLOCKS, STEPS, Cipher
from veilmark.ppidsg.client_training import ClientConfig, PPIDSGClient, to_bytes, to_unit
from veilmark.ppidsg.networks import Discriminator, Generator
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.devices import ComputedIn, choose_precision
from veilmark.run.errors import ConfigError

Scope = Literal["federation", "client", "image"]

SHARES = ((), ("generator",), ("generator", "discriminator"))
"""What may travel."""

_PREFIXES = {"generator": "", "discriminator": "discriminator."}
"""How names begin in a message; G's are its own, as they were when nothing else could travel."""


class PPIDSGOptions(ClientConfig):
    """Options of ``ppidsg``: those of its client, and these.

    Attributes:
        scope: Whose secret scrambles: one that all clients share (``federation``), one of each ``client``, or one of
            each ``image``, derived from the client's.
        block: Side of the cipher's blocks in pixels.
        without: Steps of the cipher that are left out.
        share: Parts that travel: ``[generator]``, ``[generator, discriminator]``, or ``[]`` to see what sharing is
            worth. A D that travels starts from the same weights everywhere; its Adam stays with the client.
        clip: Largest norm of the movement of all that a client sends in a round; none for no bound.
        noise: Deviation of the Gaussian noise on every number sent, over ``clip``. With noise a client says no figures
            of its training, which no accountant has in its books, but its epsilon.
    """

    scope: Scope = "federation"
    block: int = 4
    without: tuple[str, ...] = ()
    share: tuple[str, ...] = Field(default=("generator",))
    clip: float | None = Field(None, gt=0)
    noise: float = Field(0.0, ge=0)

    @field_validator("block")
    @classmethod
    def _block(cls, block: int) -> int:
        if block not in BLOCKS:
            raise ValueError(f"no side of a block; known: {', '.join(map(str, BLOCKS))}")
        return block

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
        if share not in SHARES:
            allowed = ", ".join(f"[{', '.join(parts)}]" for parts in SHARES)
            raise ValueError(f"{list(share)} may not travel; only one of {allowed}")
        return share

    @field_validator("noise")
    @classmethod
    def _noise(cls, noise: float, info: ValidationInfo) -> float:
        if noise and info.data.get("clip") is None:
            raise ValueError("noise is measured by clip, the bound of the movement; set clip too")
        if noise and not info.data.get("share"):
            raise ValueError("nothing travels, so there is nothing to add noise to")
        return noise


def generator_of(message: Tensors) -> Tensors:
    """G's tensors in a message, whatever travels beside them."""
    return {name: value for name, value in message.items() if not name.startswith(_PREFIXES["discriminator"])}


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
        self.options, self.view = options, view
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
        """G, F, C and D in turns; what is shared is sent."""
        options = self.options
        networks: dict[str, nn.Module] = {part: getattr(self.client, part) for part in options.share}
        if "discriminator" in networks:
            prefix = _PREFIXES["discriminator"]
            networks["discriminator"].load_state_dict(
                {k.removeprefix(prefix): v for k, v in broadcast.items() if k.startswith(prefix)}
            )
        own = self.client.generator.state_dict()
        start = generator_of(broadcast) if self.shares else {k: v.clone() for k, v in own.items()}
        figures = self.client.train_round(start, round_number)
        shared = _message(networks)
        if options.clip is not None:
            secret, purpose = self.view.secrets.own, f"ppidsg noise|{round_number}"
            shared = released(broadcast, shared, options.clip, options.noise * options.clip, secret, purpose)
        if options.noise:
            figures = {"epsilon": client_epsilon(options.noise, round_number + 1)}
        return Update(shared, figures, self.examples)

    def predict(self, broadcast: Tensors, inputs: Tensor) -> Tensor:
        """Classes by the global G and the client's own F and C."""
        if self.shares:
            self.client.generator.load_state_dict(generator_of(broadcast))
        return self.client.predict(inputs)

    def views(self, broadcast: Tensors, inputs: Tensor) -> dict[str, Tensor]:
        """The scrambled picture that G imitates, and what G makes."""
        if self.shares:
            self.client.generator.load_state_dict(generator_of(broadcast))
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

    summary = "the generator only; its discriminator too where that is asked for"
    source = "Ma, Yao and Xu 2024, arXiv 2312.10380"
    tasks = ("classify",)
    plain_sgd = True
    model = PPIDSGOptions

    @property
    def personal(self) -> bool:
        """Every client has networks of its own."""
        return True

    def computes_in(self, device: torch.device) -> ComputedIn:
        """The precision of the layers of G, D and F."""
        return choose_precision(self.options.precision, device)

    def client(self, view: ClientView) -> Client:
        """A client with all four networks."""
        return GeneratorClient(view, self.options)

    def server(self, view: ServerView) -> Server:
        """A server that averages generators, and discriminators where they travel.

        Raises:
            ConfigError: If there is noise to account for and Opacus is missing.
        """
        task, options = _classify(view.task), self.options
        if options.noise and find_spec("opacus") is None:
            raise ConfigError("options.ppidsg.noise: Opacus is not installed; pip install 'veilmark[federation]'")

        def start() -> nn.ModuleDict:
            generator = Generator(task.channels, skip="generator" not in options.published)
            return nn.ModuleDict({"generator": generator, "discriminator": Discriminator(task.channels)})

        # Every client starts from the same networks: the weights of different starts cannot be averaged.
        networks = task.seeded(start, view.seed)
        return FedAvgServer(_message({part: networks[part] for part in options.share}), metric_names(options))


def _message(networks: Mapping[str, nn.Module]) -> Tensors:
    """Weights of networks, as they travel."""
    return {
        f"{_PREFIXES[part]}{name}": value.clone().cpu()
        for part, network in networks.items()
        for name, value in network.state_dict().items()
    }


def metric_names(options: PPIDSGOptions) -> tuple[str, ...]:
    """The figures that a client declares."""
    if options.noise:
        return ("epsilon",)
    names = ("adversarial", "semantic", "class", "discriminator", "head", "accuracy")
    return (*names, "reconstruction") if options.extractor in ("separate", "key", "joint") else names


def _classify(task: object) -> Classify:
    if not isinstance(task, Classify):
        raise ConfigError("method ppidsg learns the task classify only")
    return task
