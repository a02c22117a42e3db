"""What several processes that train one network need beside the averaged gradients: agreement, and a common end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor

from veilmark.run.errors import ConfigError

_HOW = "see docs/scale.md"


def check_shares(batches: Mapping[str, int], processes: int) -> None:
    """Refuses batches that the processes cannot share evenly: the mean of their gradients would not be the batch's.

    Args:
        batches: Setting to size of the whole batch, such as ``{"schedule.batch": 16}``.
        processes: Devices of all machines.

    Raises:
        ConfigError: If a size is not a multiple of ``processes``; both are named.
    """
    for name, size in batches.items():
        if size % processes:
            more = size + processes - size % processes
            raise ConfigError(
                f"{name} is {size}, the whole batch, which {processes} processes (--devices x --nodes) cannot share "
                f"evenly; use a multiple of {processes}, such as --set {name}={more}"
            )


def check_launcher(devices: int, nodes: int) -> None:
    """Refuses what would wait forever: other processes were started than asked for, or nobody starts them.

    Args:
        devices: Processes on each machine.
        nodes: Machines.

    Raises:
        ConfigError: If torchrun or SLURM has started another number, or there are several machines and nothing in
            the environment that says where the first one is.
    """
    for name, environment in (("torchrun", TorchElasticEnvironment), ("SLURM", SLURMEnvironment)):
        if environment.detect():
            started = environment().world_size()
            if started != devices * nodes:
                raise ConfigError(
                    f"{name} has started {started} processes, but --devices {devices} x --nodes {nodes} = "
                    f"{devices * nodes}; make both the same ({_HOW})"
                )
            return
    if nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise ConfigError(
            f"--nodes {nodes}: nothing says which machine this is; start the command by torchrun or srun on every "
            f"machine ({_HOW})"
        )


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process: the same answer in all, which must all ask."""
    if not _together():
        return flag
    known = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(known, torch.distributed.ReduceOp.MAX)
    return bool(known.item())


def range_of(number: int, device: torch.device) -> tuple[int, int]:
    """The least and the greatest of a number that every process has; all must ask."""
    if not _together():
        return number, number
    known = torch.tensor([-number, number], device=device)
    torch.distributed.all_reduce(known, torch.distributed.ReduceOp.MAX)
    least, greatest = known.tolist()
    return -least, greatest


def means(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over the processes of numbers that each has of its own share of a batch; all must ask.

    Args:
        values: Name to scalar; the same names in all processes.
    """
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if _together():
        torch.distributed.all_reduce(stacked)
        stacked /= torch.distributed.get_world_size()
    return dict(zip(values, stacked.tolist(), strict=True))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the step was finished and the checkpoint written."""


@contextmanager
def stop_between_steps() -> Iterator[threading.Event]:
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


@contextmanager
def ending_together(fabric: Fabric) -> Iterator[None]:
    """Ends the processes that this one has started, if this one fails: they would wait for it in vain.

    Processes that torchrun or SLURM has started are ended by these.
    """
    try:
        yield
    except BaseException:
        started = getattr(fabric.strategy.launcher, "procs", [])
        children = list(started)
        # Fabric watches this list, and kills this process where it sees a killed child: before it has said why.
        started.clear()
        for child in children:
            child.kill()
        raise
