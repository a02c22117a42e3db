"""Shadow networks: what a server can train itself on public pictures, to learn what being learned looks like.

Shadows start where the run started and learn as its clients do, each on half of a pool of public pictures. They come in
couples that learn complementary halves, so every picture of the pool is in half of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import Scene
from veilmark.audit.record import Record, network_of
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.run.local_training import batches, rate, sgd
from veilmark.run.seeds import rng_for

MOST_STEPS = 40
"""Training steps of a shadow at most: a run of many rounds would take its shadows as long."""
MOST_POOL = 400
"""Public pictures that shadows learn from, at most."""
KNOWN = 60
"""Public pictures at most of the shadows that learn theirs by heart: few are learned in few steps."""
KNOWN_STEPS = 12
"""Their steps of Adam."""
MOST_ASKED = 200
"""Pictures of each client that are asked about, at most."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Shadows:
    """What shadow networks say; the networks themselves are not kept.

    Attributes:
        member: ``(s, n)``: which shadow learned which picture of the pool; ``2 i`` and ``2 i + 1`` the two halves.
        pool: ``(s, n, k)`` logits on the pool.
        strangers: ``(s, m, k)`` logits on the pictures that nobody learned.
        owners: By client, ``(s, n, k)`` logits on the pictures in question.
    """

    member: Bools
    pool: Tensor
    strangers: Tensor
    owners: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Questions:
    """The pictures of an audit, divided.

    Attributes:
        pool: What shadows learn from.
        strangers: Pictures that nobody learned, drawn like the clients' where there are such.
        owners: By client, its own pictures in question. That they are members only the scorer knows.
    """

    pool: Data
    strangers: Data
    owners: dict[int, Data]


def questions(scene: Scene) -> Questions:
    """Divides the pictures: halves of the pool as large as a client's share, if there are as many public pictures."""
    public, last = scene.public, scene.record.rounds[-1]
    examples = max(update.examples for update in last.updates.values())
    order = rng_for(scene.seed, 50).permutation(len(public))
    count = min(MOST_POOL, len(public) // 2, max(KNOWN, 2 * examples)) // 2 * 2
    owners = {}
    for client in last.updates:
        own = scene.truth.owners[client]
        owners[client] = _taken(own, rng_for(scene.seed, 51, client).permutation(len(own))[:MOST_ASKED])
    strangers = scene.truth.strangers or _taken(public, order[count:])
    return Questions(_taken(public, order[:count]), strangers, owners)


_KEPT: WeakKeyDictionary[Record, dict[tuple[int, int, str], tuple[Shadows, Shadows]]] = WeakKeyDictionary()


def shadows_of(scene: Scene, asked: Questions, count: int) -> tuple[Shadows, Shadows]:
    """Trains shadows, once for all attacks on a record: some that know their pictures by heart, and some as the run.

    Args:
        scene: Its record, with the first broadcast and the public settings.
        asked: The pictures.
        count: How many shadows of each kind: even, 6 at least.

    Returns:
        Those by heart, which are asked about their own pool only; and those that learned as clients do.

    Raises:
        ValueError: If the count is odd or too small.
    """
    if count < 6 or count % 2:
        raise ValueError(f"{count} shadows: they come in couples, three at least")
    kept, key = _KEPT.setdefault(scene.record, {}), (scene.seed, count, str(scene.device))
    if key not in kept:
        few = _taken(asked.pool, np.arange(min(KNOWN, len(asked.pool))))
        nothing = Questions(few, _taken(few, np.arange(0)), {})
        by_heart = _trained(scene, nothing, count, _learn_by_heart, 52)
        kept[key] = by_heart, _trained(scene, asked, count, _learn_as_the_run, 53)
    return kept[key]


def _trained(
    scene: Scene, asked: Questions, count: int, learn: Callable[[Scene, nn.Module, Data, int], None], purpose: int
) -> Shadows:
    size = len(asked.pool)
    member = np.zeros((count, size), dtype=np.bool_)
    said: list[list[Tensor]] = []
    for number in range(count):
        half = rng_for(scene.seed, purpose, number // 2).permutation(size)[: size // 2]
        member[number, half] = True
        if number % 2:
            member[number] = ~member[number]
        network = network_of(scene.record, scene.record.rounds[0].broadcast, scene.device)
        learn(scene, network, _taken(asked.pool, np.flatnonzero(member[number])).to(scene.device), number)
        parts = [asked.pool, asked.strangers, *asked.owners.values()]
        said.append([logits_of(network, part.inputs) for part in parts])
        scene.advance()
    pool, strangers, *owners = (torch.stack(part) for part in zip(*said, strict=True))
    return Shadows(member, pool, strangers, dict(zip(asked.owners, owners, strict=True)))


def _learn_as_the_run(scene: Scene, network: nn.Module, data: Data, number: int) -> None:
    """As many rounds of as many steps as a client's, until there are too many."""
    config = scene.record.config
    left = MOST_STEPS
    for round_number in range(config.rounds):
        optimizer = sgd(network, config.training, rate(round_number, config.rounds, config.training.decay_after))
        for rows in batches(len(data), config.training, scene.seed, number, round_number)[:left]:
            _step(optimizer, network, data, rows)
            left -= 1
        if not left:
            return


def _learn_by_heart(scene: Scene, network: nn.Module, data: Data, number: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(KNOWN_STEPS):
        _step(optimizer, network, data, torch.arange(len(data)))


def _step(optimizer: torch.optim.Optimizer, network: nn.Module, data: Data, rows: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    class_loss(network(to_unit(data.inputs[rows])), data.targets[rows]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _taken(data: Data, rows: NDArray[np.integer]) -> Data:
    index = torch.from_numpy(rows)
    return Data(data.inputs[index], data.targets[index], tuple(data.names[row] for row in rows))
