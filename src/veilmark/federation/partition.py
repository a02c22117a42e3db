"""Which client owns which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from veilmark.run.errors import ConfigError

Kind = Literal["iid", "dirichlet", "group"]


@dataclass(frozen=True, eq=False)
class Partition:
    """A set dealt to clients: no image belongs to two.

    Attributes:
        clients: For each client the sorted indices of its images, ``(m_i,)`` int64.
        kind: How they were dealt.
        alpha: The Dirichlet concentration, where there is one.
    """

    clients: tuple[NDArray[np.int64], ...]
    kind: Kind
    alpha: float | None = None

    def counts(self, labels: NDArray[np.integer], classes: Sequence[str]) -> NDArray[np.int64]:
        """How many images of each class each client has.

        Args:
            labels: ``(n,)`` of the whole set, in 0 .. ``len(classes) - 1``.
            classes: Names of the classes.

        Returns:
            ``(clients, classes)`` int64.
        """
        return np.stack([np.bincount(labels[own], minlength=len(classes)) for own in self.clients]).astype(np.int64)

    def summary(self, labels: NDArray[np.integer], classes: Sequence[str]) -> dict[str, Any]:
        """What ``summary.json`` says of it: plain numbers and texts, the same for the same partition.

        Args:
            labels: ``(n,)`` of the whole set, in 0 .. ``len(classes) - 1``.
            classes: Names of the classes.

        Returns:
            ``kind``, ``alpha``, ``sizes`` (images of each client), ``classes`` (their names) and ``counts``
            (for each client, images of each class).
        """
        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "sizes": [len(own) for own in self.clients],
            "classes": list(classes),
            "counts": self.counts(labels, classes).tolist(),
        }


def iid(labels: NDArray[np.integer], clients: int, per_client: int | None, rng: np.random.Generator) -> Partition:
    """Images dealt at random, whatever their class.

    Args:
        labels: ``(n,)`` of the whole set.
        clients: How many clients, 1 or more.
        per_client: Images for each; None deals all of them, sizes that differ by 1 at most.
        rng: What the draw is made with.

    Raises:
        ConfigError: If there are too few images, or a number is below 1.
    """
    _check_numbers(len(labels), clients, per_client)
    order = rng.permutation(len(labels))
    used = order if per_client is None else order[: clients * per_client]
    return Partition(_sorted(np.array_split(used, clients)), "iid")


def dirichlet(
    labels: NDArray[np.integer],
    clients: int,
    per_client: int | None,
    alpha: float,
    rng: np.random.Generator,
    least: int = 1,
) -> Partition:
    """Images dealt by class, in shares drawn from a symmetric Dirichlet distribution: a small alpha is uneven.

    With ``per_client`` (Hsu, Qi and Brown 2019, arXiv 1909.06335): each client in turn draws its mix of classes,
    then its images by that mix, without replacement; a class that has run out drops out of the mix. Hsu et al.
    give the distribution the parameters alpha x (share of each class), so that their alpha is the one here times
    the number of classes, where these are of equal size. The last clients take what is left: where nearly all
    images are dealt, their mixes follow the stock more than alpha.

    Without it (Yurochkin et al. 2019, arXiv 1905.12022): each class draws the shares of the clients, and all
    images are dealt; clients differ in size.

    Args:
        labels: ``(n,)`` of the whole set.
        clients: How many clients, 1 or more.
        per_client: Images for each, or None.
        alpha: Concentration, above 0, up to 1e6 (beyond, the draw is as good as even).
        rng: What the draw is made with.
        least: Images that each client must get, where ``per_client`` is None.

    Raises:
        ConfigError: If there are too few images, a number is out of range, or the draw leaves a client with
            fewer images than ``least``; the message names the client and the remedies.
    """
    _check_numbers(len(labels), clients, per_client)
    if not 0 < alpha <= 1e6:
        raise ConfigError(f"alpha {alpha} of the Dirichlet partition is not above 0 and up to 1e6; even shares: iid")
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    if per_client is not None:
        return Partition(_by_client(pools, clients, per_client, alpha, rng), "dirichlet", float(alpha))
    dealt = _by_class(pools, clients, alpha, rng)
    for number, own in enumerate(dealt):
        if len(own) < least:
            raise ConfigError(
                f"client {number} (counted from 0) got {len(own)} images of {len(labels)}, fewer than {least}, in the "
                f"Dirichlet partition over {clients} clients at alpha {alpha}; take a larger alpha, fewer clients or "
                "another seed"
            )
    return Partition(dealt, "dirichlet", float(alpha))


def by_group(groups: Sequence[str] | NDArray[Any], clients: int, rng: np.random.Generator) -> Partition:
    """Whole groups dealt at random: all images of a person to one client.

    Args:
        groups: ``(n,)`` the group of each image, numbers or names.
        clients: How many clients, 1 or more; numbers of groups differ by 1 at most.
        rng: What the draw is made with.

    Raises:
        ConfigError: If there are fewer groups than clients, or ``clients`` is below 1.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    if not 1 <= clients <= len(names):
        raise ConfigError(f"{clients} clients cannot share {len(names)} groups; take 1 to {len(names)} clients")
    dealt = np.array_split(rng.permutation(len(names)), clients)
    return Partition(_sorted([np.flatnonzero(np.isin(member, part)) for part in dealt]), "group")


def _check_numbers(images: int, clients: int, per_client: int | None) -> None:
    if clients < 1 or (per_client is not None and per_client < 1):
        raise ConfigError(f"{clients} clients with {per_client} images each: both numbers must be 1 or more")
    each = 1 if per_client is None else per_client
    if clients * each > images:
        raise ConfigError(
            f"{clients} clients x {each} images or more = {clients * each}, but the set has {images}; take fewer "
            "clients or fewer images for each"
        )


def _sorted(parts: Sequence[NDArray[np.integer]]) -> tuple[NDArray[np.int64], ...]:
    return tuple(np.sort(part).astype(np.int64) for part in parts)


def _by_class(
    pools: Sequence[NDArray[np.integer]], clients: int, alpha: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], ...]:
    """Every class cut into a piece for each client."""
    pieces: list[list[NDArray[np.integer]]] = [[] for _ in range(clients)]
    for pool in pools:
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(pool)).astype(np.int64)
        for own, piece in zip(pieces, np.split(pool, cuts), strict=True):
            own.append(piece)
    return _sorted([np.concatenate(own) for own in pieces])


def _by_client(
    pools: Sequence[NDArray[np.integer]], clients: int, per_client: int, alpha: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], ...]:
    """Every client's images by the mix that it drew."""
    taken = np.zeros(len(pools), dtype=np.int64)
    stock = np.array([len(pool) for pool in pools])
    dealt = []
    for _ in range(clients):
        mix = rng.dirichlet(np.full(len(pools), alpha))
        before = taken.copy()
        missing = per_client
        while missing:
            left = stock - taken
            weights = np.where(left > 0, mix, 0.0)
            if weights.sum() == 0:
                # At a small alpha a mix can be one class, and zero on all others: then the stock decides.
                weights = left.astype(np.float64)
            # What a class cannot give is drawn again from the others, as if images had been drawn one by one.
            drawn = np.minimum(rng.multinomial(missing, weights / weights.sum()), left)
            taken += drawn
            missing -= int(drawn.sum())
        dealt.append(np.concatenate([pool[a:b] for pool, a, b in zip(pools, before, taken, strict=True)]))
    return _sorted(dealt)
