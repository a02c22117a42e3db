"""FedCG: a conditional generator of features travels in place of the extractor (Wu et al. 2022, arXiv 2111.08211).

The classifier is cut in two. The extractor stays with the client; its head C, and a generator G(z, y) that imitates the
extractor's features of a class, are shared. A client's round: first extractor and C learn classes, while features are
drawn to those of the global G, more and more over the rounds; then G learns, against a discriminator that never leaves
the client, to make features like the extractor's. The server averages G and C, then trains both so that C(G(z, y))
answers as the clients' own G and C do together (distillation; z and y are drawn, no data is needed).

What differs from the authors' setting: extractor and C learn by the run's SGD (theirs: Adam, 2e-4); passes and batches
are the run's (theirs: 20 passes of batches of 8); and the server takes 100 steps of distillation in place of 2,000. All
but the first can be set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.func import functional_call

from veilmark.federation.feature_gan import (
    FeatureDiscriminator,
    FeatureGenerator,
    deceiving_loss,
    distillation_loss,
    real_or_made_loss,
)
from veilmark.federation.messages import Update
from veilmark.federation.methods.fedavg import FedAvgServer
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.tasks.classify import Classify
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.ppidsg.networks import FEATURES
from veilmark.run.checkpoints import Tensors, pack_optimizer, unpack_optimizer
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import batches, rate, sgd
from veilmark.run.seeds import rng_for

_DISTILLATION, _CLIENT, _START = 1, 2, 3
"""What chance of purpose 32 is for."""


class FedCGOptions(BaseModel):
    """Options of ``fedcg``; defaults are the authors' but for ``distillation_steps``.

    Attributes:
        noise: Numbers in z.
        pull: Weight of the distance between features and the global G's, once it is fully there.
        pull_rounds: Rounds over which the weight rises from 0; see :func:`pull_weight`.
        gan_passes: Passes of G and D over a client's pictures, for each pass of extractor and C.
        gan_lr: Learning rate of G and D (Adam, betas 0.5 and 0.999).
        distillation_steps: The server's steps a round; 0 only averages.
        distillation_batch: Drawn z and y of a step.
        distillation_lr: The server's learning rate (Adam).
        head: Which C answers test pictures: the ``global`` one, which the client takes into the next round, or its
            ``own`` as it was after training, before averaging, which the paper reports.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    noise: int = Field(100, ge=1)
    pull: float = Field(1.0, ge=0)
    pull_rounds: int = Field(50, ge=1)
    gan_passes: int = Field(1, ge=1)
    gan_lr: float = Field(2e-4, gt=0, le=1)
    distillation_steps: int = Field(100, ge=0)
    distillation_batch: int = Field(8, ge=1)
    distillation_lr: float = Field(2e-4, gt=0, le=1)
    head: Literal["global", "own"] = "global"


def pull_weight(options: FedCGOptions, round_number: int) -> float:
    """Weight of the distance in a round, which counts from 0: ``pull (2 / (1 + exp(-10 p)) - 1)``.

    ``p`` is the share of ``pull_rounds`` that has passed, 1 at most. The first global G knows nothing: weight 0.
    """
    passed = min(round_number / options.pull_rounds, 1.0)
    return options.pull * (2 / (1 + math.exp(-10 * passed)) - 1)


