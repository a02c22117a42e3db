"""What a client of PPIDSG does in a round (arXiv 2312.10380, section 4): G, F, C and D in turns, on its own pictures.

Work whose result would be thrown away is not done: no gradients of D, F and C in the generator's steps, no decoder
there, no gradients of F in the classifier's step, none of C's that would be written down only to be added once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.head_step import head_step
from veilmark.ppidsg.history import History
from veilmark.ppidsg.losses import (
    adversarial_loss,
    class_loss,
    discriminator_loss,
    proximal_loss,
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
from veilmark.run.devices import Precision, choose_precision
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training, batches, rate, sgd
from veilmark.run.seeds import rng_for

AT_ONCE = 26_000
"""Pixels whose graph is held at once in the steps of G and F: 33 pictures of 28 px, 25 of 32 px. Twice as many take
some 5 % less time, and 130 MB more. In bfloat16 a graph is half as large, and twice as many fit."""

Head = Literal["key", "kept", "fixed"]
Defect = Literal["generator", "pool"]
ExtractorTraining = Literal["separate", "joint", "key", "fixed", "none"]


class ClientConfig(BaseModel):
    """What is PPIDSG's own in a client's training.

    Attributes:
        generator_steps: Steps of G for each of the others.
        generator_lr: Adam's learning rate for G and D (0.5, 0.999).
        keep_adam: Whether G's Adam remembers the rounds before; else it starts anew with each broadcast.
        semantic: Weight of the semantic loss.
        classes: Weight of the class loss.
        warmup: Rounds of the semantic loss before the class loss joins.
        proximal: Weight of half the squared distance of G to the broadcast one (FedProx; Li et al. 2020).
        history: Pictures that the pool holds.
        head: ``key``: C restarts every round from the common secret (the paper). ``kept``: C stays the client's own.
            ``fixed``: C stays at that start, the same for all.
        extractor: ``separate``: F learns to reconstruct only (the paper). ``joint``: also from the labels, with C.
            ``key``: restarts every round from the common secret. ``fixed``: stays at that start. ``none``: C reads
            pixels.
        extractor_start: Where F starts that is kept (``separate``, ``joint``): ``key``, the common secret, so that all
            start alike as in the published code; or ``own``, each client's by chance.
        logit_adjustment: Whether the class losses are told how often the client has each class, so that a client with
            few classes does not teach G and C that there are no others; see
            :func:`veilmark.ppidsg.losses.class_loss`. The counts stay with the client.
        published: Of the published code ``generator``, without skips, and ``pool``, whose labels stay behind; true is
            both of them, false none.
        precision: Of the layers of G, D and F while they learn: ``32-true``; ``bf16-mixed``, bfloat16 under PyTorch's
            autocast, with weights, losses, C and all answers in float32; or ``auto``, bfloat16 on every device that
            multiplies in it natively.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    generator_steps: int = Field(2, ge=1)
    generator_lr: float = Field(2e-4, gt=0, le=1)
    keep_adam: bool = True
    semantic: float = Field(1.0, ge=0)
    classes: float = Field(2.0, ge=0)
    warmup: int = Field(0, ge=0)
    proximal: float = Field(0.0, ge=0)
    history: int = Field(50, ge=0)
    head: Head = "key"
    extractor: ExtractorTraining = "separate"
    extractor_start: Literal["own", "key"] = "key"
    logit_adjustment: bool = False
    published: tuple[Defect, ...] = ()
    precision: Precision = "32-true"

    @field_validator("published", mode="before")
    @classmethod
    def _all_or_none(cls, value: object) -> object:
        if isinstance(value, bool):
            return get_args(Defect) if value else ()
        return value


