"""What a client of PPIDSG does in a round (arXiv 2312.10380, section 4): G, F, C and D in turns, on its own pictures.

Work whose result would be thrown away is not done: no gradients of D, F and C in the generator's steps, no decoder
there, no gradients of F in the classifier's step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.history import History
from veilmark.ppidsg.losses import (
    adversarial_loss,
    class_loss,
    discriminator_loss,
    reconstruction_loss,
    semantic_loss,
)
from veilmark.ppidsg.networks import (
    Classifier,
    Discriminator,
    Extractor,
    Generator,
    Pixels,
    feature_count,
    start_from_secret,
)
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors, pack_optimizer, unpack_optimizer
from veilmark.run.errors import ConfigError
from veilmark.run.seeds import rng_for

Head = Literal["key", "kept"]
ExtractorTraining = Literal["separate", "joint", "key", "fixed", "none"]


class ClientConfig(BaseModel):
    """How a client trains.

    Attributes:
        batch: Pictures a step.
        epochs: Passes over the client's pictures a round.
        local_steps: Steps a round in place of whole passes; 0 means passes.
        generator_steps: Steps of G for each of the others.
        generator_lr: Adam's learning rate for G and D (0.5, 0.999).
        classifier_lr: SGD's learning rate for F and C (momentum 0.9, weight decay 1e-3).
        semantic: Weight of the semantic loss.
        classes: Weight of the class loss.
        decay_after: Rounds after which learning rates fall, in a line, to zero at ``rounds``.
        rounds: Rounds that the schedule is made for.
        history: Pictures that the pool holds.
        head: ``key``: C restarts every round from the common secret (the paper). ``kept``: C stays the client's own.
        extractor: ``separate``: F learns to reconstruct only (the paper). ``joint``: also from the labels, with C.
            ``key``: restarts every round from the common secret. ``fixed``: stays at that start. ``none``: C reads
            pixels.
        head_widths: Widths of C's two hidden layers.
        published: The published code's generator without skips and its pool whose labels stay behind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    batch: int = Field(64, ge=1)
    epochs: int = Field(1, ge=1)
    local_steps: int = Field(0, ge=0)
    generator_steps: int = Field(2, ge=1)
    generator_lr: float = Field(2e-4, gt=0, le=1)
    classifier_lr: float = Field(0.01, gt=0, le=1)
    semantic: float = Field(1.0, ge=0)
    classes: float = Field(2.0, ge=0)
    decay_after: int = Field(20, ge=0)
    rounds: int = Field(50, ge=1)
    history: int = Field(50, ge=0)
    head: Head = "key"
    extractor: ExtractorTraining = "separate"
    head_widths: tuple[int, int] = (4096, 1024)
    published: bool = False


def rate(round_number: int, config: ClientConfig) -> float:
    """Share of the learning rates in a round, which count from 0: 1, then a line that reaches 0 at ``rounds``."""
    if round_number < config.decay_after:
        return 1.0
    left = config.rounds - round_number
    return max(0.0, left / max(1, config.rounds - config.decay_after))


def to_unit(pictures: Tensor) -> Tensor:
    """Bytes ``(n, c, h, w)`` to floats in [-1, 1]."""
    return pictures.float() / 127.5 - 1


