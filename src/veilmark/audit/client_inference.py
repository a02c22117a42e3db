"""Which client sent an update: whether messages of two rounds can be linked to one sender by what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from veilmark.run.checkpoints import Tensors


def moved(broadcast: Tensors, sent: Tensors) -> Tensor:
    """How a client moved the weights: one vector, of the floating-point tensors that both have."""
    names = [name for name in sorted(sent) if name in broadcast and sent[name].is_floating_point()]
    return torch.cat([(sent[name] - broadcast[name]).flatten() for name in names])


def link(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[int]:
    """Links the messages of one round to those of another, which come without a name.

    Each message is what its client's movement has beyond the mean movement of its round; the assignment with the
    largest sum of cosines is the guess.

    Args:
        one: Movements of a round, one a client; two at least.
        other: Movements of another round, in an unknown order.

    Returns:
        For each of ``one`` the place of its sender in ``other``.

    Raises:
        ValueError: If there are fewer than two, or not as many in both.
    """
    if len(one) < 2 or len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} messages; at least two, and as many in both rounds")
    rows = []
    for messages in (one, other):
        stacked = torch.stack(list(messages)).double()
        apart = stacked - stacked.mean(dim=0)
        rows.append(apart / apart.norm(dim=1, keepdim=True).clamp(min=1e-30))
    _, places = linear_sum_assignment(-(rows[0] @ rows[1].T).numpy())
    return [int(place) for place in places]


def linked_percent(guess: Sequence[int], truth: Sequence[int]) -> float:
    """Share of messages linked to their sender, in percent; chance is 100 / clients."""
    return 100 * float(np.mean(np.asarray(guess) == np.asarray(truth)))
