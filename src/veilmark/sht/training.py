"""The training loop: plain, on Lightning Fabric, resumable at any step to the same weights."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from veilmark.run.checkpoints import pack_optimizer, read_tensors, unpack_optimizer, write_tensors
from veilmark.run.devices import choose_precision
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.folder import RunError, RunFolder
from veilmark.run.progress import console, figures_table, progress_bar
from veilmark.sht.losses import Losses
from veilmark.sht.parallel import Interrupted, any_process, check_launcher, means, range_of, stop_between_steps
from veilmark.sht.roles import Critic, Inputs, Samples
from veilmark.sht.schedule import Schedule, learning_rate, make_optimizer, set_rate

Network = TypeVar("Network", bound=nn.Module)
Drawn = TypeVar("Drawn", bound=Inputs)

_NOTE_EVERY = 10
"""Steps between two notes on the progress bar."""


def make_fabric(schedule: Schedule, devices: int = 1, nodes: int = 1) -> Fabric:
    """Devices, processes and precision of a training, which launches them once it has checked what it can.

    Args:
        schedule: Names the device and the precision.
        devices: Processes on each machine, one a GPU; on CPUs as many as asked for.
        nodes: Machines.

    Raises:
        ConfigError: If there are fewer GPUs, or the processes have been started otherwise.
    """
    check_launcher(devices, nodes)
    gpus = torch.cuda.device_count()
    if schedule.device != "cpu" and gpus < devices and (gpus or schedule.device == "cuda"):
        raise ConfigError(
            f"--devices {devices} with schedule.device={schedule.device}, but this machine has {gpus} CUDA devices; "
            "ask for as many as it has, or add --set schedule.device=cpu"
        )
    accelerator = "gpu" if schedule.device == "cuda" else schedule.device
    precision = choose_precision(schedule.precision, Fabric(accelerator=accelerator, devices=1).device)
    strategy = "ddp" if devices * nodes > 1 else "auto"
    return Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision)


class Trainer(Generic[Network, Drawn]):
    """Trains one network in one run folder.

    Args:
        run: The run folder, held by the caller.
        model: The network.
        loss: Maps its output and a batch to losses.
        samples: The training samples.
        schedule: How long and how fast.
        validate: Maps the averaged network to figures, a size to its own; called every few epochs.
        fabric: Devices and processes, launched by the caller; one, made from the schedule, by default.
        stage: Name of the stage in checkpoint and log.
        first_step: Steps of the stages before, for the log.
        critic: A discriminator that is trained in turn with the network.
        enrich: Adds to a batch what only the averaged network knows, such as pseudo labels.

    Several processes each take a share of every batch; the weights are the same in all after every step. The first
    one alone validates, logs and saves.

    Raises:
        ConfigError: If the processes cannot share a step evenly.
        DataError: If they do not find the same faces.
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
        self._check_processes()
        if schedule.threads:
            # Not earlier: launching several processes sets the threads of each.
            torch.set_num_threads(schedule.threads)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.optimizer = self.fabric.setup(model, make_optimizer(model, schedule))
        # Not earlier: the setup gives every process the weights of the first.
        self.average: Network = copy.deepcopy(self.model.module).requires_grad_(False)
        if critic is not None:
            judge = critic.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.judge, self.judge_optimizer = self.fabric.setup(judge, make_optimizer(judge, schedule))
        self.per_epoch = max(1, len(samples) // schedule.batch)
        self.steps = self.per_epoch * schedule.epochs
        self.step = 0
        self.seconds = 0.0

    def _check_processes(self) -> None:
        fewest, most = range_of(len(self.samples), self.fabric.device)
        if fewest != most:
            raise DataError(
                f"one process finds {fewest} training faces, another {most}; every machine needs the same data set"
            )
        step, world = min(most, self.schedule.batch), self.fabric.world_size
        if step % world:
            raise ConfigError(
                f"a step has {step} of {most} training faces, which {world} processes cannot share evenly; choose a "
                f"schedule.batch that is a multiple of {world}, and no larger than the number of faces"
            )

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
        """Goes back to the last checkpoint, whatever number of processes wrote it; False if there is none.

        Raises:
            RunError: If not all processes see the same checkpoint.
        """
        if self.checkpoint.exists():
            self._load()
        least, greatest = range_of(self.step, self.fabric.device)
        if least != greatest:
            raise RunError(
                f"{self.checkpoint}: one process sees step {greatest}, another step {least}; the run folder must lie "
                "on a disk that all machines share"
            )
        # A finished stage writes no line again, and those of the stages after it are theirs to drop.
        if self.step < self.steps and self.fabric.is_global_zero:
            self.run.keep_log(self.first_step + self.step)
        return self.step > 0

    def _load(self) -> None:
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
            Interrupted: After Ctrl-C in any process, in all of them at the same step, with the checkpoint written.
        """
        if self.step >= self.steps:
            return self.average
        with (
            stop_between_steps() as stop,
            ThreadPoolExecutor(self.schedule.readers) as reader,
            progress_bar("steps") as bar,
        ):
            task = bar.add_task("training", total=self.steps, completed=self.step, note="")
            ahead = min(self.steps, self.step + self.schedule.readers)
            upcoming = deque(reader.submit(self._batch, step) for step in range(self.step, ahead))
            saved = tick = time.monotonic()
            began, waited, since = tick, 0.0, self.step
            while self.step < self.steps:
                ready = time.monotonic()
                batch = upcoming.popleft().result().to(self.fabric.device)
                waited += time.monotonic() - ready
                if self.step + self.schedule.readers < self.steps:
                    upcoming.append(reader.submit(self._batch, self.step + self.schedule.readers))
                self.model.train()
                losses = self._learn(batch)
                now = time.monotonic()
                self.seconds, tick = self.seconds + now - tick, now
                last = self.step == self.steps
                epoch_done = self.step % self.per_epoch == 0
                if epoch_done or last:
                    speed = (self.step - since) * self.schedule.batch / (now - began)
                    parts = {f"loss_{name}": value for name, value in losses.parts.items()}
                    record = means({"loss": losses.total} | parts) | {
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
                stopped = any_process(stop.is_set(), self.fabric.device)
                if last or stopped or now - saved > 60 * self.schedule.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
                if stopped:
                    raise Interrupted
        return self.average
