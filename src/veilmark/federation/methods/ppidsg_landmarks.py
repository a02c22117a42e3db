"""PPIDSG for landmarks: G carries a small face towards the scrambled image of the sharp one.

A local detector (structure stream: the extractor; heatmap heads: the classifier) reads what G makes, and the class loss
of G is the loss of landmarks. Only G travels. Block permutation is the step of the cipher that moves places, and
landmarks are places: ``without: [permute]`` leaves it out.

What differs from the paper (Ma, Yao and Xu 2024, arXiv 2312.10380), beside the task: the extractor learns from the
loss of landmarks with its heads, not from reconstruction, and starts anew with them, where the paper's classifier does
alone; G is made of DHLN's blocks and begins as the enlarged face; there is no pool of images; all learn by AdamW at one
rate.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from veilmark.federation.messages import Update
from veilmark.federation.methods.fedavg import FedAvgServer, chosen_tensors, train_locally
from veilmark.federation.methods.keyed import generated_detector, landmarks_task, start_detector
from veilmark.federation.methods.method import Client, ClientView, Method, Server, ServerView
from veilmark.federation.tasks.landmarks import LandmarksTask
from veilmark.ppidsg.cipher import BLOCKS, STEPS, Cipher
from veilmark.ppidsg.client_training import frozen, to_bytes, to_unit
from veilmark.ppidsg.losses import adversarial_loss, discriminator_loss, semantic_loss
from veilmark.ppidsg.networks import Discriminator
from veilmark.run.checkpoints import Tensors, pack_optimizer, unpack_optimizer
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import adamw, batches, rate, set_share
from veilmark.run.seeds import rng_for
from veilmark.sht.generated_detector import GeneratedDetector
from veilmark.sht.losses import Batch


class PPIDSGLandmarksOptions(BaseModel):
    """Options of ``ppidsg-landmarks``.

    Attributes:
        blocks: Residual blocks of G.
        start: Where detectors start: ``key``, the common secret; ``own``, a secret of each client.
        detector: ``restart``: learns, and starts anew every round, as the paper's classifier. ``kept``: learns from
            round to round. ``fixed``: stays at its start.
        generator_steps: Steps of G for each of the others.
        semantic: Weight of the distance of G(x) to the scrambled face.
        heatmaps: Weight of the loss of landmarks in G's.
        block: Side of the cipher's blocks in pixels.
        without: Steps of the cipher that are left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    blocks: int = Field(3, ge=1)
    start: Literal["key", "own"] = "key"
    detector: Literal["restart", "kept", "fixed"] = "restart"
    generator_steps: int = Field(2, ge=1)
    semantic: float = Field(1.0, ge=0)
    heatmaps: float = Field(2.0, ge=0)
    block: int = 4
    without: tuple[str, ...] = ()

    def network(self, task: LandmarksTask, seed: int) -> GeneratedDetector:
        """The network with these options."""
        return generated_detector(task, seed, self.blocks)

    @field_validator("block")
    @classmethod
    def _block(cls, block: int) -> int:
        if block not in BLOCKS:
            raise ValueError(f"allowed: {', '.join(map(str, BLOCKS))}")
        return block

    @field_validator("without")
    @classmethod
    def _steps(cls, without: tuple[str, ...]) -> tuple[str, ...]:
        for step in without:
            if step not in STEPS:
                raise ValueError(f"{step!r} is no step of the cipher; known: {', '.join(STEPS)}")
        return without


