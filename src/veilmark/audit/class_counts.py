"""Counts of classes from the gradient of a last layer: the solvers, two baselines, and how right counts are.

With cross-entropy the gradient of the last layer's bias is, for each class, the mean probability that the network
gives it less the share of examples that have it. Whoever knows about what the network says reads the counts off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]


def apportioned(wanted: Tensor, total: int) -> Counts:
    """Whole counts nearest to real ones, not below 0, that add up to a total.

    Args:
        wanted: ``(k,)`` real counts.
        total: How many examples there are.
    """
    values = wanted.double().clamp(min=0).numpy()
    values = np.full(len(values), total / len(values)) if values.sum() <= 0 else values * total / values.sum()
    counts: Counts = np.floor(values).astype(np.int64)
    # Largest remainders first; ties by class.
    counts[np.argsort(-(values - counts), kind="stable")[: total - int(counts.sum())]] += 1
    return counts


def sign_rule(weights: Tensor, total: int) -> Counts:
    """Presence by sign (iDLG; Zhao et al. 2020): a class with a negative gradient is there. A baseline.

    It counts nothing: the examples are shared out evenly among the classes that it finds. Right for activations that
    are not negative, and for one example exactly.

    Args:
        weights: ``(k, d)``: the gradient of the last layer's weights, of a mean over examples.
        total: How many examples there are.
    """
    there = weights.sum(dim=1) < 0
    return apportioned(there.double() if bool(there.any()) else torch.ones(len(weights)), total)


def llg(weights: Tensor, total: int) -> Counts:
    """LLG (Wainakh et al. 2022, arXiv 2105.09369), from the gradient alone. A baseline.

    Classes with a negative sum are there; each example is worth the same, the *impact*, and labels are taken from the
    most negative class one by one. Right for activations that are not negative, early in training.

    Args:
        weights: ``(k, d)``: the gradient of the last layer's weights, of a mean over examples.
        total: How many examples there are.
    """
    sums = weights.double().sum(dim=1).numpy().copy()
    impact = sums[sums < 0].sum() / total * (1 + 1 / len(sums))
    counts = np.zeros(len(sums), dtype=np.int64)
    for label in np.flatnonzero(sums < 0)[:total]:
        counts[label] += 1
        sums[label] -= impact
    while counts.sum() < total:
        label = int(sums.argmin())
        counts[label] += 1
        sums[label] -= impact
    return counts


def counts_from_bias(bias: Tensor, probabilities: Tensor, total: int) -> Counts:
    """Counts from the gradient of the last layer's bias: the enhanced attack, whatever the activation.

    ``gradient = p - share``, where ``p`` is what the network says on average. The attacker asks the broadcast network
    about labelled pictures of its own: ``p`` is the shares' mix of what it says of each class, so that shares are the
    solution of ``(P^T - 1) share = gradient`` that sums to 1.

    Args:
        bias: ``(k,)``: the gradient, of a mean over examples.
        probabilities: ``(k, k)``: mean class probabilities of each class of public pictures, a row a class; or
            ``(k,)``, of all alike.
        total: How many examples there are.
    """
    classes = len(bias)
    said = probabilities.double().expand(classes, classes) if probabilities.ndim == 1 else probabilities.double()
    # Without the sum the system does not tell how many there are in all.
    system = torch.cat([said.T - torch.eye(classes), torch.ones(1, classes)]).double()
    wanted = torch.cat([bias.double(), torch.ones(1, dtype=torch.float64)])
    return apportioned(total * torch.linalg.lstsq(system, wanted[:, None]).solution[:, 0], total)


def counts_from_weights(weights: Tensor, activations: Tensor, probabilities: Tensor, total: int) -> Counts:
    """Counts from the gradient of the last layer's weights, for a layer whose bias is not shared.

    Row ``k`` is about ``(p_k - share_k)`` times the mean activation: its projection on that gives the share.

    Args:
        weights: ``(k, d)``: the gradient, of a mean over examples.
        activations: ``(d,)``: mean of what enters the last layer, estimated like the probabilities.
        probabilities: ``(k,)``: mean class probabilities.
        total: How many examples there are.
    """
    projected = weights.double() @ activations.double() / activations.double().square().sum()
    return apportioned(total * (probabilities - projected), total)


class LastLayerSolver:
    """Counts from the gradient of the whole last layer, for networks that have learned something.

    Each example adds ``(p - one_hot(label)) x (1, h)`` to it, ``h`` being what enters the layer. Labelled public
    pictures tell the mean and the spread of that by class, so that shares are those of a linear model with known
    noise. How uneven shares may be is not known: the gradient itself weighs degrees of it, from a batch drawn at
    random to a batch of one class. Where it tells nothing, the answer is even counts.

    Of the weights' gradient only the part along the axes that tell public classes apart is used: for all of it there
    are never enough public pictures.

    Args:
        entered: ``(n, d)``: what enters the last layer for public pictures, from the network that was broadcast.
        said: ``(n, k)``: its class probabilities.
        labels: ``(n,)`` int64.
    """

    _RIDGE = 1.0
    """How much of each variance is added to it: covariances of few pictures are not to be trusted."""
    _HEAVY = 3.0
    """Degrees of freedom of the noise: once learned, a few hard pictures make nearly all of the gradient."""
    _DEGREES = 7
    _BORROWED = 10.0
    """Pictures that a class' covariance borrows from those of all classes."""

    def __init__(self, entered: Tensor, said: Tensor, labels: Tensor) -> None:
        entered, said = entered.double(), said.double()
        classes = said.shape[1]
        self.middle = entered.mean(dim=0)
        self.axes = _telling_axes(entered - self.middle, labels)
        along = torch.cat([torch.ones(len(entered), 1), (entered - self.middle) @ self.axes], dim=1)
        means, spreads, sizes = [], [], []
        for label in range(classes):
            # A class of which there is no public picture is taken to look like all of them.
            rows = labels == label if bool((labels == label).any()) else torch.ones(len(labels), dtype=torch.bool)
            slopes = said[rows] - torch.eye(classes).double()[label]
            added = (slopes[:, :, None] * along[rows][:, None]).flatten(1)
            means.append(added.mean(dim=0))
            spreads.append((added - means[-1]).T @ (added - means[-1]))
            sizes.append(len(added))
        self.means, self.sizes = torch.stack(means), torch.tensor(sizes).double()
        spread = torch.stack(spreads)
        whole = spread.sum(dim=0) / self.sizes.sum()
        self.spreads = (spread + self._BORROWED * whole) / (self.sizes + self._BORROWED)[:, None, None]

    def counts(self, weights: Tensor, bias: Tensor, total: int) -> Counts:
        """Counts of one batch.

        Args:
            weights: ``(k, d)``: the gradient, of a mean over examples.
            bias: ``(k,)``: the gradient.
            total: How many examples there are.
        """
        slopes, classes = bias.double()[:, None], len(bias)
        seen = torch.cat([slopes, (weights.double() - slopes * self.middle) @ self.axes], dim=1).flatten()
        even = torch.full((classes,), 1 / classes, dtype=torch.float64)
        share = even
        # The noise depends on the shares: once more when they are known roughly.
        for _ in range(2):
            share = self._shares(seen - even @ self.means, self._noise(share, total), even, total)
        return apportioned(total * share, total)

    def _noise(self, share: Tensor, total: int) -> Tensor:
        """Covariance of what is seen given shares: a batch is a sample, and so are the public pictures."""
        parts = share.clamp(min=1e-3)
        noise = torch.einsum("c,cij->ij", parts / total + parts.square() / self.sizes, self.spreads)
        # Gradients of the bias add up to nothing: without the second term there is no inverse.
        floor = 1e-9 * float(noise.trace()) / len(noise) + 1e-16
        return noise + self._RIDGE * noise.diagonal().diag() + floor * torch.eye(len(noise))

    def _shares(self, apart: Tensor, noise: Tensor, even: Tensor, total: int) -> Tensor:
        """Expected shares ``(k,)``, over degrees of unevenness by how well each explains what is seen."""
        classes = len(even)
        scatter = (torch.eye(classes).double() - 1 / classes) / classes
        found, evidence = [], []
        # Of n examples drawn at random shares vary by 1 / n of this scatter; of one class alone by all of it.
        for degree in np.geomspace(1 / total, 1, self._DEGREES):
            spread = float(degree) * scatter
            factor = torch.linalg.cholesky(self.means.T @ spread @ self.means + noise)
            solved = torch.cholesky_solve(apart[:, None], factor)[:, 0]
            found.append(even + spread @ self.means @ solved)
            far = torch.log1p(apart @ solved / self._HEAVY) * (self._HEAVY + len(apart)) / 2
            evidence.append(-far - factor.diagonal().log().sum())
        shares = torch.stack(evidence).softmax(dim=0) @ torch.stack(found)
        return shares.clamp(min=0) / shares.clamp(min=0).sum()


