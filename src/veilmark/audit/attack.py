"""The interface of an attack: what it needs, what it takes out of a record, and how that is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student
from torch import Tensor

from veilmark.audit.record import Record, ThreatModel
from veilmark.federation.methods.method import Secrets
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.cipher import Table
from veilmark.run.local_training import batches

REAL = "as it was"
"""The rung of the run itself; all others are rehearsals in which the attacker has more."""

FEW = 20
"""Values below which a bootstrap's interval is too narrow."""


@dataclass(frozen=True)
class Finding:
    """One figure of an audit: a line of ``audit.json``.

    Attributes:
        attack: The attack's name.
        threat_model: Who attacks.
        method: What clients did.
        dataset: The pictures.
        seed: The audit's seed.
        n: How many units the figure is a mean over.
        rung: What the attacker had; ``as it was``: what it really has.
        metric: What is measured.
        unit: Of the value.
        value: The figure.
        low: Lower end of its 95 % interval.
        high: Upper end.
        chance: What somebody gets who saw nothing.
        positive_control: What the attack gets where it must succeed.
        negative_control: What it gets from noise.
    """

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
    positive_control: float | None = None
    negative_control: float | None = None


@dataclass(frozen=True, eq=False)
class Truth:
    """What only the scorer has.

    Attributes:
        owners: The clients' pictures, by client.
        key: The cipher's table for the run's pictures where one key serves all clients, else None.
        strangers: Pictures drawn like the clients' that nobody learned, to be asked about beside members; None where
            every picture has an owner. Public ones may be of other people, which alone tells them from members.
        first: The first client's secrets, where the method has a key: a curious client, who is that one, has them too.
        keys: The cipher's table of each client, where each has a key of its own.
    """

    owners: Sequence[Data]
    key: Table | None = None
    strangers: Data | None = None
    first: Secrets | None = None
    keys: Sequence[Table] = ()


@dataclass(frozen=True, eq=False)
class Scene:
    """What an attack works with.

    Attributes:
        record: What the server saw.
        public: Pictures of the same kind with labels that no client has.
        truth: Ground truth; attacks hand it to their scoring and read nothing of it before.
        seed: Of everything that is drawn.
        advance: Called after each piece of work.
        show: Called with a rung, true pictures and what the attack made of them, both ``(n, c, s, s)`` in [-1, 1]:
            for the report.
        device: Where networks compute. What is drawn is drawn on the CPU, so that it is the same everywhere.
    """

    record: Record
    public: Data
    truth: Truth
    seed: int = 0
    advance: Callable[[], None] = lambda: None
    show: Callable[[str, Tensor, Tensor], None] = lambda rung, true, made: None
    device: torch.device | str = "cpu"


class Attack(ABC):
    """An attack, with its controls."""

    name: ClassVar[str]
    threat_model: ClassVar[ThreatModel]
    needs: ClassVar[str]
    """What it needs, in words."""
    question: ClassVar[str]
    """What it answers, for a reader who does not know the field."""
    cost: ClassVar[float] = 1.0
    """How long it takes beside others, for the time left: seconds on the first look, as ``summary.json`` says them."""

    @abstractmethod
    def obstacle(self, record: Record) -> str | None:
        """Why the attack does not apply to a record; None where it does."""

    @abstractmethod
    def findings(self, scene: Scene) -> list[Finding]:
        """Plays the attack on every rung, easiest first, with its controls."""

    def _finding(
        self,
        scene: Scene,
        rung: str,
        metric: str,
        unit: str,
        values: Sequence[float],
        chance: float | Sequence[float],
    ) -> Finding:
        """The mean of values with its interval over them.

        Where each value has a chance of its own, the interval is that of what is gained over it, put at the mean
        chance: what is easy for an attack (few classes, a plain picture) is easy for somebody who saw nothing too.
        """
        if isinstance(chance, Sequence):
            value, chance, low, high = gain_interval(values, chance, scene.seed)
        else:
            value, low, high = mean_interval(values, scene.seed)
        if unit == "%":
            # An interval of few figures may reach where no figure can be.
            low = max(low, 0.0) if min(values) >= 0 else low
            high = min(high, 100.0) if max(values) <= 100 else high
        config = scene.record.config
        return Finding(
            self.name, self.threat_model.value, config.method, config.data.layout, scene.seed, len(values), rung,
            metric, unit, value, low, high, chance,
        )  # fmt: skip


def with_controls(findings: Sequence[Finding], positive: float, negative: float) -> list[Finding]:
    """The findings, each beside what the attack gets where it must succeed, and from noise."""
    return [replace(found, positive_control=positive, negative_control=negative) for found in findings]


def control_where(findings: Sequence[Finding], rung: str, negative: float) -> list[Finding]:
    """The findings; on one rung, what the attack gets from noise is that rung's own."""
    return [replace(found, negative_control=negative) if found.rung == rung else found for found in findings]


def rows_behind(scene: Scene, number: int, client: int) -> NDArray[np.int64]:
    """The truth: rows of the client's pictures in its steps, in their order, each as often as it was in one.

    Args:
        scene: Its truth is read.
        number: Of the round, from 1.
        client: Who sent the message.
    """
    config = scene.record.config
    steps = batches(len(scene.truth.owners[client]), config.training, config.seed, client, number - 1)
    rows: NDArray[np.int64] = torch.cat(steps).numpy()
    return rows


def by_client(found: Mapping[tuple[int, int], float]) -> list[float]:
    """Figures of messages, by (round, client), as one a client: its messages of several rounds say much the same."""
    clients = dict.fromkeys(client for _, client in found)
    return [float(np.mean([value for (_, of), value in found.items() if of == client])) for client in clients]


def gain_interval(values: Sequence[float], chances: Sequence[float], seed: int) -> tuple[float, float, float, float]:
    """Mean of values and of their chances, and the 95 % interval of the gain at the mean chance.

    Args:
        values: One a unit; at least one.
        chances: What somebody gets for the same unit who saw nothing.
        seed: See :func:`mean_interval`.

    Returns:
        Value, chance, and the lower and the upper end: the lower one is above chance where the gain's is above 0.

    Raises:
        ValueError: If there are not as many of both.
    """
    gains = [value - chance for value, chance in zip(values, chances, strict=True)]
    _, low, high = mean_interval(gains, seed)
    value, chance = float(np.mean(values)), float(np.mean(chances))
    return value, chance, chance + low, chance + high


def mean_interval(values: Sequence[float], seed: int, draws: int = 1000) -> tuple[float, float, float]:
    """Mean and its 95 % interval.

    Of hits (each 0 or 100) it is the exact one of Clopper and Pearson (1934). Of fewer than ``FEW`` other values it is
    Student's: a bootstrap of two values would hold the truth half of the time. Of more it is by bootstrap. One value
    alone has none: both ends are the value.

    Args:
        values: One a unit (a message, a picture); at least one.
        seed: Of the bootstrap.
        draws: Of the bootstrap.
    """
    found = np.asarray(values, dtype=np.float64)
    count, mean = len(found), float(found.mean())
    if count == 1:
        return mean, mean, mean
    if np.isin(found, (0.0, 100.0)).all():
        ends = binomtest(int((found == 100).sum()), count).proportion_ci(0.95, "exact")
        return mean, 100 * float(ends.low), 100 * float(ends.high)
    if count < FEW:
        reach = float(student.ppf(0.975, count - 1) * found.std(ddof=1) / count**0.5)
        return mean, mean - reach, mean + reach
    rng = np.random.default_rng(seed)
    means = found[rng.integers(len(found), size=(draws, len(found)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return mean, float(low), float(high)