class PPIDSGLandmarksClient(Client):
    """G, D and a detector, trained in turns.

    Args:
        view: What the client knows.
        options: How it trains.
    """

    def __init__(self, view: ClientView, options: PPIDSGLandmarksOptions) -> None:
        task = landmarks_task(view.task, "ppidsg-landmarks")
        self.view, self.options = view, options
        self.network: GeneratedDetector = options.network(task, view.seed)
        own = view.secrets.federation if options.start == "key" else view.secrets.own
        self.secret = own.derive(b"key")
        start_detector(self.network, self.secret, options.detector == "fixed")
        self.discriminator = task.seeded(lambda: Discriminator(3), view.seed).to(view.device)
        steps = [step for step in STEPS if step not in options.without]
        self.cipher = Cipher(view.secrets.federation.derive(b"cipher"), options.block, steps)
        self.learner = task.learner_of(self.network, view.data, view.seed, view.number).to(view.device)
        # Not where it is fixed, nor of a client without labels that trains the generator only.
        trainable = any(parameter.requires_grad for parameter in self.network.detector.parameters())
        self.detector_learns = options.detector != "fixed" and trainable
        networks: dict[str, nn.Module] = {"generator": self.network.generator, "discriminator": self.discriminator}
        if self.detector_learns:
            networks["detector"] = self.network.detector
        self.networks = networks
        self.optimizers = {name: self._adamw(name) for name in networks}

    def train_round(self, broadcast: Tensors, round_number: int) -> Update:
        """G, the detector and D in turns; G is sent."""
        view, options = self.view, self.options
        self._take(broadcast)
        if options.detector == "restart" and self.detector_learns:
            start_detector(self.network, self.secret, fixed=False)
            self.optimizers["detector"] = self._adamw("detector")
        share = rate(round_number, view.rounds, view.training.decay_after)
        for optimizer in self.optimizers.values():
            set_share(optimizer, view.training, share)
        sums: dict[str, float] = {}
        steps = batches(self.learner.examples, view.training, view.seed, view.number, round_number)
        for step, rows in enumerate(steps):
            batch = self.learner.batch(rows, rng_for(view.seed, 22, view.number, round_number, step))
            for name, value in self._step(batch).items():
                sums[name] = sums.get(name, 0.0) + value
        figures = {name: value / len(steps) for name, value in sums.items()}
        weights = self.network.state_dict()
        shared = {name: weights[name].clone().cpu() for name in chosen_tensors(self.network, ("generator",))}
        return Update(shared, figures, self.learner.examples)

    def _adamw(self, name: str) -> torch.optim.AdamW:
        anew = name == "detector" and self.options.detector == "restart"
        return adamw(self.networks[name], self.view.training, restarts="" if anew else None)

    def _step(self, batch: Batch) -> dict[str, float]:
        options, network, criterion = self.options, self.network, self.learner.criterion
        # The cipher works on bytes; what is scrambled is the sharp face that DHLN would hallucinate.
        scrambled = to_unit(self.cipher.scramble(to_bytes(2 * batch.target - 1).cpu())).to(batch.target.device)
        for _ in range(options.generator_steps):
            with frozen(self.discriminator, network.detector):
                made = network.generator(batch.grid)
                losses = {
                    "adversarial": adversarial_loss(self.discriminator(2 * made - 1)),
                    "semantic": semantic_loss(2 * made - 1, scrambled),
                    "landmarks": criterion(network.detector(made), batch).total,
                }
                total = losses["adversarial"] + options.semantic * losses["semantic"]
                self._move("generator", total + options.heatmaps * losses["landmarks"])
        made = made.detach()
        if options.detector != "fixed":
            losses["detector"] = criterion(network.detector(made), batch).total
            if self.detector_learns:
                self._move("detector", losses["detector"])
        verdicts = self.discriminator(torch.cat([scrambled, 2 * made - 1]))
        losses["discriminator"] = discriminator_loss(*verdicts.chunk(2))
        self._move("discriminator", losses["discriminator"])
        return {name: float(value.detach()) for name, value in losses.items()}

    def _move(self, name: str, loss: Tensor) -> None:
        optimizer, network = self.optimizers[name], self.networks[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.view.training.clip:
            nn.utils.clip_grad_norm_(network.parameters(), self.view.training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def join(self, broadcast: Tensors) -> None:
        """All rounds of the detector alone, behind the finished G."""
        view = self.view
        self._take(broadcast)
        self.network.generator.requires_grad_(False)
        if self.detector_learns:
            # A newcomer's detector learns in one go.
            optimizer = adamw(self.network.detector, view.training)
            for number in range(view.rounds):
                train_locally(
                    self.learner,
                    view.training,
                    view.rounds,
                    view.seed,
                    view.number,
                    number,
                    optimizer,
                )

    def network_with(self, broadcast: Tensors) -> nn.Module:
        """The global G and the client's detector."""
        self._take(broadcast)
        return self.network

    def _take(self, broadcast: Tensors) -> None:
        self.network.load_state_dict(broadcast, strict=False)

    def predict(self, broadcast: Tensors, inputs: Tensor) -> Tensor:
        """Landmarks by the global G and the client's own detector."""
        self._take(broadcast)
        return self.learner.predict(inputs)

    def views(self, broadcast: Tensors, inputs: Tensor) -> dict[str, Tensor]:
        """The scrambled face that G imitates, what G sees, and what it makes."""
        self._take(broadcast)
        return {"scramble(x)": self.cipher.scramble(inputs), **self.learner.views(inputs)}

    def state(self) -> Tensors:
        """Detector, D, and the optimisers."""
        kept = {f"detector.{name}": value for name, value in self.network.detector.state_dict().items()}
        kept |= {f"discriminator.{name}": value for name, value in self.discriminator.state_dict().items()}
        for part, optimizer in self.optimizers.items():
            kept |= {f"optimizer.{part}.{name}": value for name, value in pack_optimizer(optimizer).items()}
        return kept

    def load_state(self, tensors: Tensors) -> None:
        """Goes on from :meth:`state`."""

        def below(prefix: str) -> Tensors:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.network.detector.load_state_dict(below("detector."))
        self.discriminator.load_state_dict(below("discriminator."))
        for part, optimizer in self.optimizers.items():
            unpack_optimizer(optimizer, below(f"optimizer.{part}."))


class PPIDSGLandmarks(Method[PPIDSGLandmarksOptions]):
    """Image distribution sharing, for landmarks."""

    summary = "the generator only"
    source = "after Ma, Yao and Xu 2024, arXiv 2312.10380"
    tasks = ("landmarks",)
    model = PPIDSGLandmarksOptions

    @property
    def personal(self) -> bool:
        """Every client has a detector of its own."""
        return True

    def client(self, view: ClientView) -> Client:
        """A client with all networks."""
        return PPIDSGLandmarksClient(view, self.options)

    def server(self, view: ServerView) -> Server:
        """A server that averages generators.

        Raises:
            ConfigError: If faces are no whole number of the cipher's blocks.
        """
        task, options = landmarks_task(view.task, "ppidsg-landmarks"), self.options
        side = task.config.network.size
        if side % options.block:
            raise ConfigError(f"faces of {side} px are no whole number of blocks of {options.block}; use another block")
        network = options.network(task, view.seed)
        weights = network.state_dict()
        metrics = ["adversarial", "semantic", "landmarks", "discriminator"]
        if options.detector != "fixed":
            metrics.append("detector")
        return FedAvgServer({name: weights[name] for name in chosen_tensors(network, ("generator",))}, tuple(metrics))
