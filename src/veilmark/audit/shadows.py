"""Shadow federations: what a server can play itself, to learn what being learned looks like.

The server knows the public config: networks, first weights, method, rounds. So it plays federations of its own, with
the pictures in question, and every client's last message is a shadow: it learned some of them, and nobody in its
federation has seen some others (Carlini et al. 2022, arXiv 2112.03570, online). Federations come in threes that divide
the pictures: whose ever a picture is, as many shadows learned it as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import Scene
from veilmark.audit.record import Record, network_of
from veilmark.federation.engine import side_by_side
from veilmark.federation.messages import Update
from veilmark.federation.methods.method import Client, ClientView, Secrets
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.local_training import batches
from veilmark.run.seeds import rng_for

MOST_STEPS = 100
"""Training steps of a shadow's client at most: a run of many rounds would take its shadows as long."""
MOST_MEMBERS = 200
"""Pictures of the clients in question, at most."""
MOST_STRANGERS = 1000
"""Strangers among them, at most: enough for 1 % of false alarms."""
CLIENTS = 4
"""Clients of a shadow federation, at most."""
PARTS = 3
"""Federations that divide the pool among them."""
BY_HEART = 8
"""Networks that learn public pictures by heart: even, they come in couples that learn complementary halves."""
KNOWN = 60
"""Those pictures, at most: few are learned in few steps."""
KNOWN_STEPS = 12
"""Their steps of Adam."""

Bools = NDArray[np.bool_]
Rows = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Shadows:
    """What shadows say; their networks are not kept.

    Attributes:
        learned: ``(s, n)``: which shadow learned which picture of the pool.
        unseen: ``(s, n)``: where neither the shadow nor anybody in its federation did.
        group: ``(s,)``: shadows of one group divided the pool among them, so what one learned says what others did not.
        first: ``(t,)``: the shadows that are targets in rehearsals.
        pool: ``(s, n, k)`` logits on the pool.
    """

    learned: Bools
    unseen: Bools
    group: Rows
    first: Rows
    pool: Tensor


@dataclass(frozen=True, eq=False)
class Questions:
    """The pictures of an audit, divided.

    Attributes:
        pool: The pictures in question: clients' own, and strangers. Which are which only the scorer knows.
        owners: By client, rows of its own.
        strangers: Rows of pictures that nobody learned, drawn like the clients' where there are such.
        public: Other pictures: learned by heart, and by shadows whose share of the pool is less than a client has.
        clients: Of a shadow federation.
        examples: Pictures of each, as far as there are so many.
    """

    pool: Data
    owners: dict[int, Rows]
    strangers: Rows
    public: Data
    clients: int
    examples: int