def _start(task: Classify, options: FedCGOptions, seed: int) -> FeatureGenerator:
    return task.seeded(lambda: FeatureGenerator(len(task.classes), FEATURES, task.side // 4, options.noise), seed)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _normal(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal((rows, columns), dtype=np.float32))


def _on_cpu(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{key}": value.clone().cpu() for key, value in tensors.items()}


class FedCGClient(Client):
    """A client of FedCG: extractor and discriminator of its own, head and generator shared.

    Args:
        view: What it knows.
        options: How it trains.
    """

    def __init__(self, view: ClientView, options: FedCGOptions) -> None:
        task = _classify(view.task)
        self.view, self.options, self.data = view, options, view.data.to(view.device)
        self.network = task.network(view.seed).to(view.device)
        self.generator = _start(task, options, view.seed).to(view.device)
        # Every client's D is its own from the start: it is never averaged.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng_for(view.seed, 32, _START, view.number).integers(2**31)))
            self.discriminator = FeatureDiscriminator(len(task.classes), FEATURES, task.side // 4).to(view.device)
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), options.gan_lr, betas=(0.5, 0.999))
            for name, network in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        self.own_head = {k: v.clone() for k, v in self.network.classifier.state_dict().items()}

    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """Classes first, then the imitation of features."""
        self._take(broadcast)
        figures = self._learn_classes(round_number) | self._learn_features(round_number)
        self.own_head = {k: v.clone() for k, v in self.network.classifier.state_dict().items()}
        shared = _on_cpu("generator.", self.generator.state_dict()) | _on_cpu("classifier.", self.own_head)
        return Update(shared, figures, len(self.view.data))

    def _take(self, broadcast: Tensors) -> None:
        self.generator.load_state_dict(_below("generator.", broadcast))
        self.network.classifier.load_state_dict(_below("classifier.", broadcast))

    def _rows(self, round_number: int) -> list[Tensor]:
        view = self.view
        return batches(len(view.data), view.training, view.seed, view.number, round_number)

    def _chance(self, round_number: int, stage: int) -> np.random.Generator:
        return rng_for(self.view.seed, 32, _CLIENT, self.view.number, round_number, stage)

    def _learn_classes(self, round_number: int) -> dict[str, float]:
        """Stage 1: cross-entropy, and the squared distance of features to those that the global G makes."""
        view, weight = self.view, pull_weight(self.options, round_number)
        rng, steps = self._chance(round_number, 1), []
        optimizer = sgd(self.network, view.training, rate(round_number, view.rounds, view.training.decay_after))
        for rows in self._rows(round_number):
            labels = self.data.targets[rows]
            with torch.no_grad():
                aims = self.generator(_normal(rng, len(rows), self.options.noise).to(view.device), labels)
            features = self.network.extractor(to_unit(self.data.inputs[rows]))
            logits = self.network.classifier(features)
            loss, distance = class_loss(logits, labels), torch.nn.functional.mse_loss(features, aims)
            optimizer.zero_grad(set_to_none=True)
            (loss + weight * distance).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            right = 100 * (logits.argmax(dim=1) == labels).float().mean()
            steps.append((len(rows), {"loss": loss.detach(), "accuracy": right, "distance": distance.detach()}))
        return _means(steps)

    def _learn_features(self, round_number: int) -> dict[str, float]:
        """Stage 2: D and G in turns, on the features of the extractor as it now is."""
        view, steps = self.view, []
        rng = self._chance(round_number, 2)
        for rows in self._rows(round_number) * self.options.gan_passes:
            labels = self.data.targets[rows]
            with torch.no_grad():
                features = self.network.extractor(to_unit(self.data.inputs[rows]))
            made = self.generator(_normal(rng, len(rows), self.options.noise).to(view.device), labels)
            judging = real_or_made_loss(self.discriminator(features, labels), self.discriminator(made.detach(), labels))
            self._descend("discriminator", judging)
            self.discriminator.requires_grad_(False)
            deceiving = deceiving_loss(self.discriminator(made, labels))
            self._descend("generator", deceiving)
            self.discriminator.requires_grad_(True)
            steps.append((len(rows), {"discriminator": judging.detach(), "generator": deceiving.detach()}))
        return _means(steps)

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def predict(self, broadcast: Tensors, inputs: Tensor) -> Tensor:
        """Classes ``(n,)`` by the client's own extractor and the configured head."""
        self._take(broadcast)
        if self.options.head == "own":
            self.network.classifier.load_state_dict(self.own_head)
        inputs = inputs.to(self.view.device)
        with torch.inference_mode():
            return torch.cat([self.network(to_unit(some)).argmax(dim=1) for some in torch.split(inputs, 256)]).cpu()

    def state(self) -> Tensors:
        """Extractor, D, and the optimisers of G and D; its own head too where that answers."""
        own: dict[str, nn.Module] = {"extractor": self.network.extractor, "discriminator": self.discriminator}
        tensors = {f"{name}.{k}": v for name, network in own.items() for k, v in network.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            tensors |= {f"optimizer.{name}.{k}": v for k, v in pack_optimizer(optimizer).items()}
        if self.options.head == "own":
            tensors |= {f"classifier.{k}": v for k, v in self.own_head.items()}
        return tensors

    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""
        self.network.extractor.load_state_dict(_below("extractor.", tensors))
        self.discriminator.load_state_dict(_below("discriminator.", tensors))
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(optimizer, _below(f"optimizer.{name}.", tensors))
        if self.options.head == "own":
            self.own_head = _below("classifier.", tensors)


def _means(steps: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
    """Means of figures over examples, from (examples, figures) of each step."""
    total = sum(rows for rows, _ in steps)
    return {name: sum(rows * float(figures[name]) for rows, figures in steps) / total for name in steps[0][1]}


class FedCGServer(FedAvgServer):
    """Averages G and C, then distils the clients' into them.

    Args:
        view: The public configuration.
        options: How it distils.
    """

    def __init__(self, view: ServerView, options: FedCGOptions) -> None:
        task = _classify(view.task)
        self.view, self.options, self.classes = view, options, len(task.classes)
        self.generator, self.head = _start(task, options, view.seed), task.network(view.seed).classifier
        both = nn.ModuleDict({"generator": self.generator, "classifier": self.head})
        super().__init__(both.state_dict(), (*task.metrics, "distance", "discriminator", "generator"))
        self.both, self.rounds = both, 0
        self.optimizer = torch.optim.Adam(both.parameters(), options.distillation_lr)

    def combine(self, updates: Mapping[int, Update]) -> None:
        """The weighted mean, then the distillation."""
        super().combine(updates)
        if self.options.distillation_steps:
            self.both.load_state_dict(self.shared)
            self._distil(updates)
            self.shared = {name: value.clone() for name, value in self.both.state_dict().items()}
        self.rounds += 1

    def _distil(self, updates: Mapping[int, Update]) -> None:
        options, count = self.options, self.options.distillation_batch
        rng = rng_for(self.view.seed, 32, _DISTILLATION, self.rounds)
        total = sum(update.examples for update in updates.values())
        for _ in range(options.distillation_steps):
            z, y = _normal(rng, count, options.noise), torch.from_numpy(rng.integers(self.classes, size=count))
            aims = torch.zeros(count, self.classes)
            with torch.no_grad():
                for number in sorted(updates):
                    tensors = updates[number].tensors
                    features = functional_call(self.generator, _below("generator.", tensors), (z, y))
                    logits = functional_call(self.head, _below("classifier.", tensors), (features,))
                    aims += logits * (updates[number].examples / total)
            self.optimizer.zero_grad(set_to_none=True)
            distillation_loss(self.head(self.generator(z, y)), aims).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def state(self) -> Tensors:
        """What is shared, the distillation's optimiser, and how many rounds there were."""
        optimizer = {f"optimizer.{name}": value for name, value in pack_optimizer(self.optimizer).items()}
        return self.shared | optimizer | {"rounds": torch.tensor(self.rounds)}

    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""
        self.shared = {name: tensors[name] for name in self.shared}
        self.rounds = int(tensors["rounds"])
        unpack_optimizer(self.optimizer, _below("optimizer.", tensors))


class FedCG(Method[FedCGOptions]):
    """Generators of features and heads are shared, extractors are not."""

    summary = "a generator of features and the classifier's head"
    source = "Wu et al. 2022, IJCAI, arXiv 2111.08211"
    tasks = ("classify",)
    plain_sgd = True
    model = FedCGOptions

    @property
    def personal(self) -> bool:
        """Every client has an extractor of its own."""
        return True

    def client(self, view: ClientView) -> Client:
        """A client with all four networks."""
        return FedCGClient(view, self.options)

    def server(self, view: ServerView) -> Server:
        """A server that averages and distils."""
        return FedCGServer(view, self.options)


def _classify(task: object) -> Classify:
    if not isinstance(task, Classify):
        raise ConfigError("method fedcg learns the task classify only")
    return task
