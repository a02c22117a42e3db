"""Whose faces: was a person in the training."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.faces import (
    ASKED,
    EACH,
    Lesson,
    as_array,
    face_network,
    fit_by_person,
    holds_heads,
    people_of,
    rows_of,
    trained_side_by_side,
)
from veilmark.audit.membership import Scores, membership_score
from veilmark.audit.record import Record, ThreatModel, finished_share, not_released
from veilmark.federation.tasks.task import Data
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for
from veilmark.sht.pretrained import Detector

SHADOWS = 3
"""Networks that the attacker trains on public people."""
SHADOW_STEPS = 60
"""Steps of each."""
CONTROL_PEOPLE, CONTROL_FACES = 6, 2400
"""People that a network is made to overfit on, and faces that it sees meanwhile (each many times; by smaller batches in
more steps), in the positive control of membership."""


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
    cost = 60.0
    threat_model = ThreatModel.outsider
    needs = "the released share; public faces; faces of the person in question"
    question = (
        "Shown faces of a person, can somebody with the finished share tell whether that person was in the training?"
    )

    def obstacle(self, record: Record) -> str | None:
        """Something must be released."""
        return not_released(record)

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
        released = finished_share(record)
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
        area = membership_score([(members, strangers)], scene.seed).auc
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
        steps = -(-CONTROL_FACES // record.config.training.batch)
        lessons = [Lesson(start(), rows_of(scene.public, by_heart), steps, 20)]
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


def _joined(parts: Sequence[Data]) -> Data:
    return Data(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        tuple(name for part in parts for name in part.names),
    )