@contextmanager
def _frozen(*networks: nn.Module) -> Iterator[None]:
    """No gradients are computed for these networks' weights meanwhile."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class PPIDSGClient:
    """One client: its pictures, its networks, its optimisers.

    Args:
        pictures: ``(n, c, s, s)`` uint8, ``s`` a multiple of 4, 16 or more.
        labels: ``(n,)`` int64.
        classes: Number of classes.
        cipher: What scrambles; it holds the secret of the configured scope.
        key: The common secret that C (and F) start from.
        config: How it trains.
        seed: The run's seed.
        number: The client's number.
        names: One name per picture, for the scope ``image``; None for a secret that all pictures share.

    Raises:
        ConfigError: If the networks do not take pictures of that side, or there are none.
    """

    def __init__(
        self,
        pictures: Tensor,
        labels: Tensor,
        classes: int,
        cipher: Cipher,
        key: Secret,
        config: ClientConfig,
        seed: int = 0,
        number: int = 0,
        *,
        names: list[bytes] | None = None,
    ) -> None:
        if not len(pictures):
            raise ConfigError(f"client {number} has no picture; use fewer clients, or a larger alpha")
        self.pictures, self.labels, self.config, self.key = pictures, labels, config, key
        self.seed, self.number = seed, number
        channels, side = pictures.shape[1], pictures.shape[2]
        inputs = feature_count(channels, side, extractor=config.extractor != "none")
        if cipher.padded(side, side) != (side, side):
            raise ConfigError(
                f"pictures of {side} px are no whole number of blocks of {cipher.block}; use another block"
            )
        # Scrambled once: the secret does not change within a run.
        self.scrambled = cipher.scramble(pictures, names)
        # Fresh weights by (seed, client), whatever has been drawn in this process before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng_for(seed, 20, number).integers(2**31)))
            self.generator = Generator(channels, skip=not config.published)
            self.discriminator = Discriminator(channels)
            self.extractor: Extractor | Pixels = Pixels() if config.extractor == "none" else Extractor(channels)
            self.classifier = Classifier(inputs, classes, config.head_widths)
        self.history = History(config.history, config.published)
        self._restart(first=True)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters(), config.generator_lr, betas=(0.5, 0.999))
            for name, network in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        self.optimizers |= self._plain_optimizers()

    def _plain_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        learning = {"classifier": self.classifier, "extractor": self.extractor}
        return {
            name: torch.optim.SGD(network.parameters(), self.config.classifier_lr, momentum=0.9, weight_decay=1e-3)
            for name, network in learning.items()
            if any(True for _ in network.parameters())
            and not (name == "extractor" and self.config.extractor == "fixed")
        }

    def _restart(self, first: bool) -> None:
        """Puts C and F where the key says they start; at the first time, those that are kept too."""
        config = self.config
        if config.head == "key":
            start_from_secret(self.classifier, self.key, "C")
        if config.extractor == "key" or (config.extractor == "fixed" and first):
            start_from_secret(self.extractor, self.key, "F")

    def train_round(self, shared: Tensors, round_number: int) -> dict[str, float]:
        """Takes the global G, trains for a round, and leaves its own G in ``generator``.

        Args:
            shared: The global G, by name.
            round_number: From 0.

        Returns:
            Means over the steps: losses, and ``accuracy`` of C on the pictures it learned from, in percent.
        """
        config = self.config
        self.generator.load_state_dict(shared)
        self._restart(first=False)
        fresh = self._plain_optimizers()
        # What restarts has no momentum from before.
        if config.head == "key":
            self.optimizers["classifier"] = fresh["classifier"]
        if config.extractor == "key":
            self.optimizers["extractor"] = fresh["extractor"]
        share = rate(round_number, config)
        for name, optimizer in self.optimizers.items():
            base = config.generator_lr if name in ("generator", "discriminator") else config.classifier_lr
            for group in optimizer.param_groups:
                group["lr"] = share * base
        sums: dict[str, float] = {}
        batches = self._batches(round_number)
        for step, rows in enumerate(batches):
            rng = rng_for(self.seed, 22, self.number, round_number, step)
            for name, value in self._step(rows, rng).items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: value / len(batches) for name, value in sums.items()}

    def _batches(self, round_number: int) -> list[Tensor]:
        """Rows of every step of a round."""
        config, n = self.config, len(self.pictures)
        rng = rng_for(self.seed, 21, self.number, round_number)
        steps = -(-n // config.batch)
        wanted = config.local_steps or config.epochs * steps
        batches: list[Tensor] = []
        while len(batches) < wanted:
            batches += list(torch.split(torch.from_numpy(rng.permutation(n)), config.batch))
        return batches[:wanted]

    def _step(self, rows: Tensor, rng: np.random.Generator) -> dict[str, float]:
        config = self.config
        x, y, labels = to_unit(self.pictures[rows]), to_unit(self.scrambled[rows]), self.labels[rows]
        with _frozen(self.discriminator, self.extractor, self.classifier):
            for _ in range(config.generator_steps):
                generated = self.generator(x)
                adversarial = adversarial_loss(self.discriminator(generated))
                semantic = semantic_loss(generated, y)
                total = adversarial + config.semantic * semantic
                of_classes = torch.zeros(())
                if config.classes:
                    of_classes = class_loss(self.classifier(self.extractor(generated)), labels)
                    total = total + config.classes * of_classes
                self._descend(total, "generator")
        with torch.no_grad():
            generated = self.generator(x)
        pictures, said = self.history.exchange(generated, labels, rng)
        found = self._learn_classes(pictures, said)
        verdicts = self.discriminator(torch.cat([y, pictures]))
        judged = discriminator_loss(*verdicts.chunk(2))
        self._descend(judged, "discriminator")
        losses = {"adversarial": adversarial, "semantic": semantic, "class": of_classes, "discriminator": judged}
        return {name: float(value.detach()) for name, value in losses.items()} | found

    def _learn_classes(self, pictures: Tensor, labels: Tensor) -> dict[str, float]:
        """The steps of F and C on generated pictures."""
        config, found = self.config, {}
        if isinstance(self.extractor, Extractor) and config.extractor in ("separate", "key"):
            loss = reconstruction_loss(self.extractor.reconstruct(pictures), pictures)
            self._descend(loss, "extractor")
            found["reconstruction"] = float(loss.detach())
        if isinstance(self.extractor, Extractor) and config.extractor == "joint":
            features = self.extractor(pictures)
            logits = self.classifier(features)
            again = reconstruction_loss(self.extractor.decoder(features), pictures)
            found["reconstruction"] = float(again.detach())
            of_classes = class_loss(logits, labels)
            self._descend(again + of_classes, "extractor", "classifier")
        else:
            with torch.no_grad():
                features = self.extractor(pictures)
            logits = self.classifier(features)
            of_classes = class_loss(logits, labels)
            self._descend(of_classes, "classifier")
        found["head"] = float(of_classes.detach())
        found["accuracy"] = 100 * float((logits.argmax(dim=1) == labels).float().mean())
        return found

    def _descend(self, loss: Tensor, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for name in names:
            self.optimizers[name].step()

    def predict(self, pictures: Tensor, batch: int = 256) -> Tensor:
        """Classes ``(n,)`` of pictures ``(n, c, s, s)`` uint8, by this client's own networks; nothing is scrambled."""
        with torch.inference_mode():
            parts = [
                self.classifier(self.extractor(self.generator(to_unit(some)))).argmax(dim=1)
                for some in torch.split(pictures, batch)
            ]
        return torch.cat(parts)

    def state(self) -> Tensors:
        """All that the client keeps between rounds, on its own disk: D, F, C, every optimiser, the history."""
        tensors: Tensors = {"history.labels": self.history.labels}
        if self.history.pictures is not None:
            tensors["history.pictures"] = self.history.pictures
        for name in ("discriminator", "extractor", "classifier"):
            network: nn.Module = getattr(self, name)
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in pack_optimizer(optimizer).items()}
        return tensors

    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""

        def below(prefix: str) -> Tensors:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        for name in ("discriminator", "extractor", "classifier"):
            getattr(self, name).load_state_dict(below(f"{name}."))
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(optimizer, below(f"optimizer.{name}."))
        self.history.labels = tensors["history.labels"]
        self.history.pictures = tensors.get("history.pictures")
