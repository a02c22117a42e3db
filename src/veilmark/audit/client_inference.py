"""Which client sent an update: whether messages of two rounds can be linked to one sender by what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.record import Record, ThreatModel
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for


def moved(broadcast: Tensors, sent: Tensors) -> Tensor:
    """How a client moved the weights: one vector, of the floating-point tensors that both have."""
    names = [name for name in sorted(sent) if name in broadcast and sent[name].is_floating_point()]
    return torch.cat([(sent[name] - broadcast[name]).flatten() for name in names])


def link(one: Sequence[Tensor], other: Sequence[Tensor], device: torch.device | str = "cpu") -> list[int]:
    """Links the messages of one round to those of another, which come without a name.

    Each message is what its client's movement has beyond the mean movement of its round; the assignment with the
    largest sum of cosines is the guess.

    Args:
        one: Movements of a round, one a client; two at least.
        other: Movements of another round, in an unknown order.
        device: Where they are compared.

    Returns:
        For each of ``one`` the place of its sender in ``other``.

    Raises:
        ValueError: If there are fewer than two, or not as many in both.
    """
    if len(one) < 2 or len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} messages; at least two, and as many in both rounds")
    rows = []
    for messages in (one, other):
        # In place: movements are long, and a GPU may have less memory than the machine.
        apart = torch.stack(list(messages)).to(device).double()
        apart -= apart.mean(dim=0)
        apart /= apart.norm(dim=1, keepdim=True).clamp(min=1e-30)
        rows.append(apart)
    _, places = linear_sum_assignment(-(rows[0] @ rows[1].T).cpu().numpy())
    return [int(place) for place in places]


def linked_percent(guess: Sequence[int], truth: Sequence[int]) -> float:
    """Share of messages linked to their sender, in percent; chance is 100 / clients."""
    return 100 * float(np.mean(np.asarray(guess) == np.asarray(truth)))


class Linking(Attack):
    """Whether messages of two rounds can be linked to one sender, were they anonymous."""

    name = "linking of messages"
    threat_model = ThreatModel.server
    needs = "messages of two recorded rounds"
    question = "If messages came without names, could the server tell which come from the same client?"

    def obstacle(self, record: Record) -> str | None:
        """Two rounds with messages of the same clients are needed."""
        if not record.declared.tensors:
            return "nothing travels"
        if len(record.rounds) < 2:
            return "only one round was recorded"
        both = set(record.rounds[0].updates) & set(record.rounds[-1].updates)
        return None if len(both) > 1 else "fewer than two clients sent messages in both rounds"

    def findings(self, scene: Scene) -> list[Finding]:
        """The first recorded round against the last; names are shuffled before, and known to the scorer only."""
        rounds = scene.record.rounds[0], scene.record.rounds[-1]
        clients = sorted(set(rounds[0].updates) & set(rounds[1].updates))
        order = rng_for(scene.seed, 32).permutation(len(clients))
        movements = [[moved(r.broadcast, r.updates[client].tensors) for client in clients] for r in rounds]
        shuffled = [movements[1][place] for place in order]
        truth = [int(place) for place in np.argsort(order)]
        chance = 100 / len(clients)
        hits = [100.0 * (a == b) for a, b in zip(link(movements[0], shuffled, scene.device), truth, strict=True)]
        generator = torch.Generator().manual_seed(scene.seed)
        spread = [float(row.std()) for row in movements[0]]
        noise = [s * torch.randn(movements[0][0].shape, generator=generator) for s in spread]
        near = [
            row + 0.5 * s * torch.randn(row.shape, generator=generator)
            for row, s in zip(movements[0], spread, strict=True)
        ]
        positive = linked_percent(link(movements[0], [near[place] for place in order], scene.device), truth)
        scene.advance()
        found = [
            self._finding(
                scene, "the same round, with noise", "linked to its sender", "%", [positive] * len(clients), chance
            ),
            self._finding(scene, REAL, "linked to its sender", "%", hits, chance),
        ]
        return with_controls(found, positive, linked_percent(link(movements[0], noise, scene.device), truth))