def questions(scene: Scene) -> Questions:
    """Divides the pictures.

    Args:
        scene: Of the attack.
    """
    public, last = scene.public, scene.record.rounds[-1]
    clients = min(CLIENTS, scene.record.config.clients)
    examples = max(update.examples for update in last.updates.values())
    parts: list[Data] = []
    owners: dict[int, Rows] = {}
    begin = 0
    for client in last.updates:
        own = scene.truth.owners[client]
        rows = rng_for(scene.seed, 51, client).permutation(len(own))[: max(1, MOST_MEMBERS // len(last.updates))]
        parts.append(taken(own, rows))
        owners[client] = np.arange(begin, begin + len(rows))
        begin += len(rows)
    order = rng_for(scene.seed, 50).permutation(len(public))
    strange = scene.truth.strangers
    if strange is None:
        # Whom shadows have learned is no stranger: half and half.
        strange, order = taken(public, order[: len(order) // 2]), order[len(order) // 2 :]
    # A third of the pool at most is what the clients of a shadow federation can hold.
    room = max(0, PARTS * clients * examples - begin)
    parts.append(taken(strange, rng_for(scene.seed, 55).permutation(len(strange))[: min(MOST_STRANGERS, room)]))
    pool = _joined(parts)
    return Questions(pool, owners, np.arange(begin, len(pool)), taken(public, order), clients, examples)


@dataclass(frozen=True, eq=False)
class Classifiers:
    """How a server comes to classifiers that it can ask.

    Attributes:
        of: One of a message.
        knowing: One that knows pictures by heart; another number gives another one.
        seed: Of the clients of shadow federations, from which what stays with them starts; None where that does not
            matter, and each federation has one of its own.
    """

    of: Callable[[Tensors], nn.Module]
    knowing: Callable[[Data, int], nn.Module]
    seed: int | None = None


def whole_classifiers(scene: Scene, beside: Tensors | None = None) -> Classifiers:
    """Where a whole classifier travels, it is what a message is; another one learns pictures from the public start.

    Args:
        scene: Its record.
        beside: What does not travel, by name: it stands beside every message, and learns nothing.
    """
    kept = beside or {}

    def of(sent: Tensors) -> nn.Module:
        return network_of(scene.record, {**sent, **kept}, scene.device)

    def knowing(data: Data, number: int) -> nn.Module:
        learned = data.to(scene.device)
        network = of(scene.record.start)
        learning = [value for name, value in network.named_parameters() if name not in kept]
        optimizer = torch.optim.Adam(learning, 1e-3)
        for _ in range(KNOWN_STEPS):
            optimizer.zero_grad(set_to_none=True)
            class_loss(network(to_unit(learned.inputs)), learned.targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return network

    return Classifiers(of, knowing, scene.record.config.seed if kept else None)


_KEPT: WeakKeyDictionary[Record, dict[tuple[int, int, str], tuple[Shadows, Shadows]]] = WeakKeyDictionary()


def shadows_of(scene: Scene, asked: Questions, federations: int, how: Classifiers) -> tuple[Shadows, Shadows]:
    """Trains shadows, once for all attacks on a record: some that know their pictures by heart, and some as the run.

    Args:
        scene: Its record, with the public start and settings.
        asked: The pictures.
        federations: How many are played: a multiple of three, 6 at least.
        how: How they are asked; for one record always the same.

    Returns:
        Networks that know half of some public pictures by heart; and what the clients of shadow federations send.

    Raises:
        ValueError: If the number does not fit.
    """
    if federations < 2 * PARTS or federations % PARTS:
        raise ValueError(f"{federations} shadow federations: they come in threes, two at least")
    kept, key = _KEPT.setdefault(scene.record, {}), (scene.seed, federations, str(scene.device))
    if key not in kept:
        kept[key] = _by_heart(scene, asked.public, how), _played(scene, asked, federations, how)
    return kept[key]


def _by_heart(scene: Scene, public: Data, how: Classifiers) -> Shadows:
    few = taken(public, np.arange(min(KNOWN, len(public))))
    learned = np.zeros((BY_HEART, len(few)), dtype=np.bool_)
    for number in range(0, BY_HEART, 2):
        learned[number, rng_for(scene.seed, 52, number // 2).permutation(len(few))[: len(few) // 2]] = True
        learned[number + 1] = ~learned[number]

    def one(place: int) -> Tensor:
        network = how.knowing(taken(few, np.flatnonzero(learned[place])), place)
        answers = logits_of(network, few.inputs)
        scene.advance()
        return answers

    said = [answers for _, answers in side_by_side(range(BY_HEART), one, scene.device)]
    everyone = np.arange(BY_HEART)
    return Shadows(learned, ~learned, everyone // 2, everyone, torch.stack(said))


def _played(scene: Scene, asked: Questions, federations: int, how: Classifiers) -> Shadows:
    size, clients = len(asked.pool), asked.clients
    parts = 2 if 2 * size <= PARTS * clients * asked.examples else 1
    learned = np.zeros((federations, clients, size), dtype=np.bool_)
    said: list[Tensor] = []
    for number in range(federations):
        divided = np.array_split(rng_for(scene.seed, 53, number // PARTS).permutation(size), PARTS)
        mine = np.concatenate([divided[(number + part) % PARTS] for part in range(parts)])
        rng = rng_for(scene.seed, 56, number)
        shares = np.array_split(rng.permutation(mine), clients)
        filling = np.array_split(rng.permutation(len(asked.public)), clients)
        owners = []
        for client, (share, more) in enumerate(zip(shares, filling, strict=True)):
            learned[number, client, share] = True
            public = taken(asked.public, more[: max(0, asked.examples - len(share))])
            owners.append(_joined([taken(asked.pool, share), public]))
        said += answers_of(scene, federation_of(scene, owners, number, how.seed).sent, asked.pool.inputs, how)
    unseen = np.broadcast_to(~learned.any(axis=1, keepdims=True), learned.shape)
    group = np.arange(federations).repeat(clients) // PARTS
    first = np.arange(0, federations * clients, clients)
    return Shadows(learned.reshape(-1, size), unseen.reshape(-1, size), group, first, torch.stack(said))


def _round_of(players: Sequence[Client], broadcast: Tensors, round_number: int) -> Callable[[int], Update]:
    return lambda number: players[number].train_round(broadcast, round_number)


@dataclass(frozen=True, eq=False)
class Federation:
    """A federation that an attacker played.

    Attributes:
        clients: As they are after the last round.
        broadcast: What they would be sent then.
        sent: What each sent last, in the terms of what was broadcast.
    """

    clients: Sequence[Client]
    broadcast: Tensors
    sent: Sequence[Tensors]


def federation_of(scene: Scene, owners: Sequence[Data], number: int, seed: int | None = None) -> Federation:
    """Plays a federation of the run's method.

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
    memory: list[Tensors] = []
    sent: list[Tensors] = []

    def as_they_are() -> list[Client]:
        players = [record.method.client(view) for view in views]
        for player, kept in zip(players, memory, strict=False):
            player.load_state(kept)
        return players

    for round_number in range(rounds):
        broadcast, players = server.broadcast(), as_they_are()
        updates = dict(side_by_side(range(len(players)), _round_of(players, broadcast, round_number), scene.device))
        memory = [player.state() for player in players]
        sent = [server.rebuilt(broadcast, update.tensors) for update in updates.values()]
        server.combine(updates)
        scene.advance()
    return Federation(as_they_are(), server.broadcast(), sent)


def answers_of(scene: Scene, sent: Sequence[Tensors], inputs: Tensor, how: Classifiers) -> list[Tensor]:
    """Logits ``(n, k)`` of pictures ``(n, c, s, s)`` uint8, of the classifier of each of some messages."""

    def one(place: int) -> Tensor:
        return logits_of(how.of(sent[place]), inputs)

    return [answers for _, answers in side_by_side(range(len(sent)), one, scene.device)]


def _joined(parts: Sequence[Data]) -> Data:
    inputs, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "targets"))
    return Data(inputs, targets, tuple(name for part in parts for name in part.names))


def taken(data: Data, rows: Rows) -> Data:
    """Some rows of pictures."""
    index = torch.from_numpy(rows)
    return Data(data.inputs[index], data.targets[index], tuple(data.names[row] for row in rows))
