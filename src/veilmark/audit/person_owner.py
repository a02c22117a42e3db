"""Whose faces: which client has a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.faces import (
    ASKED,
    EACH,
    face_batch,
    face_network,
    halves,
    holds_heads,
    landmarks_of,
    people_of,
    rehearsed_client,
    rehearsed_message,
    rows_of,
    sharp_faces,
    trained,
)
from veilmark.audit.record import Record, RecordedRound, ThreatModel
from veilmark.federation.engine import side_by_side
from veilmark.federation.tasks.task import Data
from veilmark.run.checkpoints import Tensors
from veilmark.sht.losses import DHLNLoss
from veilmark.sht.pretrained import Detector

REHEARSED = 3
"""Clients that the attacker plays, to see which it would find a person in."""
ROUNDS = 8
"""Recorded rounds whose messages are asked, at most: the last ones, which told more of the owners than as many spread
evenly (on averaging's run; docs/private-landmarks.md)."""
FIRST_STEPS, FURTHER_STEPS = 60, 20
"""Steps of the attacker's own detector behind the first of these rounds' shares, and behind each further one's."""


class OwnerOfPerson(Attack):
    """Which client has a person, whose messages go furthest downhill for that person's faces, round after round.

    The cosine of a message's change of the weights, beyond what the messages of its round have in common, with the
    gradient of the loss of a person's faces at the broadcast. What each message does for public people is taken off;
    then recorded rounds are added up, as one tells little (after FedMIA: Zhu et al. 2024, arXiv 2402.06289). What does
    not travel the attacker learns itself, on public people behind the broadcast.
    """

    name = "owner of a person"
    cost = 13.0
    threat_model = ThreatModel.server
    needs = "messages of two clients; public faces; faces of the person in question, with landmarks"
    question = "Shown faces of a person, can the server tell which client has that person?"

    def obstacle(self, record: Record) -> str | None:
        """Two clients must have sent something."""
        if not record.declared.tensors:
            return "nothing travels"
        return None if len(record.rounds[-1].updates) > 1 else "only one client sent a message"

    def findings(self, scene: Scene) -> list[Finding]:
        """Clients that the attacker plays with public people, the run's last round, all of it, and noise."""
        record = scene.record
        known, others = halves(scene.public)
        everyone = sorted(set(people_of(known)))
        # Who taught the attacker's own detector is no measure of what a message does for people whom nobody knows.
        taught = [] if holds_heads(record.declared.tensors) else everyone[: len(everyone) // 2]
        level = [rows_of(known, [person], EACH) for person in everyone if person not in taught]
        own = rows_of(known, taught) if taught else None
        people = sorted(set(people_of(others)))
        dealt = [people[place::REHEARSED] for place in range(min(REHEARSED, len(people)))]
        numbers = sorted(record.rounds[-1].updates)
        asked = [(place, rows_of(others, [person], EACH)) for place, mine in enumerate(dealt) for person in mine]
        rehearsed = len(asked)
        for place, number in enumerate(numbers):
            owner = scene.truth.owners[number]
            asked += [(place, rows_of(owner, [person], EACH)) for person in sorted(set(people_of(owner)))[:ASKED]]
        truth = np.array([place for place, _ in asked])
        played, real = slice(0, rehearsed), slice(rehearsed, len(asked))
        rounds = [seen for seen in record.rounds if set(numbers) <= set(seen.updates)][-ROUNDS:]
        groups = self._messages(scene, rounds, [rows_of(others, mine) for mine in dealt], numbers)
        told: dict[str, list[NDArray[np.float64]]] = {group: [] for group in groups[0]}
        networks = self._networks(scene, rounds, own)
        for seen, network, messages in zip(rounds, networks, groups, strict=True):
            names = [name for name, _ in network.named_parameters() if name in seen.broadcast]
            changes = torch.cat([_apart(seen.broadcast, some, names) for some in messages.values()]).to(scene.device)
            downhill = self._downhill(scene, network, names, [data for _, data in asked] + level, changes)
            first = 0
            for group, some in messages.items():
                told[group].append(beyond_the_round(downhill[:, first : first + len(some)], len(level)))
                first += len(some)

        def hits(group: str, chosen: slice, last: bool = False) -> list[float]:
            guesses = sum(told[group][-1:] if last else told[group], np.zeros(()))[chosen].argmax(axis=1)
            return [100.0 * bool(hit) for hit in guesses == truth[chosen]]

        words, chance = "people found with their client", 100 / len(numbers)
        lines = [self._finding(scene, "clients played with public people", words, "%", hits("played", played),
                               100 / len(dealt))]  # fmt: skip
        if len(rounds) > 1:
            lines.append(self._finding(scene, "its last round alone", words, "%", hits("real", real, True), chance))
        lines.append(self._finding(scene, REAL, words, "%", hits("real", real), chance))
        return with_controls(lines, lines[0].value, float(np.mean(hits("noise", real))))

    def _messages(
        self, scene: Scene, rounds: Sequence[RecordedRound], dealt: Sequence[Data], numbers: Sequence[int]
    ) -> list[dict[str, list[Tensors]]]:
        """For each round the messages of clients that the attacker plays, the run's, and noise as large as these."""
        # Built one after the other: what draws first weights sets the process' generator.
        clients = [rehearsed_client(scene, faces, place + 1) for place, faces in enumerate(dealt)]

        def one(place: int) -> list[Tensors]:
            return [rehearsed_message(scene, clients[place], seen) for seen in rounds]

        played = [sent for _, sent in side_by_side(range(len(clients)), one, scene.device)]
        made = []
        for place, seen in enumerate(rounds):
            real = [seen.updates[number].tensors for number in numbers]
            noise = [
                {name: _disturbed(seen.broadcast[name], value, scene.seed * 100 + number + 10_000 * seen.number, order)
                 for order, (name, value) in enumerate(sorted(sent.items()))}
                for number, sent in zip(numbers, real, strict=True)
            ]  # fmt: skip
            made.append({"played": [sent[place] for sent in played], "real": real, "noise": noise})
        return made

    def _networks(self, scene: Scene, rounds: Sequence[RecordedRound], own: Data | None) -> Iterator[Detector]:
        """For each round the network as broadcast; what does not travel learns on, behind it, on the attacker's faces.

        Args:
            scene: Of the attack.
            rounds: In their order.
            own: The attacker's faces; None where heads travel.
        """
        network = face_network(scene.record, device=scene.device)
        for place, seen in enumerate(rounds):
            network.load_state_dict(seen.broadcast, strict=False)
            if own is not None:
                steps = FURTHER_STEPS if place else FIRST_STEPS
                trained(scene, network, own, steps, 80 + place, frozen=set(seen.broadcast))
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name in seen.broadcast)
            yield network.eval()

    def _downhill(
        self, scene: Scene, network: Detector, names: Sequence[str], people: Sequence[Data], changes: Tensor
    ) -> NDArray[np.float64]:
        """How far each change goes downhill for each person's faces, a cosine: ``(people, changes)``."""
        task = scene.record.faces
        config = task.config.network
        criterion = DHLNLoss(task.config.losses, config.scheme, config.size, config.map_stride)
        named = dict(network.named_parameters())
        wanted = [named[name] for name in names]

        def one(place: int) -> NDArray[np.float64]:
            data = people[place]
            batch = face_batch(task, sharp_faces(task, data), landmarks_of(task, data).float()).to(
                torch.device(scene.device)
            )
            total = criterion(network(batch.grid), batch).total
            slopes = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
            slope = torch.cat([some.flatten() for some in slopes])
            cosines: NDArray[np.float64] = (changes @ slope / slope.norm().clamp(min=1e-30)).double().cpu().numpy()
            return -cosines

        found = np.stack([row for _, row in side_by_side(range(len(people)), one, scene.device)])
        scene.advance()
        return found


def beyond_the_round(downhill: NDArray[np.float64], level: int) -> NDArray[np.float64]:
    """What each message does for each person, beyond the round's other messages and beyond what it does for anybody.

    Args:
        downhill: ``(people, messages)``.
        level: How many of the people, the last, are nobody's: what a message does for them is taken off.

    Returns:
        ``(people - level, messages)``, of spread 1, that every round counts alike; zeros, where messages are the same.
    """
    beyond = downhill - downhill.mean(axis=1, keepdims=True)
    beyond = beyond[: len(beyond) - level] - beyond[len(beyond) - level :].mean(axis=0)
    spread = float(beyond.std())
    return np.asarray(beyond / spread) if spread > 0 else beyond


def _apart(before: Tensors, messages: Sequence[Tensors], names: Sequence[str]) -> Tensor:
    """How messages change the weights, beyond what they have in common, as directions: ``(messages, weights)``."""
    rows = [torch.cat([(sent[name] - before[name]).float().flatten() for name in names]) for sent in messages]
    apart = torch.stack(rows)
    apart -= apart.mean(dim=0)
    apart /= apart.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return apart


def _disturbed(before: Tensor, after: Tensor, seed: int, place: int) -> Tensor:
    """As far from the broadcast as a message, in a direction of chance."""
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(seed * 1000 + place))
    moved = (after - before).float().norm()
    disturbed: Tensor = before + (noise * moved / noise.norm().clamp(min=1e-30)).to(before.dtype)
    return disturbed
