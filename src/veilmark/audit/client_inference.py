"""Which client sent an update: whether messages of two rounds can be linked to one sender by what is in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.record import Record, RecordedRound, ThreatModel
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for

TRIALS = 10
"""Orders, and draws of noise, that controls are a mean over."""


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


def by_luck(hits: int, clients: int) -> float:
    """How likely a random order puts as many messages, or more, where they belong.

    Args:
        hits: Messages that are linked to their sender.
        clients: How many there are.
    """
    misplaced = [1, 0]
    for count in range(2, clients + 1):
        misplaced.append((count - 1) * (misplaced[-1] + misplaced[-2]))
    ways = sum(math.comb(clients, right) * misplaced[clients - right] for right in range(hits, clients + 1))
    return ways / math.factorial(clients)


def linked_percent(guess: Sequence[int], truth: Sequence[int]) -> float:
    """Share of messages linked to their sender, in percent; chance is 100 / clients."""
    return 100 * float(np.mean(np.asarray(guess) == np.asarray(truth)))


class Linking(Attack):
    """Whether messages of two rounds can be linked to one sender, were they anonymous."""

    name = "linking of messages"
    cost = 2.0
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
        """The first recorded round against the last; names are shuffled before, and known to the scorer only.

        One assignment is one draw, however many clients it names: its lower end is the figure itself where a random
        order does as well in 2.5 % of cases at most, and 0 where it may be luck.
        """
        rounds = scene.record.rounds[0], scene.record.rounds[-1]
        clients = sorted(set(rounds[0].updates) & set(rounds[1].updates))
        movements = [self._vectors(some, clients) for some in rounds]
        chance, spread = 100 / len(clients), [float(row.std()) for row in movements[0]]
        value = self._linked(scene, movements[0], movements[1], 0)
        near: list[float] = []
        noise: list[float] = []
        for trial in range(1, 1 + TRIALS):
            generator = torch.Generator().manual_seed(int(rng_for(scene.seed, 76, trial).integers(2**31)))
            blurs = [some * torch.randn(movements[0][0].shape, generator=generator) for some in spread]
            blurred = [row + 0.5 * blur for row, blur in zip(movements[0], blurs, strict=True)]
            near.append(self._linked(scene, movements[0], blurred, trial))
            noise.append(self._linked(scene, movements[0], blurs, trial))
            scene.advance()
        what = ("linked to its sender", "%")
        hits = round(value / chance)
        real = self._finding(scene, REAL, *what, [value], chance)
        real = replace(real, low=value if by_luck(hits, len(clients)) <= 0.025 else 0.0, high=100.0)
        found = [self._finding(scene, "the same round, with noise", *what, near, chance), real]
        return with_controls(found, float(np.mean(near)), float(np.mean(noise)))

    def _vectors(self, recorded: RecordedRound, clients: Sequence[int]) -> list[Tensor]:
        """What is compared of each client's message."""
        return [moved(recorded.broadcast, recorded.updates[client].tensors) for client in clients]

    def _linked(self, scene: Scene, one: Sequence[Tensor], other: Sequence[Tensor], trial: int) -> float:
        """Percent of messages that are linked to their sender when those of the other round come in another order."""
        order = rng_for(scene.seed, 32, trial).permutation(len(one))
        truth = [int(place) for place in np.argsort(order)]
        return linked_percent(link(one, [other[place] for place in order], scene.device), truth)


class LinkingByFigures(Linking):
    """The same by what is declared beside the tensors alone: how many examples, and the method's figures."""

    name = "linking by declared figures"
    cost = 0.1
    needs = "what is declared beside the tensors of two recorded rounds"
    question = "Could the server tell senders apart by declared figures alone: how many pictures, which losses?"

    def obstacle(self, record: Record) -> str | None:
        """Two rounds in which clients declare something by which they differ."""
        if len(record.rounds) < 2:
            return "only one round was recorded"
        first, last = record.rounds[0], record.rounds[-1]
        both = sorted(set(first.updates) & set(last.updates))
        if len(both) < 2:
            return "fewer than two clients sent messages in both rounds"
        if not all(torch.stack(self._vectors(some, both)).any() for some in (first, last)):
            return "all clients declare the same"
        return None

    def _vectors(self, recorded: RecordedRound, clients: Sequence[int]) -> list[Tensor]:
        """Examples and figures of each client's message, in standard deviations of its round."""
        updates = [recorded.updates[client] for client in clients]
        rows = torch.tensor([[math.log(some.examples), *some.metrics.values()] for some in updates])
        apart = rows - rows.mean(dim=0)
        # What is the same for all says nothing, whatever the last digit says.
        spread = apart.std(dim=0, correction=0)
        told = spread > 1e-6 * rows.abs().amax(dim=0)
        return list(torch.where(told, apart / spread.clamp(min=1e-30), torch.zeros(())))
