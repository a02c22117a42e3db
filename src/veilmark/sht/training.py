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
from typing import Any, Generic, Literal, TypeVar

import torch
from lightning.fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from veilmark.run.checkpoints import pack_optimizer, read_tensors, unpack_optimizer, write_tensors
from veilmark.run.folder import RunFolder
from veilmark.run.progress import console, figures_table, progress_bar
from veilmark.sht.losses import Batch, Losses
from veilmark.sht.samples import TrainingFaces

Network = TypeVar("Network", bound=nn.Module)
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


class Trainer(Generic[Network]):
    """Trains one network in one run folder.

    Args:
        run: The run folder, held by the caller.
        model: The network.
        loss: Maps its output and a batch to losses.
        faces: The training faces.
        schedule: How long and how fast.
        validate: Maps the averaged network to figures, a size to its own; called every few epochs.
    """

    def __init__(
        self,
        run: RunFolder,
        model: Network,
        loss: Callable[[Any, Batch], Losses],
        faces: TrainingFaces,
        schedule: Schedule,
        validate: Callable[[Network], dict[str, dict[str, float]]],
    ) -> None:
        if schedule.threads:
            torch.set_num_threads(schedule.threads)
        accelerator = "gpu" if schedule.device == "cuda" else schedule.device
        device = Fabric(accelerator=accelerator, devices=1).device
        precision = choose_precision(schedule.precision, device)
        self.fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        self.run, self.loss, self.faces, self.schedule, self.validate = run, loss, faces, schedule, validate
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(model).to(device).requires_grad_(False)
        self.model, self.optimizer = self.fabric.setup(model, make_optimizer(model, schedule))
        self.per_epoch = max(1, len(faces.cache) // schedule.batch)
        self.steps = self.per_epoch * schedule.epochs
        self.step = 0
        self.seconds = 0.0

    @property
    def _checkpoint(self) -> Path:
        return self.run.checkpoints / "last.safetensors"

    def save(self) -> None:
        """Writes the checkpoint: weights, their average, the optimiser's state, the step."""
        tensors = {f"model.{k}": v for k, v in self.model.module.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in pack_optimizer(self.optimizer).items()}
        write_tensors(self._checkpoint, tensors, {"step": str(self.step), "seconds": f"{self.seconds:.1f}"})

    def restore(self) -> bool:
        """Goes back to the last checkpoint; False if there is none."""
        if not self._checkpoint.exists():
            return False
        tensors, metadata = read_tensors(self._checkpoint)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.module.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        unpack_optimizer(self.optimizer, part("optimizer."))
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        self.run.keep_log(self.step)
        return True

    def _batch(self, step: int) -> Batch:
        epoch, number = divmod(step, self.per_epoch)
        size = self.schedule.batch
        return self.faces.batch(epoch, self.faces.order(epoch)[number * size : (number + 1) * size])

    def _learn(self, batch: Batch) -> Losses:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.schedule)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.loss(self.model(batch.grid), batch)
        self.fabric.backward(losses.total)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.schedule.clip)
        self.optimizer.step()
        self.step += 1
        # Early on a long memory would remember the random start.
        decay = min(self.schedule.ema, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.module.parameters()), weight=1 - decay
            )
        return losses

    def _validate(self) -> dict[str, dict[str, float]]:
        figures = self.validate(self.average)
        self.run.log({"step": self.step, "epoch": self.step / self.per_epoch, "validation": figures})
        console.print(figures_table(f"validation after epoch {self.step / self.per_epoch:.0f}", figures))
        return figures

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
                    record = {
                        "step": self.step,
                        "epoch": self.step / self.per_epoch,
                        "loss": float(losses.total.detach()),
                    }
                    record |= {f"loss_{name}": float(value) for name, value in losses.parts.items()}
                    record |= {
                        "images_per_second": speed,
                        "waiting_percent": 100 * waited / (now - began),
                        "seconds": self.seconds,
                    }
                    self.run.log(record)
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
