"""Shadow federations: what a server can play itself, to learn what being learned looks like.

The server knows the public config: networks, first weights, method, rounds. So it plays federations of its own. Their
first client has half of the pictures in question, the others have public ones, and what is asked is what the first one
sends in its last round. They come in couples whose first clients have complementary halves: half of the shadows learned
a picture, the others did not, whoever's it is (Carlini et al. 2022, arXiv 2112.03570, online).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import Scene
from veilmark.audit.record import Record, network_of
from veilmark.federation.messages import Update
from veilmark.federation.methods.method import ClientView, Secrets
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.local_training import batches
from veilmark.run.seeds import rng_for

MOST_STEPS = 100
"""Training steps of a shadow's client at most: a run of many rounds would take its shadows as long."""
MOST_POOL = 1200
"""Pictures in question at most; half of them are a shadow's first client's."""
MOST_MEMBERS = 200
"""Pictures of the clients among them at most."""
CLIENTS = 4
"""Clients of a shadow federation, at most."""
KNOWN = 60
"""Public pictures at most of the shadows that learn theirs by heart: few are learned in few steps."""
KNOWN_STEPS = 12
"""Their steps of Adam."""

Bools = NDArray[np.bool_]
Rows = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Shadows:
    """What shadows say; their networks are not kept.

    Attributes:
        member: ``(s, n)``: which shadow learned which picture of the pool; ``2 i`` and ``2 i + 1`` the two halves.
        pool: ``(s, n, k)`` logits on the pool.
    """

    member: Bools
    pool: Tensor


@dataclass(frozen=True, eq=False)
class Questions:
    """The pictures of an audit, divided.

    Attributes:
        pool: The pictures in question: clients' own, and strangers. Which are which only the scorer knows.
        owners: By client, rows of its own.
        strangers: Rows of pictures that nobody learned, drawn like the clients' where there are such.
        others: What the other clients of a shadow federation learn.
        public: What is learned by heart.
    """

    pool: Data
    owners: dict[int, Rows]
    strangers: Rows
    others: list[Data]
    public: Data


