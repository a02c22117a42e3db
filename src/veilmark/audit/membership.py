"""Was this picture in the training? Loss threshold, an attack network on prediction vectors, LiRA; and their measure.

Every attack ends in a score for each picture, larger for those that it takes for members. Accuracy alone is not a
measure of such scores: what counts is how many members are found while almost no stranger is accused (Carlini et al.
2022, arXiv 2112.03570).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import REAL, Attack, Finding, Scene
from veilmark.audit.record import Record, ThreatModel, network_of
from veilmark.audit.shadows import federation_of
from veilmark.federation.engine import side_by_side
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit

Scores = NDArray[np.float64]
Labels = NDArray[np.int64]

NEEDED = 10
"""Strangers that must be accused wrongly for a rate to be measured at all."""
OWN_CLIENTS = 2
"""Clients that the attacker plays to rehearse."""
OWN_FEDERATION = 100
"""The number of their federation: none of the shadows'."""


def loss_threshold(logits: Tensor, labels: Tensor) -> Scores:
    """Yeom et al. 2018: members have a smaller loss.

    Args:
        logits: ``(n, k)`` of the network that is asked.
        labels: ``(n,)``.

    Returns:
        ``(n,)``: the loss, negative.
    """
    found: Scores = -cross_entropy(logits.double(), labels, reduction="none").numpy()
    return found


