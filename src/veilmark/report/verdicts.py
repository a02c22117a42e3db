"""What may be said of the figures of an audit, attack by attack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pydantic import BaseModel

REAL = "as it was"


class AuditFinding(BaseModel):
    """A line of ``audit.json``."""

    attack: str
    threat_model: str
    method: str
    dataset: str
    seed: int
    n: int
    rung: str
    metric: str
    unit: str
    value: float
    low: float
    high: float
    chance: float
    positive_control: float | None
    negative_control: float | None


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one attack.

    Attributes:
        attack: Its name.
        threat_model: Who attacks.
        kind: ``leaks``, ``not found``, ``not shown to work``, or ``nothing to attack`` where what it needs did not
            travel in this run.
        words: A sentence.
        findings: The figures behind it, easiest rung first.
        works: Rungs on which the attack works, from the easiest one up to the first on which it does not.
        stops: The rung on which it stops, which may be the run as it was; None where it does not.
    """

    attack: str
    threat_model: str
    kind: str
    words: str
    findings: list[AuditFinding]
    works: tuple[str, ...] = ()
    stops: str | None = None

    @property
    def rungs(self) -> int:
        """How long the ladder is, by the attack's own figure; the run as it was is its last rung."""
        own = [found.rung for found in self.findings if found.metric == self.findings[0].metric]
        return len(dict.fromkeys(own))

    @property
    def tables(self) -> dict[str, list[AuditFinding]]:
        """The figures by what they measure; the attack's own comes first."""
        metrics = dict.fromkeys(found.metric for found in self.findings)
        return {metric: [found for found in self.findings if found.metric == metric] for metric in metrics}

    @property
    def real(self) -> AuditFinding | None:
        """The figure of the run as it was that the verdict states; None where nothing travelled."""
        return _stated(self.findings)

    @property
    def way(self) -> float | None:
        """What lies between chance and where the attack must succeed, in the unit of ``real``; None without a way."""
        if (real := self.real) is None:
            return None
        easy = self.tables[real.metric][0]
        # A rate among members has no control: all of them would be found.
        most = 100.0 if easy.positive_control is None and real.unit == "%" else easy.positive_control
        return most - easy.chance if most is not None and most > easy.chance else None

    @property
    def gone(self) -> float:
        """How much of that way it went on the run, in percent; 0 without a way."""
        if self.real is None or self.way is None:
            return 0.0
        return 100 * (self.real.value - self.real.chance) / self.way


def verdict(findings: Sequence[AuditFinding]) -> Verdict:
    """What may be said of the findings of one attack.

    An attack that does not succeed where it must shows nothing: in its control, and on the easiest rung of the method's
    own networks, beyond the interval and beyond noise there. *Private* is never said: what an attack that works does
    not find, another may.

    Of several figures the first is the attack's own; each other one counts with an interval as much wider as there are
    figures more (Bonferroni 1936), so that asking for many finds no more by luck.

    Args:
        findings: Of one attack, easiest rung first; larger is worse for the clients.
    """
    real = _stated(findings)
    easy = findings[0]
    control = easy.positive_control
    works = control is not None and control > easy.chance
    alike = [found for found in findings if found.metric == easy.metric and found.rung != REAL]
    # Where a rung is the control it is that one, else the easiest: a control on another network does not stand for it.
    rung = next((found for found in alike if found.value == control), alike[0] if alike else None)
    if rung is not None:
        noise = -math.inf if rung.negative_control is None else rung.negative_control
        works = works and rung.low > max(rung.chance, noise)
    if real is None:
        last = findings[-1]
        kind = "nothing to attack"
        words = f"What it takes did not travel in this run. If it leaked: {figure_words(last)}, where chance is "
        words += f"{last.chance:.1f} (“{last.rung}”)."
    elif beyond_chance(real, findings):
        kind, words = "leaks", f"Yes: {figure_words(real)}, where chance is {real.chance:.1f}."
    elif not works:
        kind, words = "not shown to work", "Unknown: the attack did not succeed where it must, so it shows nothing."
        if control is not None and rung is not None and control > easy.chance and rung.value != control:
            words = (
                f"Unknown: the attack succeeds in its control ({control:.1f} {easy.unit}, chance {easy.chance:.1f}), "
            )
            words += "but not even on the easiest rung with this run's own networks, so it shows nothing here."
    elif control is not None and real.value - real.chance >= control - easy.chance > 0:
        kind = "not shown to work"
        words = f"Unknown: {figure_words(real)}, as much as where it must succeed, but of so few that it may be luck."
    else:
        kind = "not found"
        words = f"Not by this attack ({figure_words(real)}, chance {real.chance:.1f}). Another attack may."
    climbed, stops = _climbed(findings)
    if climbed and stops:
        words += f" It works up to “{climbed[-1]}” and stops at “{stops}”."
    return Verdict(easy.attack, easy.threat_model, kind, words, list(findings), climbed, stops)


def _climbed(findings: Sequence[AuditFinding]) -> tuple[tuple[str, ...], str | None]:
    """The rungs on which an attack works by its own figure, beyond chance and noise; and the first on which not."""
    works: list[str] = []
    for found in findings:
        if found.metric != findings[0].metric:
            continue
        if found.rung == REAL:
            beyond = beyond_chance(found, findings)
        else:
            noise = -math.inf if found.negative_control is None else found.negative_control
            # One picture has no interval: it is no evidence of either.
            if found.n == 1 and found.low == found.high:
                continue
            beyond = found.low > max(found.chance, noise)
        if not beyond:
            return tuple(works), found.rung
        works.append(found.rung)
    return tuple(works), None


def _stated(findings: Sequence[AuditFinding]) -> AuditFinding | None:
    """The first figure of the run as it was that is beyond chance; the first one if none is."""
    real = [found for found in findings if found.rung == REAL]
    return next((found for found in real if beyond_chance(found, findings)), real[0] if real else None)


def beyond_chance(real: AuditFinding, findings: Sequence[AuditFinding]) -> bool:
    """Whether a figure of the run is more than chance, and more than noise gets: else the measure makes the figure."""
    metrics = list(dict.fromkeys(found.metric for found in findings if found.rung == REAL))
    low = real.low
    if real.metric != metrics[0]:
        wider = NormalDist().inv_cdf(1 - 0.025 / len(metrics)) / NormalDist().inv_cdf(0.975)
        low = real.value - wider * (real.value - real.low)
    return low > max(real.chance, -math.inf if real.negative_control is None else real.negative_control)


def figure_words(found: AuditFinding) -> str:
    """A figure with its measure, its unit, and its interval where it has one."""
    interval = f" ({found.low:.1f} to {found.high:.1f})" if found.n > 1 else ""
    return f"{found.metric} {found.value:.1f} {found.unit}{interval}"
