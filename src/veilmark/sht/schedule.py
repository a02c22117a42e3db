"""How long and how fast a network learns: the schedule, the learning rate by step, the optimiser."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from veilmark.run.devices import Precision


class Schedule(BaseModel):
    """How long and how fast a network learns.

    Attributes:
        epochs: Passes over the faces; 0 leaves the stage out, where there are weights to start from.
        batch: Faces per step, over all processes.
        lr: Peak learning rate of AdamW; it rises over ``warmup`` and falls along a cosine.
        warmup: Share of the steps over which the learning rate rises.
        span: The part of the cosine that this stage walks: ``[0, 0.5]`` in one stage and ``[0.5, 1]`` in the next,
            with the same ``lr``, make one fall of both.
        weight_decay: AdamW's, on matrices and kernels only.
        clip: Largest norm of the gradient.
        ema: Decay of the moving average of the weights, which is what is evaluated and released.
        checkpoint_minutes: A killed run loses at most this.
        validate_epochs: Epochs between two validations.
        precision: ``bf16-mixed``, ``32-true``, or ``auto``: bfloat16 on every device that computes in it
            natively; CPUs without it emulate it at a fifteenth of the speed.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads; 0 leaves them as they are.
        readers: Threads that prepare the next batches; one keeps a CPU busy, a GPU may need eight.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int = Field(60, ge=0)
    batch: int = Field(16, ge=1)
    lr: float = Field(1e-3, gt=0, le=1)
    warmup: float = Field(0.05, ge=0, lt=1)
    span: tuple[float, float] = (0.0, 1.0)
    weight_decay: float = Field(0.02, ge=0)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    checkpoint_minutes: float = Field(3.0, gt=0)
    validate_epochs: int = Field(5, ge=1)
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(0, ge=0)
    readers: int = Field(1, ge=1, le=64)

    @field_validator("span")
    @classmethod
    def _rising(cls, span: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= span[0] < span[1] <= 1:
            raise ValueError(f"span is {list(span)}; it needs 0 <= start < end <= 1")
        return span


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """Linear rise, then a cosine, to zero where ``span`` ends at 1. ``step`` counts from 0 to ``steps - 1``."""
    start, end = schedule.span
    top = schedule.lr * 0.5 * (1 + math.cos(math.pi * start))
    rise = max(1, round(schedule.warmup * steps))
    if step < rise:
        return top * (step + 1) / rise
    place = start + (end - start) * (step - rise) / max(1, steps - rise)
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * place))


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
