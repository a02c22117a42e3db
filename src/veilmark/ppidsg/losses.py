"""The losses of PPIDSG (arXiv 2312.10380, section 4): one small function each; pictures are in [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def adversarial_loss(verdicts: Tensor) -> Tensor:
    """How far G is from deceiving D: the mean of ``(D(G(x)) - 1)^2`` (LSGAN; Mao et al. 2017, eq. 2)."""
    return (verdicts - 1).square().mean()


def semantic_loss(generated: Tensor, scrambled: Tensor) -> Tensor:
    """How far G(x) is from scramble(x): the mean absolute difference."""
    return (generated - scrambled).abs().mean()


def class_loss(logits: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
    """Cross-entropy of C's logits ``(n, classes)`` and labels ``(n,)``.

    Args:
        logits: What C says.
        labels: What is right.
        shares: ``(classes,)``, how often each class occurs, in [0, 1]: logits are adjusted by its logarithm, so that
            they learn what tells classes apart and not which are frequent; of a class that never occurs nothing is
            learned (logit adjustment; Menon et al. 2021, arXiv 2007.07314, eq. 10 with tau 1). None: as they are.
    """
    return torch.nn.functional.cross_entropy(adjusted(logits, shares).float(), labels)


def adjusted(logits: Tensor, shares: Tensor | None) -> Tensor:
    """Logits ``(n, classes)`` plus the logarithms of the classes' shares ``(classes,)``, where there are any."""
    return logits if shares is None else logits + shares.log()


def reconstruction_loss(again: Tensor, pictures: Tensor) -> Tensor:
    """How well F's autoencoder gives pictures back: the mean squared difference."""
    return (again - pictures).square().mean()


def discriminator_loss(scrambled: Tensor, generated: Tensor) -> Tensor:
    """What D minimises, from its verdicts on both: ``((D(y) - 1)^2 + D(G(x))^2) / 2``, means (LSGAN)."""
    return 0.5 * ((scrambled - 1).square().mean() + generated.square().mean())


def proximal_loss(network: nn.Module, start: Mapping[str, Tensor]) -> Tensor:
    """Half the squared distance of a network's weights to where the round began (FedProx; Li et al. 2020, eq. 2)."""
    moved = [(parameter - start[name]).square().sum() for name, parameter in network.named_parameters()]
    return 0.5 * torch.stack(moved).sum()
