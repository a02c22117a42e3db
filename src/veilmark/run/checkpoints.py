"""Checkpoints: safetensors and nothing else, written under a temporary name and renamed."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from veilmark.run.errors import WeightsError

Tensors = dict[str, Tensor]


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors to one safetensors file, whole or not at all.

    Args:
        path: The file.
        tensors: Name to tensor, on any device.
        metadata: Short texts kept in the header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata or None)
    os.replace(temporary, path)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        WeightsError: If the file is missing, broken, or of another kind (a pickle, for example, which may run
            any code when it is loaded and is refused).
    """
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file ({error}); pickled weights (.pth, .pt, .bin) are never "
            "loaded: convert them with safetensors.torch.save_file where they were made"
        ) from None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's state as named tensors: ``<parameter number>.<key>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{key}": torch.as_tensor(value) for number, entry in state.items() for key, value in entry.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Puts the state of :func:`pack_optimizer` back; the groups' settings stay those of ``optimizer``."""
    state: dict[int, Tensors] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        # A copy: tensors of a file would keep all of it in memory.
        state.setdefault(int(number), {})[key] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
