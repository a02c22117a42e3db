"""The training loop: plain, on Lightning Fabric, resumable at any step to the same weights."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import torch
from lightning.fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from veilmark.run.checkpoints import pack_optimizer, read_tensors, unpack_optimizer, write_tensors
from veilmark.run.folder import RunFolder
from veilmark.run.progress import console, figures_table, progress_bar
from veilmark.sht.losses import Losses

Network = TypeVar("Network", bound=nn.Module)
Drawn = TypeVar("Drawn", bound="Inputs")
Drawn_co = TypeVar("Drawn_co", bound="Inputs", covariant=True)
Precision = Literal["auto", "32-true", "bf16-mixed"]


_NOTE_EVERY = 10
"""Steps between two notes on the progress bar."""


class Schedule(BaseModel):
    """How long and how fast a network learns.

    Attributes:
        epochs: Passes over the faces.
        batch: Faces per step.
        lr: Peak learning rate of AdamW; it rises over ``warmup`` and falls along a cosine.
        warmup: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's, on matrices and kernels only.
        clip: Largest norm of the gradient.
        ema: Decay of the moving average of the weights, which is what is evaluated and released.
        checkpoint_minutes: A killed run loses at most this.
        validate_epochs: Epochs between two validations.
        precision: ``bf16-mixed``, ``32-true``, or ``auto``: bfloat16 on every device that computes in it
            natively; CPUs without it emulate it at a fifteenth of the speed.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads; 0 leaves them as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int = Field(60, ge=1)
    batch: int = Field(16, ge=1)
    lr: float = Field(1e-3, gt=0, le=1)
    warmup: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.02, ge=0)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    checkpoint_minutes: float = Field(3.0, gt=0)
    validate_epochs: int = Field(5, ge=1)
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0)


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """Linear rise, then a cosine to zero. ``step`` counts from 0 to ``steps - 1``."""
    rise = max(1, round(schedule.warmup * steps))
    if step < rise:
        return schedule.lr * (step + 1) / rise
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def choose_precision(precision: Precision, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """What ``auto`` means on a device: bfloat16 where the hardware multiplies in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def make_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels, none on norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.99))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives all parameters one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_fabric(schedule: Schedule, devices: int = 1, nodes: int = 1) -> Fabric:
    """Devices, processes and precision of a training; the caller launches it if there is more than one process.

    Args:
        schedule: Names the device, the precision and the threads.
        devices: Processes on each machine, one a GPU.
        nodes: Machines.
    """
    if schedule.threads:
        torch.set_num_threads(schedule.threads)
    accelerator = "gpu" if schedule.device == "cuda" else schedule.device
    device = Fabric(accelerator=accelerator, devices=1).device
    precision = choose_precision(schedule.precision, device)
    strategy = "ddp" if devices * nodes > 1 else "auto"
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the step was finished and the checkpoint written."""


@contextmanager
def _stop_between_steps() -> Iterator[threading.Event]:
    """Turns Ctrl-C into a flag, so that no step is cut in half."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Inputs(Protocol):
    """A batch: knows what of it goes through the network, and how it goes to another device."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of the network's ``forward``."""
        ...

    def to(self, device: torch.device) -> Self:
        """The batch on another device."""
        ...


class Samples(Protocol[Drawn_co]):
    """Training samples, drawn from (seed, epoch, place in it) alone."""

    def __len__(self) -> int:
        """Samples of an epoch."""
        ...

    def step(self, epoch: int, number: int, size: int, rank: int = 0, world: int = 1) -> Drawn_co:
        """The share of process ``rank`` of ``world`` in batch ``number`` of an epoch, ``size`` samples in all."""
        ...


class Critic(Protocol):
    """A network that learns to tell the trained network's answers from the truth."""

    @property
    def network(self) -> nn.Module:
        """The critic itself."""
        ...

    def loss(self, network: nn.Module, output: Any, batch: Any) -> Tensor:
        """What the critic minimises, given an output without gradients."""
        ...


class Trainer(Generic[Network, Drawn]):
    """Trains one network in one run folder.

    Args:
        run: The run folder, held by the caller.
        model: The network.
        loss: Maps its output and a batch to losses.
        samples: The training samples.
        schedule: How long and how fast.
        validate: Maps the averaged network to figures, a size to its own; called every few epochs.
        fabric: Devices and processes, launched by the caller; made from the schedule by default.
        stage: Name of the stage in checkpoint and log.
        first_step: Steps of the stages before, for the log.
        critic: A discriminator that is trained in turn with the network.
        enrich: Adds to a batch what only the averaged network knows, such as pseudo labels.
    """

    def __init__(
        self,
        run: RunFolder,
        model: Network,
        loss: Callable[[Any, Drawn], Losses],
        samples: Samples[Drawn],
        schedule: Schedule,
        validate: Callable[[Network], dict[str, dict[str, float]]],
        *,
        fabric: Fabric | None = None,
        stage: str = "last",
        first_step: int = 0,
        critic: Critic | None = None,
        enrich: Callable[[Network, Drawn], Drawn] | None = None,
    ) -> None:
        self.fabric = fabric or make_fabric(schedule)
        self.run, self.loss, self.samples, self.schedule, self.validate = run, loss, samples, schedule, validate
        self.stage, self.first_step, self.critic, self.enrich = stage, first_step, critic, enrich
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(model).to(self.fabric.device).requires_grad_(False)
        self.model, self.optimizer = self.fabric.setup(model, make_optimizer(model, schedule))
        if critic is not None:
            judge = critic.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.judge, self.judge_optimizer = self.fabric.setup(judge, make_optimizer(judge, schedule))
        self.per_epoch = max(1, len(samples) // schedule.batch)
        self.steps = self.per_epoch * schedule.epochs
        self.step = 0
        self.seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        """The stage's checkpoint."""
        return self.run.checkpoints / f"{self.stage}.safetensors"

    def save(self) -> None:
        """Writes the checkpoint: weights, their average, the optimisers' state, the step."""
        if not self.fabric.is_global_zero:
            return
        tensors = {f"model.{k}": v for k, v in self.model.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in pack_optimizer(self.optimizer).items()}
        if self.critic is not None:
            tensors |= {f"judge.{k}": v for k, v in self.judge.module.state_dict().items()}
            tensors |= {f"judge_optimizer.{k}": v for k, v in pack_optimizer(self.judge_optimizer).items()}
        write_tensors(self.checkpoint, tensors, {"step": str(self.step), "seconds": f"{self.seconds:.1f}"})

    def restore(self) -> bool:
        """Goes back to the last checkpoint; False if there is none."""
        if not self.checkpoint.exists():
            return False
        tensors, metadata = read_tensors(self.checkpoint)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.module.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        unpack_optimizer(self.optimizer, part("optimizer."))
        if self.critic is not None:
            self.judge.module.load_state_dict(part("judge."))
            unpack_optimizer(self.judge_optimizer, part("judge_optimizer."))
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        if self.fabric.is_global_zero:
            self.run.keep_log(self.first_step + self.step)
        return True

    def _batch(self, step: int) -> Drawn:
        epoch, number = divmod(step, self.per_epoch)
        return self.samples.step(epoch, number, self.schedule.batch, self.fabric.global_rank, self.fabric.world_size)

    def _learn(self, batch: Drawn) -> Losses:
        rate = learning_rate(self.step, self.steps, self.schedule)
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        if self.enrich is not None:
            batch = self.enrich(self.average, batch)
        output = self.model(*batch.inputs)
        losses = self.loss(output, batch)
        self.fabric.backward(losses.total)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.schedule.clip)
        self.optimizer.step()
        if self.critic is not None:
            set_rate(self.judge_optimizer, rate)
            # The network's own step has left gradients in the critic, too: they are not its business.
            self.judge_optimizer.zero_grad(set_to_none=True)
            judged = self.critic.loss(self.judge, output, batch)
            self.fabric.backward(judged)
            self.fabric.clip_gradients(self.judge, self.judge_optimizer, max_norm=self.schedule.clip)
            self.judge_optimizer.step()
            losses.parts["critic"] = judged.detach()
        self.step += 1
        # Early on a long memory would remember the random start.
        decay = min(self.schedule.ema, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.module.parameters()), weight=1 - decay
            )
        return losses

    def _log(self, record: dict[str, Any]) -> None:
        place = {"step": self.first_step + self.step, "stage": self.stage, "epoch": self.step / self.per_epoch}
        if self.fabric.is_global_zero:
            self.run.log(place | record)

    def _validate(self) -> None:
        if self.fabric.is_global_zero:
            figures = self.validate(self.average)
            self._log({"validation": figures})
            console.print(figures_table(f"validation after epoch {self.step / self.per_epoch:.0f}", figures))
        self.fabric.barrier()

    def fit(self) -> Network:
        """Trains from the step reached to the last.

        Returns:
            The averaged network.

        Raises:
            Interrupted: After Ctrl-C, with the checkpoint written.
        """
        if self.step >= self.steps:
            return self.average
        with (
            _stop_between_steps() as stop,
            ThreadPoolExecutor(1) as reader,
            progress_bar("steps") as bar,
        ):
            task = bar.add_task("training", total=self.steps, completed=self.step, note="")
            upcoming = reader.submit(self._batch, self.step)
            saved = tick = time.monotonic()
            began, waited, since = tick, 0.0, self.step
            while self.step < self.steps:
                ready = time.monotonic()
                batch = upcoming.result().to(self.fabric.device)
                waited += time.monotonic() - ready
                if self.step + 1 < self.steps:
                    upcoming = reader.submit(self._batch, self.step + 1)
                self.model.train()
                losses = self._learn(batch)
                now = time.monotonic()
                self.seconds, tick = self.seconds + now - tick, now
                last = self.step == self.steps
                epoch_done = self.step % self.per_epoch == 0
                if epoch_done or last:
                    speed = (self.step - since) * self.schedule.batch / (now - began)
                    record = {"loss": float(losses.total.detach())}
                    record |= {f"loss_{name}": float(value) for name, value in losses.parts.items()}
                    record |= {
                        "images_per_second": speed,
                        "waiting_percent": 100 * waited / (now - began),
                        "seconds": self.seconds,
                    }
                    self._log(record)
                    if last or self.step % (self.per_epoch * self.schedule.validate_epochs) == 0:
                        self._validate()
                        tick = time.monotonic()
                    began, waited, since = time.monotonic(), 0.0, self.step
                bar.update(task, completed=self.step)
                if self.step % _NOTE_EVERY == 0 and self.step > since:
                    pace = (self.step - since) * self.schedule.batch / max(1e-9, now - began)
                    bar.update(task, note=f"loss {float(losses.total.detach()):.3f}, {pace:.0f} images/s")
                if last or stop.is_set() or now - saved > 60 * self.schedule.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
                if stop.is_set():
                    raise Interrupted
        return self.average