def _telling_axes(entered: Tensor, labels: Tensor) -> Tensor:
    """Axes ``(d, c - 1)`` along which means of ``c`` classes differ, against the spread in them (Fisher 1936)."""
    there = torch.from_numpy(np.unique(labels.numpy()))
    means = torch.stack([entered[labels == label].mean(dim=0) for label in there])
    inner = entered - means[torch.searchsorted(there, labels)]
    spread = inner.T @ inner / len(entered)
    spread += (0.01 * spread.trace() / len(spread) + 1e-12) * torch.eye(len(spread))
    factor = torch.linalg.cholesky(spread)
    white = torch.linalg.solve_triangular(factor, (means - means.mean(dim=0)).T, upper=False)
    turned = torch.linalg.svd(white, full_matrices=False).U[:, : len(there) - 1]
    axes: Tensor = torch.linalg.solve_triangular(factor.T, turned, upper=True)
    return axes


@dataclass(frozen=True)
class LabelScore:
    """How right guessed counts are.

    Attributes:
        exact: Share of classes whose count is right, in percent.
        presence: Share of classes of which it is right whether they are there, in percent.
        l1: Share of examples that are counted in a wrong class, in percent: half the L1 distance.
    """

    exact: float
    presence: float
    l1: float


def label_score(guess: Counts, truth: Counts) -> LabelScore:
    """Scores counts ``(k,)`` of one batch.

    Raises:
        ValueError: If shapes differ.
    """
    if guess.shape != truth.shape:
        raise ValueError(f"{guess.shape} classes guessed, {truth.shape} are there")
    return LabelScore(
        100 * float((guess == truth).mean()),
        100 * float(((guess > 0) == (truth > 0)).mean()),
        50 * float(np.abs(guess - truth).sum() / truth.sum()),
    )


def prior_counts(total: int, classes: int) -> Counts:
    """The guess of somebody who saw nothing: all classes alike."""
    return apportioned(torch.ones(classes), total)


SCORES: dict[str, Callable[[LabelScore], float]] = {
    "pictures counted in the right class": lambda score: 100 - score.l1,
    "classes known to be there or not": lambda score: score.presence,
    "classes counted exactly": lambda score: score.exact,
}
"""What attacks on counts report, in percent; the first is what they are judged by."""
