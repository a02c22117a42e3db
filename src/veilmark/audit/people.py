"""Whose faces: was a person in the training, and which client has that person."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.faces import (
    EACH,
    Lesson,
    as_array,
    face_batch,
    face_network,
    fit_by_person,
    halves,
    holds_heads,
    landmarks_of,
    people_of,
    rehearsed_client,
    rehearsed_message,
    rows_of,
    sharp_faces,
    trained,
    trained_side_by_side,
)
from veilmark.audit.membership import Scores, membership_score
from veilmark.audit.record import Record, RecordedRound, ThreatModel
from veilmark.federation.engine import side_by_side
from veilmark.federation.tasks.task import Data
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for
from veilmark.sht.losses import DHLNLoss
from veilmark.sht.pretrained import Detector

SHADOWS = 3
"""Networks that the attacker trains on public people."""
SHADOW_STEPS = 60
"""Steps of each."""
CONTROL_PEOPLE, CONTROL_STEPS = 6, 300
"""People that a network is made to overfit on, and steps, in the positive control of membership."""
ASKED = 12
"""People of each client who are asked about, at most."""
REHEARSED = 3
"""Clients that the attacker plays, to see which it would find a person in."""
ROUNDS = 8
"""Recorded rounds whose messages are asked for an owner, at most: the last ones, which told
more of the owners than as many spread evenly (on averaging's run; docs/private-landmarks.md)."""
FURTHER_STEPS = 20
"""Steps of the attacker's own detector behind each further round's share."""


@dataclass(frozen=True, eq=False)
class ShadowNetwork:
    """A network that the attacker trained.

    Attributes:
        weights: What it learned.
        learned: The faces it learned from.
        behind: Weights of a network that learned the same behind the shadow's share; None where heads travel.
    """

    weights: Tensors
    learned: Data
    behind: Tensors | None


class PersonMembership(Attack):
    """Was a person in the training? The release against shadow networks, person by person.

    Offline LiRA (Carlini et al. 2022, arXiv 2112.03570) at the level of people: how much better what was released fits
    a person's faces than networks do that the attacker trained on others. What is usual is not merely taken off: by a
    line through public people whom nobody learned (as Bertran et al. 2023, arXiv 2307.03694, learn what is usual by
    regression), since a network that was trained far longer than a shadow finds the same people hard to a lesser
    degree. What did not travel is taken from the shadow networks. Where no heatmap heads travel, the attacker also
    learns a detector of its own behind what was released, on the people that a shadow network learned, and asks how
    well it finds the person's landmarks. Faces of the person in question, with landmarks, are in the attacker's hands:
    others than were learned would be harder.
    """

    name = "membership of people"
    threat_model = ThreatModel.outsider
    needs = "the released share; public faces; faces of the person in question"
    question = (
        "Shown faces of a person, can somebody with the finished share tell whether that person was in the training?"
    )

    def obstacle(self, record: Record) -> str | None:
        """Something must be released."""
        return None if record.declared.tensors else "nothing is released"

    def findings(self, scene: Scene) -> list[Finding]:
        """A network that knows a few people by heart, whole and its share, the run, and the run's start for noise."""
        record, public = scene.record, scene.public
        everyone = sorted(set(people_of(public)))
        by_heart = everyone[: max(1, min(CONTROL_PEOPLE, len(everyone) // 2))]
        others = [person for person in everyone if person not in by_heart]
        overfit, shadows = self._taught(scene, by_heart, others)
        # Who is known to every shadow network cannot be compared with what is usual.
        learned = [set(people_of(shadow.learned)) for shadow in shadows]
        others = [person for person in others if not all(person in some for some in learned)]
        release = {name: value for name, value in overfit.items() if name in record.declared.tensors}
        faces = rows_of(public, everyone, EACH)
        rung = f"a network that knows {len(by_heart)} people by heart, all of it"
        (known,) = self._compared(scene, shadows, [overfit], faces, by_heart, others, others)
        rungs = {rung: known}
        if len(release) < len(overfit):
            (part,) = self._compared(scene, shadows, [release], faces, by_heart, others, others)
            rungs["what travels of such a network"] = part
        scene.advance()
        assert scene.truth.strangers is not None
        members = [(owner, sorted(set(people_of(owner)))[:ASKED]) for owner in scene.truth.owners]
        strangers = scene.truth.strangers
        nobody = sorted(set(people_of(strangers)))
        asked = _joined(
            [rows_of(owner, people, EACH) for owner, people in members]
            + [rows_of(strangers, nobody, EACH), rows_of(public, others, EACH)]
        )
        inside = [person for _, people in members for person in people]
        start = {k: v for k, v in face_network(record).state_dict().items() if k in record.declared.tensors}
        released = record.rounds[-1].broadcast
        rungs[REAL], blind = self._compared(scene, shadows, [released, start], asked, inside, nobody, others)
        found: list[Finding] = []
        for metric in rungs[REAL]:
            lines = [self._area(scene, rung, metric, scores) for rung, scores in rungs.items()]
            # A share that gives nobody away even of such a network shows nothing: that rung is the control.
            found += with_controls(lines, lines[-2].value, self._area(scene, REAL, metric, blind).value)
        return found

    def _area(self, scene: Scene, rung: str, metric: str, scores: Mapping[str, tuple[Scores, Scores]]) -> Finding:
        """The area under the curve by a metric; its interval is over members and strangers."""
        members, strangers = scores[metric]
        area = membership_score(members, strangers, scene.seed).auc
        assert area.value is not None
        assert area.low is not None
        assert area.high is not None
        line = self._finding(scene, rung, f"area under the curve, by {metric}", "%", [100 * area.value], 50)
        return replace(line, n=len(members), low=100 * area.low, high=100 * area.high)

    def _taught(
        self, scene: Scene, by_heart: Sequence[str], others: Sequence[str]
    ) -> tuple[Tensors, list[ShadowNetwork]]:
        """A network that knows some public people by heart; and some that learned halves of others, drawn anew each."""
        record = scene.record
        learned = []
        for number in range(SHADOWS):
            rng = rng_for(scene.seed, 68, number)
            chosen = [others[place] for place in sorted(rng.permutation(len(others))[: max(1, len(others) // 2)])]
            learned.append(rows_of(scene.public, chosen))
        start = functools.partial(face_network, record, device=scene.device)
        lessons = [Lesson(start(), rows_of(scene.public, by_heart), CONTROL_STEPS, 20)]
        lessons += [Lesson(start(), data, SHADOW_STEPS, number) for number, data in enumerate(learned)]
        overfit, *weights = [network.state_dict() for network in trained_side_by_side(scene, lessons)]
        behind: Sequence[Tensors | None] = [None] * SHADOWS
        if not holds_heads(record.declared.tensors):
            shares = [{name: some[name] for name in record.declared.tensors} for some in weights]
            behind = [network.state_dict() for network in self._behind(scene, shares, learned)]
        return overfit, [ShadowNetwork(*parts) for parts in zip(weights, learned, behind, strict=True)]

    def _behind(self, scene: Scene, shares: Sequence[Tensors], learned: Sequence[Data]) -> list[Detector]:
        """Networks that learn what does not travel, each behind its share; the same batches by shadow network."""
        lessons = []
        for place, (share, data) in enumerate(zip(shares, learned, strict=True)):
            start = face_network(scene.record, share, device=scene.device)
            lessons.append(Lesson(start, data, SHADOW_STEPS, place % SHADOWS, frozenset(share)))
        return trained_side_by_side(scene, lessons)

    def _compared(
        self,
        scene: Scene,
        shadows: Sequence[ShadowNetwork],
        releases: Sequence[Tensors],
        data: Data,
        inside: Sequence[str],
        outside: Sequence[str],
        usual: Sequence[str],
    ) -> list[dict[str, tuple[Scores, Scores]]]:
        """For each release, by what was asked, a score for each of the people inside, and for each of those outside.

        Args:
            scene: Of the attack.
            shadows: The attacker's networks.
            releases: Tensors that are in its hands; of the same names in all.
            data: Faces of all people.
            inside: Who was in the training.
            outside: Who was not.
            usual: Public people: what is usual is learned from them. Everybody is unknown to one shadow at least.
        """
        record, device = scene.record, scene.device
        order = [*inside, *outside, *usual]
        behind: Iterator[Detector] | None = None
        if not holds_heads(releases[0]):
            shares = [release for release in releases for _ in shadows]
            behind = iter(self._behind(scene, shares, [shadow.learned for _ in releases for shadow in shadows]))

        def fits(
            network: Detector, shadow: ShadowNetwork, completed: Detector | None
        ) -> dict[str, NDArray[np.float64]]:
            """By what was asked, how well everybody is fitted; NaN for those whom the shadow knows."""
            found = fit_by_person(record, network, data, releases[0])
            if completed is not None:
                found = fit_by_person(record, completed, data, completed.state_dict(), face=False) | found
            known = np.isin(order, people_of(shadow.learned))
            return {name: np.where(known, np.nan, as_array(some, order)) for name, some in found.items()}

        before = []
        for shadow in shadows:
            alone = face_network(record, shadow.weights, device=device)
            own = None
            if behind is not None:
                assert shadow.behind is not None
                own = face_network(record, shadow.behind, device=device)
            before.append(fits(alone, shadow, own))
        compared = []
        for release in releases:
            after = [
                fits(
                    face_network(record, shadow.weights, release, device=device),
                    shadow,
                    None if behind is None else next(behind),
                )
                for shadow in shadows
            ]
            found = {}
            for metric in before[0]:
                first, then = (np.stack([some[metric] for some in fitted]) for fitted in (before, after))
                scores = beyond_usual(first, then, slice(len(inside) + len(outside), None))
                found[metric] = (scores[: len(inside)], scores[len(inside) : len(inside) + len(outside)])
            compared.append(found)
        return compared


def beyond_usual(before: NDArray[np.float64], after: NDArray[np.float64], usual: slice) -> NDArray[np.float64]:
    """How much better people are fitted than their fit by other networks lets expect.

    Args:
        before: ``(networks, people)``: how well each of the attacker's networks fits a person; NaN where it learned
            that person. Everybody must be unknown to one of them.
        after: The same with what was released in place.
        usual: Which people nobody learned: through theirs a line is fitted by least squares, with one slope, and an
            intercept for each network. Where they do not tell a slope, it is 1.

    Returns:
        ``(people,)``, the mean over the networks that do not know the person.
    """
    x, y = (
        some
        - np.array([row.mean() if (row := line[~np.isnan(line)]).size else 0.0 for line in some[:, usual]])[:, None]
        for some in (before, after)
    )
    spread = np.nansum(x[:, usual] ** 2)
    slope = np.nansum(x[:, usual] * y[:, usual]) / spread if spread > 0 else 1.0
    return np.asarray(np.nanmean(y - slope * x, axis=0))


class OwnerOfPerson(Attack):
    """Which client has a person, whose messages go furthest downhill for that person's faces, round after round.

    The cosine of a message's change of the weights, beyond what the messages of its round have in common, with the
    gradient of the loss of a person's faces at the broadcast. What each message does for public people is taken off;
    then recorded rounds are added up, as one tells little (after FedMIA: Zhu et al. 2024, arXiv 2402.06289). What does
    not travel the attacker learns itself, on public people behind the broadcast.
    """

    name = "owner of a person"
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

        def one(place: int) -> list[Tensors]:
            client = rehearsed_client(scene, dealt[place], place + 1)
            return [rehearsed_message(scene, client, seen) for seen in rounds]

        played = [sent for _, sent in side_by_side(range(len(dealt)), one, scene.device)]
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
                steps = FURTHER_STEPS if place else SHADOW_STEPS
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


def _joined(parts: Sequence[Data]) -> Data:
    return Data(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        tuple(name for part in parts for name in part.names),
    )


def _disturbed(before: Tensor, after: Tensor, seed: int, place: int) -> Tensor:
    """As far from the broadcast as a message, in a direction of chance."""
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(seed * 1000 + place))
    moved = (after - before).float().norm()
    disturbed: Tensor = before + (noise * moved / noise.norm().clamp(min=1e-30)).to(before.dtype)
    return disturbed
