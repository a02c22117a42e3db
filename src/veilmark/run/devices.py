"""Which device a computation runs on."""

from __future__ import annotations

import torch

from veilmark.run.errors import ConfigError


def choose_device(device: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` means here.

    Raises:
        ConfigError: If it is not a device, or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:<number>") from None
    if chosen.type not in ("cpu", "cuda") or (
        chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(f"device {device!r} is not available here; use --device cpu")
    return chosen