def to_unit(pictures: Tensor) -> Tensor:
    """Bytes ``(n, c, h, w)`` to floats in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: Tensor) -> Tensor:
    """Floats in [-1, 1] to the nearest bytes."""
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def pieces(pictures: Tensor, halved: bool = False) -> int:
    """In how many pieces of like size a batch ``(n, c, h, w)`` is worked on, ``AT_ONCE`` or nearly so each.

    Args:
        pictures: The batch.
        halved: Whether layers compute in bfloat16.
    """
    count, _, height, width = pictures.shape
    return min(count, -(-count * height * width // (2 * AT_ONCE if halved else AT_ONCE)))


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
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
        config: What is PPIDSG's own.
        training: How long and how fast; its rate is that of F and C.
        rounds: Rounds of the run.
        head_widths: Widths of C's two hidden layers.
        seed: The run's seed.
        number: The client's number.
        names: One name per picture, for the scope ``image``; None for a secret that all pictures share.
        device: Where it computes.

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
        *,
        training: Training | None = None,
        rounds: int = 50,
        head_widths: tuple[int, int] = (4096, 1024),
        seed: int = 0,
        number: int = 0,
        names: list[bytes] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(pictures):
            raise ConfigError(f"client {number} has no picture; use fewer clients, or a larger alpha")
        self.device = torch.device(device)
        self.pictures, self.labels = pictures.to(self.device), labels.to(self.device)
        self.config, self.key = config, key
        self.halved = choose_precision(config.precision, self.device) == "bf16-mixed"
        self.training, self.rounds = training or Training(), rounds
        self.seed, self.number = seed, number
        channels, side = pictures.shape[1], pictures.shape[2]
        inputs = feature_count(channels, side, extractor=config.extractor != "none")
        if cipher.padded(side, side) != (side, side):
            raise ConfigError(
                f"pictures of {side} px are no whole number of blocks of {cipher.block}; use another block"
            )
        self.shares: Tensor | None = None
        if config.logit_adjustment:
            self.shares = torch.bincount(self.labels, minlength=classes) / len(self.labels)
        # Scrambled once: the secret does not change within a run.
        self.scrambled = cipher.scramble(pictures, names).to(self.device)
        # Fresh weights by (seed, client), whatever has been drawn in this process before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng_for(seed, 20, number).integers(2**31)))
            self.generator = Generator(channels, skip="generator" not in config.published)
            self.discriminator = Discriminator(channels)
            self.extractor: Extractor | Pixels = Pixels() if config.extractor == "none" else Extractor(channels)
            self.classifier = Classifier(inputs, classes, head_widths)
        # Not channels last: there, normalising each channel by itself costs more than the convolutions gain
        # (benchmarks/client_round.py).
        for network in (self.generator, self.discriminator, self.extractor, self.classifier):
            network.to(self.device)
        self.history = History(config.history, published="pool" in config.published)
        self._restart(first=True)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: self._adam(network)
            for name, network in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        self.optimizers |= self._plain_optimizers()

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), self.config.generator_lr, betas=(0.5, 0.999))

    def _plain_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        learning: dict[str, torch.optim.Optimizer] = {}
        if self.config.head != "fixed":
            learning["classifier"] = sgd(self.classifier, self.training, 1.0)
        if isinstance(self.extractor, Extractor) and self.config.extractor != "fixed":
            learning["extractor"] = sgd(self.extractor, self.training, 1.0)
        return learning

    def _restart(self, first: bool) -> None:
        """Puts C and F where the key says they start; at the first time, those that are kept too."""
        config = self.config
        if config.head == "key" or (config.head == "fixed" and first):
            start_from_secret(self.classifier, self.key, "C")
        common = config.extractor == "fixed" or config.extractor_start == "key"
        if config.extractor == "key" or (common and first):
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
        shared = {name: value.to(self.device) for name, value in shared.items()}
        self.generator.load_state_dict(shared)
        self._restart(first=False)
        falling = rate(round_number, self.rounds, self.training.decay_after)
        for name, optimizer in self.optimizers.items():
            base = config.generator_lr if name in ("generator", "discriminator") else self.training.lr
            # What starts anew has as far to go in the last round as in the first.
            share = 1.0 if self._restarts(name) else falling
            for group in optimizer.param_groups:
                group["lr"] = share * base
        sums: dict[str, float] = {}
        classes = config.classes if round_number >= config.warmup else 0.0
        steps = batches(len(self.pictures), self.training, self.seed, self.number, round_number)
        for step, rows in enumerate(steps):
            rng = rng_for(self.seed, 22, self.number, round_number, step)
            for name, value in self._step(rows, rng, classes, shared).items():
                sums[name] = sums.get(name, 0.0) + value
        self._forget()
        return {name: value / len(steps) for name, value in sums.items()}

    def _restarts(self, name: str) -> bool:
        """Whether a network starts anew every round."""
        return {"classifier": self.config.head, "extractor": self.config.extractor}.get(name) == "key"

    def _forget(self) -> None:
        """What restarts with the next round has no momentum from this one, and takes no memory until then."""
        lasting, fresh = self._lasting(), self._plain_optimizers() | {"generator": self._adam(self.generator)}
        for name in self.optimizers:
            if name not in lasting:
                self.optimizers[name] = fresh[name]

    def _step(self, rows: Tensor, rng: np.random.Generator, classes: float, shared: Tensors) -> dict[str, float]:
        config = self.config
        x, y, labels = to_unit(self.pictures[rows]), to_unit(self.scrambled[rows]), self.labels[rows]
        for _ in range(config.generator_steps):
            generated, losses = self._generator_step(x, y, labels, classes, shared)
        # G's last step has moved it a little since; what it made then is what D and F see, as GANs are usually trained.
        pictures, said = self.history.exchange(generated, labels, rng)
        found = self._extractor_step(pictures) | self._classifier_step(pictures, said)
        return losses | {"discriminator": self._discriminator_step(y, pictures)} | found

    def _layers(self) -> torch.autocast:
        """Inside, layers compute in the configured precision.

        C's, which are few and large, never do: a copy of its weights in bfloat16 would cost the memory and the time
        that it saves.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.halved)

    def _split(self, *batch: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Pieces of a batch whose first tensor is pictures."""
        count = pieces(batch[0], self.halved)
        return zip(*(torch.tensor_split(part, count) for part in batch), strict=True)

    def _generator_step(
        self, x: Tensor, y: Tensor, labels: Tensor, classes: float, shared: Tensors
    ) -> tuple[Tensor, dict[str, float]]:
        """One step of G; what it generated before the step, and its losses.

        A few pictures at a time: no answer depends on the others, so their gradients add up to the batch's, and the
        graph of four networks takes a part of the memory.
        """
        config = self.config
        made: list[Tensor] = []
        losses = dict.fromkeys(("adversarial", "semantic", "class"), 0.0)
        with frozen(self.discriminator, self.extractor, self.classifier):
            for some, wanted, named in self._split(x, y, labels):
                share = len(some) / len(x)
                with self._layers():
                    generated = self.generator(some)
                    verdicts = self.discriminator(generated).float()
                    features = self.extractor(generated) if classes else None
                generated = generated.float()
                parts = {
                    "adversarial": adversarial_loss(verdicts),
                    "semantic": semantic_loss(generated, wanted),
                }
                total = parts["adversarial"] + config.semantic * parts["semantic"]
                if features is not None:
                    parts["class"] = class_loss(self.classifier(features.float()), named, self.shares)
                    total = total + classes * parts["class"]
                (share * total).backward()  # type: ignore[no-untyped-call]
                made.append(generated.detach())
                for name, value in parts.items():
                    losses[name] += share * float(value.detach())
        if config.proximal:
            (config.proximal * proximal_loss(self.generator, shared)).backward()  # type: ignore[no-untyped-call]
        self._step_of("generator")
        return torch.cat(made), losses

    def _extractor_step(self, pictures: Tensor) -> dict[str, float]:
        """F learns to give generated pictures back, where it learns by itself."""
        if not isinstance(self.extractor, Extractor) or self.config.extractor not in ("separate", "key"):
            return {}
        sum_of_losses = 0.0
        for (some,) in self._split(pictures):
            with self._layers():
                again = self.extractor.reconstruct(some)
            loss = len(some) / len(pictures) * reconstruction_loss(again.float(), some)
            loss.backward()  # type: ignore[no-untyped-call]
            sum_of_losses += float(loss.detach())
        self._step_of("extractor")
        return {"reconstruction": sum_of_losses}

    def _classifier_step(self, pictures: Tensor, labels: Tensor) -> dict[str, float]:
        """C learns the classes of generated pictures; so does F where both learn jointly."""
        found: dict[str, float] = {}
        if isinstance(self.extractor, Extractor) and self.config.extractor == "joint":
            with self._layers():
                features = self.extractor(pictures)
                painted = self.extractor.decoder(features)
            again = reconstruction_loss(painted.float(), pictures)
            of_classes, logits, slope = self._head_step(features.float(), labels)
            torch.autograd.backward([again, features], [None, slope.to(features.dtype)])
            self._step_of("extractor")
            found["reconstruction"] = float(again.detach())
        else:
            with torch.no_grad(), self._layers():
                features = torch.cat([self.extractor(some) for (some,) in self._split(pictures)])
            of_classes, logits, _ = self._head_step(features.float(), labels)
        found["head"] = float(of_classes)
        found["accuracy"] = 100 * float((logits.argmax(dim=1) == labels).float().mean())
        return found

    def _head_step(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C's step, if it takes any: the loss, logits, and the loss' gradient for the features, all of before it."""
        optimizer = self.optimizers.get("classifier")
        if optimizer is not None:
            assert isinstance(optimizer, torch.optim.SGD)
            return head_step(self.classifier, optimizer, features, labels, self.shares)
        watched = features.detach().requires_grad_()
        with frozen(self.classifier):
            logits = self.classifier(watched)
            loss = class_loss(logits, labels, self.shares)
            (slope,) = torch.autograd.grad(loss, watched)
        return loss.detach(), logits.detach(), slope

    def _discriminator_step(self, scrambled: Tensor, pictures: Tensor) -> float:
        with self._layers():
            verdicts = self.discriminator(torch.cat([scrambled, pictures]))
        judged = discriminator_loss(*verdicts.float().chunk(2))
        judged.backward()  # type: ignore[no-untyped-call]
        self._step_of("discriminator")
        return float(judged.detach())

    def _step_of(self, name: str) -> None:
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)

    def predict(self, pictures: Tensor, batch: int = 128) -> Tensor:
        """Classes ``(n,)`` of pictures ``(n, c, s, s)`` uint8, by this client's own networks; nothing is scrambled."""
        pictures = pictures.to(self.device)
        with torch.inference_mode():
            parts = [
                self.classifier(self.extractor(self.generator(to_unit(some)))).argmax(dim=1)
                for some in torch.split(pictures, batch)
            ]
        return torch.cat(parts).cpu()

    def state(self) -> Tensors:
        """All that the client keeps between rounds, on its own disk: D, F, C, the history, and optimisers.

        What restarts with the next round has no optimiser to keep; C itself stays, to be scored. A network that stays
        where the common secret puts it is not kept: it is as good as the secret.
        """
        tensors: Tensors = {"history.labels": self.history.labels}
        if self.history.pictures is not None:
            tensors["history.pictures"] = self.history.pictures
        for name in self._own_networks():
            network: nn.Module = getattr(self, name)
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name in self._lasting():
            optimizer = self.optimizers[name]
            tensors |= {f"optimizer.{name}.{key}": value for key, value in pack_optimizer(optimizer).items()}
        return tensors

    def _own_networks(self) -> list[str]:
        """Networks beside G that are not what the common secret says."""
        fixed = {"extractor": self.config.extractor == "fixed", "classifier": self.config.head == "fixed"}
        return [name for name in ("discriminator", "extractor", "classifier") if not fixed.get(name, False)]

    def _lasting(self) -> list[str]:
        """Optimisers that remember the rounds before."""
        config = self.config
        fresh = {name for name in self.optimizers if self._restarts(name)}
        fresh |= set() if config.keep_adam else {"generator"}
        return [name for name in self.optimizers if name not in fresh]

    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""

        def below(prefix: str) -> Tensors:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        for name in self._own_networks():
            getattr(self, name).load_state_dict(below(f"{name}."))
        for name in self._lasting():
            unpack_optimizer(self.optimizers[name], below(f"optimizer.{name}."))
        # Copies: tensors of a file would keep all of it in memory.
        self.history.labels = tensors["history.labels"].to(self.device, copy=True)
        kept = tensors.get("history.pictures")
        self.history.pictures = None if kept is None else kept.to(self.device, copy=True)