def attack_network(shadow: Tensor, member: NDArray[np.bool_], asked: Tensor, seed: int = 0) -> Scores:
    """Shokri et al. 2017: a network that learns from shadows what predictions on members look like.

    One small perceptron on prediction vectors, largest first, for all classes together.

    Args:
        shadow: ``(m, k)`` logits of shadows, whose members are known.
        member: ``(m,)``.
        asked: ``(n, k)`` logits of the network that is attacked.
        seed: Of the perceptron.

    Returns:
        ``(n,)``: the probability of a member.
    """
    rows = [some.double().log_softmax(dim=1).sort(dim=1, descending=True).values.numpy() for some in (shadow, asked)]
    mean, spread = rows[0].mean(axis=0), rows[0].std(axis=0) + 1e-6
    # After a thousand passes it knew its shadows by heart, and told members of other networks less well (on digits).
    model = MLPClassifier((32,), max_iter=100, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((rows[0] - mean) / spread, member)
    found: Scores = model.predict_proba((rows[1] - mean) / spread)[:, 1]
    return found


def confidence(logits: Tensor, labels: Tensor) -> Scores:
    """The logit of the right class's probability, ``log(p / (1 - p))``: nearly normal (Carlini et al. 2022).

    Args:
        logits: ``(..., n, k)``.
        labels: ``(n,)``.

    Returns:
        ``(..., n)``.
    """
    logits = logits.double()
    index = labels.expand(logits.shape[:-1])[..., None]
    right = logits.gather(-1, index)[..., 0]
    rest = logits.scatter(-1, index, -torch.inf).logsumexp(dim=-1)
    found: Scores = (right - rest).numpy()
    return found


def lira(
    asked: Scores, shadows: Scores, member: NDArray[np.bool_], stranger: NDArray[np.bool_] | None = None
) -> Scores:
    """LiRA, online (Carlini et al. 2022): how much likelier a confidence is if the picture was learned.

    A normal distribution for each picture, with and without it; one variance for all pictures, as they do where there
    are few shadows, wider by what a mean of few shadows may be wrong by.

    Args:
        asked: ``(n,)`` confidences of the network that is attacked.
        shadows: ``(s, n)`` confidences of the shadows.
        member: ``(s, n)``: which shadow learned which picture; each picture at least once.
        stranger: ``(s, n)``: which shadow has not seen which picture, each at least once; all others by default.

    Returns:
        ``(n,)``: log of the likelihood ratio.

    Raises:
        ValueError: If a picture was in every shadow, or in none.
    """
    stranger = ~member if stranger is None else stranger
    if not (member.any(axis=0) & stranger.any(axis=0)).all():
        raise ValueError("every picture must be in some shadows and not in others; take more shadows")
    log_likelihood = []
    for chosen in (member, stranger):
        masked, count = np.ma.masked_array(shadows, ~chosen), chosen.sum(axis=0)
        mean = masked.mean(axis=0)
        # About means of few shadows deviations are too small, and the mean itself is uncertain.
        within = float(((masked - mean) ** 2).sum()) / max(1, int((count - 1).sum())) + 1e-9
        variance = within * (1 + 1 / count)
        log_likelihood.append(-0.5 * (asked - mean.data) ** 2 / variance - 0.5 * np.log(variance))
    found: Scores = log_likelihood[0] - log_likelihood[1]
    return found


@dataclass(frozen=True)
class Rate:
    """A figure with its 95 % interval; ``None`` throughout where it cannot be measured."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MembershipScore:
    """How well members are told from strangers.

    Attributes:
        auc: Area under the curve, 0.5 for a coin.
        at_percent: Share of the members found while 1 % of the strangers are accused.
        at_permille: The same at 0.1 %.
        members: How many members were asked about.
        strangers: How many strangers.
    """

    auc: Rate
    at_percent: Rate
    at_permille: Rate
    members: int
    strangers: int


def membership_score(
    pairs: Sequence[tuple[Scores, Scores]],
    seed: int = 0,
    *,
    classes: Sequence[tuple[Labels, Labels]] | None = None,
    common: bool = False,
    draws: int = 1000,
) -> MembershipScore:
    """Scores an attack: means over the networks that are attacked, with intervals by bootstrap over pictures.

    Members and strangers are drawn anew both: a thousand strangers who happen to look strange move the figure of every
    network alike. A client of few classes is told from strangers of all classes by these alone: where classes are
    given, a member is compared with strangers of its own, and false alarms are counted as if strangers had the members'
    mix. A true-positive rate is measured only where at least ten strangers lie above its threshold: at 1 % it takes
    1,000 strangers, at 0.1 % 10,000; and of these, by the members' mix, not fewer than half may count.

    Args:
        pairs: By attacked network, scores ``(n,)`` of pictures that were learned, and ``(m,)`` of pictures that were
            not.
        seed: Of the bootstrap.
        classes: By attacked network, the classes ``(n,)`` and ``(m,)`` of these pictures; all alike by default.
        common: Whether strangers are the same pictures, in the same order, for all networks.
        draws: Of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    areas, rates = [], {allowed: [] for allowed in (0.01, 0.001)}  # type: ignore[var-annotated]
    drawn: NDArray[np.int64] | None = None
    for place, (members, strangers) in enumerate(pairs):
        mine = rng.integers(len(members), size=(draws, len(members)))
        if drawn is None or not common:
            drawn = rng.integers(len(strangers), size=(draws, len(strangers)))
        compared, weights = None, np.ones(len(strangers))
        if classes is not None:
            compared, weights = alike(*classes[place]), mix_weights(*classes[place])
        areas.append(resampled_area(members, strangers, mine, drawn, compared))
        count = weights.sum() ** 2 / np.square(weights).sum()
        for allowed, found in rates.items():
            if len(strangers) * allowed >= NEEDED and count * allowed >= NEEDED / 2:
                thresholds = _thresholds(strangers[drawn], weights[drawn], allowed)
                hits = (members[mine] > thresholds[:, None]).mean(axis=1)
                found.append(np.r_[true_positive_rate(members, strangers, allowed, weights), hits])

    def rate(found: Sequence[NDArray[np.float64]]) -> Rate:
        if not found:
            return Rate(None, None, None)
        return Rate(*drawn_interval(found))

    counts = sum(len(members) for members, _ in pairs), len(pairs[0][1])
    return MembershipScore(rate(areas), rate(rates[0.01]), rate(rates[0.001]), *counts)


def alike(members: Labels, strangers: Labels) -> NDArray[np.bool_]:
    """``(n, m)``: which stranger is of which member's class; a class without a stranger is compared with all."""
    same: NDArray[np.bool_] = members[:, None] == strangers
    return same | ~same.any(axis=1, keepdims=True)


def mix_weights(members: Labels, strangers: Labels) -> NDArray[np.float64]:
    """``(m,)``: how much each stranger counts, so that strangers have the members' mix of classes; 1 on average."""
    compared = alike(members, strangers)
    weights: NDArray[np.float64] = (compared / compared.sum(axis=1, keepdims=True)).sum(axis=0)
    whole: NDArray[np.float64] = weights * len(strangers) / weights.sum()
    return whole


def drawn_interval(found: Sequence[NDArray[np.float64]]) -> tuple[float, float, float]:
    """The mean over networks or messages, and its 95 % interval.

    Args:
        found: For each a figure, then that of each draw of a bootstrap, ``(1 + draws,)``.
    """
    value, *others = np.mean(found, axis=0)
    low, high = np.quantile(others, [0.025, 0.975])
    return float(value), float(low), float(high)


def resampled_area(
    members: Scores,
    strangers: Scores,
    mine: NDArray[np.int64],
    drawn: NDArray[np.int64],
    compared: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """The area under the curve, and that of each draw of a bootstrap, ``(1 + draws,)``.

    A member whom nobody that was drawn is compared with has no say; 0.5 where that is all of them.

    Args:
        members: ``(n,)`` scores.
        strangers: ``(m,)`` scores.
        mine: ``(draws, n)`` rows of members.
        drawn: ``(draws, m)`` rows of strangers.
        compared: ``(n, m)``: which are compared with which; all by default.
    """
    wins = (members[:, None] > strangers) + 0.5 * (members[:, None] == strangers)
    counted = np.ones_like(wins) if compared is None else compared.astype(np.float64)
    draws = range(len(mine))
    of_members = np.stack([np.ones(len(members)), *(np.bincount(mine[i], minlength=len(members)) for i in draws)])
    of_strangers = np.stack(
        [np.ones(len(strangers)), *(np.bincount(drawn[i], minlength=len(strangers)) for i in draws)]
    )
    # By member and draw: its share of wins among the strangers that were drawn and are compared with it.
    won, of = ((wins * counted) @ of_strangers.T, counted @ of_strangers.T)
    said = of_members.T * (of > 0)
    found: NDArray[np.float64] = (said * won / np.maximum(of, 1)).sum(axis=0) / np.maximum(said.sum(axis=0), 1)
    return np.where(said.any(axis=0), found, 0.5)


def true_positive_rate(
    members: Scores, strangers: Scores, allowed: float, weights: NDArray[np.float64] | None = None
) -> float:
    """Share of members above the threshold that at most a share ``allowed`` of the strangers, by weight, exceeds."""
    counted = np.ones(len(strangers)) if weights is None else weights
    return float((members > _thresholds(strangers[None], counted[None], allowed)[0]).mean())


def _thresholds(strangers: Scores, weights: NDArray[np.float64], allowed: float) -> Scores:
    """By row of ``(d, m)``, the score that a share ``allowed`` of the weight exceeds at most."""
    order = np.argsort(-strangers, axis=1, kind="stable")
    found, counted = (np.take_along_axis(some, order, axis=1) for some in (strangers, weights))
    # Sums of weights are rounded.
    above = (counted.cumsum(axis=1) <= allowed * counted.sum(axis=1, keepdims=True) + 1e-9).sum(axis=1)
    lowest: Scores = found[np.arange(len(found)), np.minimum(above, found.shape[1] - 1)]
    return lowest


class MembershipAttack(Attack):
    """Which pictures a client trained on; how it is scored."""

    threat_model = ThreatModel.server

    def obstacle(self, record: Record) -> str | None:
        """A network that does not travel as a whole cannot be asked."""
        missing = set(record.task.network(0).state_dict()) - set(record.declared.tensors)
        return f"the server has no whole classifier to ask: {sorted(missing)[0]} does not travel" if missing else None

    def _scored(
        self,
        scene: Scene,
        rung: str,
        pairs: Sequence[tuple[Scores, Scores]],
        classes: Sequence[tuple[Tensor, Tensor]] | None = None,
        common: bool = False,
    ) -> list[Finding]:
        """A mean over targets of the area under the curve, and of the members found at 1 % if that can be measured.

        Args:
            scene: Of the attack.
            rung: What the attacker had.
            pairs: Scores of members and of strangers, by attacked network.
            classes: Their labels; all alike by default.
            common: Whether strangers are the same for all of them.
        """
        labels = None if classes is None else [(one.numpy(), other.numpy()) for one, other in classes]
        score = membership_score(pairs, scene.seed, classes=labels, common=common)
        found = []
        for metric, figure, chance in (
            ("area under the curve", score.auc, 50.0),
            ("members found at 1 % false alarms", score.at_percent, 1.0),
        ):
            if figure.value is not None and figure.low is not None and figure.high is not None:
                line = self._finding(scene, rung, metric, "%", [100 * figure.value], chance)
                found.append(replace(line, n=score.members, low=100 * figure.low, high=100 * figure.high))
        return found

    def _controlled(self, found: Sequence[Finding], negative: Sequence[Finding]) -> list[Finding]:
        """Findings beside the controls of the same metric; None where it cannot be measured there."""
        positive = {line.metric: line.value for line in found if line.rung == found[0].rung}
        chance = {line.metric: line.value for line in negative}
        return [
            replace(line, positive_control=positive.get(line.metric), negative_control=chance.get(line.metric))
            for line in found
        ]


class MembershipByLoss(MembershipAttack):
    """Which pictures a client trained on, by the loss of the network that it sent."""

    name = "membership by loss"
    cost = 8.0
    needs = "a whole classifier from each client; the picture in question, with its label"
    question = "Shown a picture, can the server tell whether a client trained on it?"

    def run(self, record: Record, client: int, asked: Data, device: torch.device | str = "cpu") -> Scores:
        """The attack on what a client sent last.

        Args:
            record: What the server saw.
            client: Who is asked about; it sent something in the last recorded round.
            asked: Pictures in question, with labels.
            device: Where the network computes.

        Returns:
            ``(n,)``, larger for members.
        """
        return _losses(network_of(record, record.rounds[-1].updates[client].tensors, device), asked)

    def findings(self, scene: Scene) -> list[Finding]:
        """A network made to overfit, the method's own clients, and what each client sent last; the area, by client."""
        record, public = scene.record, scene.public
        strangers = scene.truth.strangers or public
        learned = min(40, len(public) // 2)
        start, rehearsal = (network_of(record, record.start, scene.device) for _ in range(2))
        inputs, targets = (some[:learned].to(scene.device) for some in (to_unit(public.inputs), public.targets))
        optimizer = torch.optim.Adam(rehearsal.parameters(), 1e-3)
        for _ in range(20):
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(rehearsal(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scene.advance()
        scores, labels = _losses(rehearsal, public), public.targets
        rung = f"trained on {learned} pictures until it knows them"
        halves = [(scores[:learned], scores[learned:])], [(labels[:learned], labels[learned:])]
        overfit = self._scored(scene, rung, *halves)
        clients = list(record.rounds[-1].updates)
        owned = [scene.truth.owners[client] for client in clients]
        classes = [(own.targets, strangers.targets) for own in owned]
        at_start = _losses(start, strangers)
        untrained = [(_losses(start, own), at_start) for own in owned]

        def asked(client: int) -> tuple[Scores, Scores]:
            own = scene.truth.owners[client]
            members, others = (self.run(record, client, some, scene.device) for some in (own, strangers))
            scene.advance()
            return members, others

        real = [scores for _, scores in side_by_side(clients, asked, scene.device)]
        found = [*overfit, *self._own_clients(scene), *self._scored(scene, REAL, real, classes, common=True)]
        return self._controlled(found, self._scored(scene, REAL, untrained, classes, common=True))

    def _own_clients(self, scene: Scene) -> list[Finding]:
        """The attack on clients that the attacker plays, as the method has them, with public pictures."""
        public, examples = scene.public, max(update.examples for update in scene.record.rounds[-1].updates.values())
        size = min(examples, len(public) // (2 * OWN_CLIENTS))
        ends = [size * place for place in range(OWN_CLIENTS + 1)] + [len(public)]
        *owners, others = (_part(public, begin, end) for begin, end in pairwise(ends))
        sent = federation_of(scene, owners, OWN_FEDERATION).sent
        pairs = []
        for weights, own in zip(sent, owners, strict=True):
            network = network_of(scene.record, weights, scene.device)
            pairs.append((_losses(network, own), _losses(network, others)))
        classes = [(own.targets, others.targets) for own in owners]
        rung = f"two clients of the method's own, with {size} public pictures each"
        return self._scored(scene, rung, pairs, classes, common=True)


def _part(data: Data, begin: int, end: int) -> Data:
    return Data(data.inputs[begin:end], data.targets[begin:end], data.names[begin:end])


def _losses(network: nn.Module, data: Data) -> Scores:
    return loss_threshold(logits_of(network, data.inputs), data.targets)
