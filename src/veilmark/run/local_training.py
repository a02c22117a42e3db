"""One owner's training by rounds: how long, how fast, in which order; the same for every method."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from veilmark.run.seeds import rng_for


class Training(BaseModel):
    """How long and how fast clients learn.

    Attributes:
        batch: Examples a step.
        epochs: Passes over a client's examples a round.
        local_steps: Steps a round in place of whole passes; 0 means passes.
        optimizer: ``sgd``; or ``adamw`` (0.9, 0.99), whose memory of the gradients stays with the client from round to
            round. The classification methods of PPIDSG's paper take SGD.
        lr: Its learning rate.
        momentum: SGD's momentum, which starts at nothing in every round.
        weight_decay: The optimiser's.
        clip: Largest norm of a step's gradient; 0 for no limit.
        decay_after: Rounds after which learning rates fall, in a line, to zero at the end of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    batch: int = Field(64, ge=1)
    epochs: int = Field(1, ge=1)
    local_steps: int = Field(0, ge=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-3, ge=0)
    clip: float = Field(0.0, ge=0)
    decay_after: int = Field(20, ge=0)


def rate(round_number: int, rounds: int, decay_after: int) -> float:
    """Share of the learning rates in a round, which count from 0: 1, then a line that reaches 0 at ``rounds``."""
    if round_number < decay_after:
        return 1.0
    return max(0.0, (rounds - round_number) / max(1, rounds - decay_after))


def steps_of(examples: int, training: Training) -> int:
    """Steps of a client's round.

    Args:
        examples: How many examples the client has.
        training: Batch, passes or steps.
    """
    return training.local_steps or training.epochs * -(-examples // training.batch)


def batches(examples: int, training: Training, seed: int, number: int, round_number: int) -> list[Tensor]:
    """Rows of every step of a client's round, int64; each pass is a new order.

    Args:
        examples: How many examples the client has.
        training: Batch, passes or steps.
        seed: The run's seed.
        number: The client's number.
        round_number: From 0.
    """
    rng = rng_for(seed, 21, number, round_number)
    wanted = steps_of(examples, training)
    rows: list[Tensor] = []
    while len(rows) < wanted:
        rows += list(torch.split(torch.from_numpy(rng.permutation(examples)), training.batch))
    return rows[:wanted]


def sgd(model: nn.Module, training: Training, share: float) -> torch.optim.SGD:
    """The optimiser of one round.

    Args:
        model: What learns.
        training: Rate, momentum, weight decay.
        share: Share of the learning rate, 0 to 1.
    """
    return torch.optim.SGD(
        model.parameters(),
        share * training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        # One pass over the weights, and no copies of them on the way.
        fused=True,
    )


def adamw(model: nn.Module, training: Training, restarts: str | None = None) -> torch.optim.AdamW:
    """AdamW of all weights that learn, at the full rate; see :func:`set_share`.

    Args:
        model: What learns.
        training: Rate, weight decay.
        restarts: How the names of the weights begin that start anew every round; none do by default.
    """
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    anew = [parameter for name, parameter in learning if restarts is not None and name.startswith(restarts)]
    lasting = [parameter for name, parameter in learning if restarts is None or not name.startswith(restarts)]
    groups: list[dict[str, Any]] = [{"params": lasting}, {"params": anew, "restarts": True}]
    # Fused, a step of a small network is a fifteenth faster: it has many small tensors.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        training.lr,
        betas=(0.9, 0.99),
        weight_decay=training.weight_decay,
        fused=True,
    )


def set_share(optimizer: torch.optim.Optimizer, training: Training, share: float) -> None:
    """Sets the learning rate of a round.

    Args:
        optimizer: What is set; a group with ``restarts`` has the full rate always: what begins anew every round has
            as far to go in the last one as in the first.
        training: The full rate.
        share: Share of it, 0 to 1; see :func:`rate`.
    """
    for group in optimizer.param_groups:
        group["lr"] = training.lr if group.get("restarts") else share * training.lr


def sgd_weight(steps: int, momentum: float) -> float:
    """How often gradients of a round stand in the change of the weights, in units of the learning rate.

    With momentum the gradient of a step goes on to move the weights in all steps after it.

    Args:
        steps: Steps of the round; momentum starts at nothing.
        momentum: SGD's.
    """
    return sum((1 - momentum ** (steps - step)) / (1 - momentum) for step in range(steps))