def questions(scene: Scene) -> Questions:
    """Divides the pictures, so that half of the pool is as large as a client's share, if there are as many.

    Args:
        scene: Of the attack.
    """
    public, last = scene.public, scene.record.rounds[-1]
    wanted = min(MOST_POOL, max(KNOWN, 2 * max(update.examples for update in last.updates.values())))
    share = max(1, min(MOST_MEMBERS, wanted // 2) // len(last.updates))
    parts: list[Data] = []
    owners: dict[int, Rows] = {}
    begin = 0
    for client in last.updates:
        own = scene.truth.owners[client]
        parts.append(_taken(own, rng_for(scene.seed, 51, client).permutation(len(own))[:share]))
        owners[client] = np.arange(begin, begin + len(parts[-1]))
        begin += len(parts[-1])
    order = rng_for(scene.seed, 50).permutation(len(public))
    strange = scene.truth.strangers
    if strange is None:
        # Whom shadows' other clients have is no stranger: half and half.
        strange, order = _taken(public, order[: len(order) // 2]), order[len(order) // 2 :]
    chosen = rng_for(scene.seed, 55).permutation(len(strange))[: wanted - begin]
    parts.append(_taken(strange, chosen))
    pool = _joined(parts)
    strangers = np.arange(begin, len(pool))
    if len(pool) % 2:
        pool, strangers = _taken(pool, np.arange(len(pool) - 1)), strangers[:-1]
    count = min(CLIENTS, scene.record.config.clients) - 1
    others = [_taken(public, rows) for rows in np.array_split(order, count)] if count else []
    return Questions(pool, owners, strangers, others, _taken(public, order[:KNOWN]))


_KEPT: WeakKeyDictionary[Record, dict[tuple[int, int, str], tuple[Shadows, Shadows]]] = WeakKeyDictionary()


def shadows_of(scene: Scene, asked: Questions, count: int) -> tuple[Shadows, Shadows]:
    """Trains shadows, once for all attacks on a record: some that know their pictures by heart, and some as the run.

    Args:
        scene: Its record, with the first broadcast and the public settings.
        asked: The pictures.
        count: How many shadows of each kind: even, 6 at least.

    Returns:
        Networks that know half of some public pictures by heart; and what a client of a shadow federation sends, who
        learned half of the pool.

    Raises:
        ValueError: If the count is odd or too small.
    """
    if count < 6 or count % 2:
        raise ValueError(f"{count} shadows: they come in couples, three at least")
    kept, key = _KEPT.setdefault(scene.record, {}), (scene.seed, count, str(scene.device))
    if key not in kept:
        halves = _halves(scene.seed, 52, count, len(asked.public))
        said = [logits_of(_by_heart(scene, part), asked.public.inputs) for part in _parts(asked.public, halves)]
        by_heart = Shadows(halves, torch.stack(said))
        halves = _halves(scene.seed, 53, count, len(asked.pool))
        said = [
            logits_of(_first_of_federation(scene, [part, *asked.others], number), asked.pool.inputs)
            for number, part in enumerate(_parts(asked.pool, halves))
        ]
        kept[key] = by_heart, Shadows(halves, torch.stack(said))
    return kept[key]


def _halves(seed: int, purpose: int, count: int, size: int) -> Bools:
    member = np.zeros((count, size), dtype=np.bool_)
    for number in range(0, count, 2):
        member[number, rng_for(seed, purpose, number // 2).permutation(size)[: size // 2]] = True
        member[number + 1] = ~member[number]
    return member


def _parts(data: Data, member: Bools) -> Iterator[Data]:
    return (_taken(data, np.flatnonzero(row)) for row in member)


def _by_heart(scene: Scene, data: Data) -> nn.Module:
    data = data.to(scene.device)
    network = network_of(scene.record, scene.record.rounds[0].broadcast, scene.device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(KNOWN_STEPS):
        optimizer.zero_grad(set_to_none=True)
        class_loss(network(to_unit(data.inputs)), data.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    scene.advance()
    return network


def _first_of_federation(scene: Scene, owners: Sequence[Data], number: int, seed: int | None = None) -> nn.Module:
    """Plays a federation of the run's method; the network that its first client sends last.

    Args:
        scene: Its record, with the public settings.
        owners: What its clients have.
        number: Of the federation: its clients' secrets and noise are its own.
        seed: Of its clients' orders of pictures; one of the federation's own by default.
    """
    record = scene.record
    training, task = record.config.training, record.task
    rounds = min(record.config.rounds, max(1, MOST_STEPS // len(batches(len(owners[0]), training, 0, 0, 0))))
    server = record.method.server(replace(record.server, clients=len(owners), rounds=rounds))
    rng = rng_for(scene.seed, 54, number)
    seed = int(rng.integers(2**31)) if seed is None else seed
    common, *own = (Secret(rng.bytes(SECRET_BYTES)) for _ in range(len(owners) + 1))
    views = [
        ClientView(client, task, data, training, rounds, seed, Secrets(common, secret), scene.device)
        for client, (data, secret) in enumerate(zip(owners, own, strict=True))
    ]
    memory: dict[int, Tensors] = {}
    sent: Tensors = {}
    for round_number in range(rounds):
        broadcast = server.broadcast()
        updates: dict[int, Update] = {}
        for view in views:
            client = record.method.client(view)
            if view.number in memory:
                client.load_state(memory[view.number])
            updates[view.number] = client.train_round(broadcast, round_number)
            memory[view.number] = client.state()
        sent = server.rebuilt(broadcast, updates[0].tensors)
        server.combine(updates)
        scene.advance()
    return network_of(record, sent, scene.device)


def _joined(parts: Sequence[Data]) -> Data:
    inputs, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "targets"))
    return Data(inputs, targets, tuple(name for part in parts for name in part.names))


def _taken(data: Data, rows: Rows) -> Data:
    index = torch.from_numpy(rows)
    return Data(data.inputs[index], data.targets[index], tuple(data.names[row] for row in rows))
