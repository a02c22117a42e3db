"""Which device a computation runs on, and in which precision."""

from __future__ import annotations

from typing import Literal

import torch

from veilmark.run.errors import ConfigError

Precision = Literal["auto", "32-true", "bf16-mixed"]
"""``bf16-mixed``: weights and losses in float32, layers in bfloat16 (PyTorch's autocast). ``auto``: see
:func:`choose_precision`."""


ComputedIn = Literal["32-true", "bf16-mixed"]
"""What it comes to on a device."""


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


def choose_precision(precision: Precision, device: torch.device) -> ComputedIn:
    """What ``auto`` means on a device: bfloat16 where the hardware multiplies in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"
