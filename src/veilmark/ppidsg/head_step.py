"""One step of SGD for C that never holds its gradient: C has 30 million weights, and its gradient as many again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from veilmark.ppidsg.losses import adjusted, class_loss
from veilmark.ppidsg.networks import Classifier


@torch.no_grad()
def head_step(
    classifier: Classifier,
    optimizer: torch.optim.SGD,
    features: Tensor,
    labels: Tensor,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``class_loss(classifier(features), labels, shares).backward()`` and ``optimizer.step()`` do, to rounding.

    Each layer's gradient is added straight to its momentum, which the optimiser goes on keeping: a pass less over
    every weight, and no memory for the gradient.

    Args:
        classifier: C.
        optimizer: SGD of its weights, with momentum.
        features: ``(n, ...)``.
        labels: ``(n,)``.
        shares: Of the classes, ``(k,)``; see :func:`veilmark.ppidsg.losses.class_loss`.

    Returns:
        The loss, logits ``(n, k)``, and the loss' gradient for ``features``: all of before the step.
    """
    entered: list[Tensor] = []
    x = features
    for layer in classifier.layers:
        entered.append(x)
        x = layer(x)
    logits = x
    # Of the mean cross-entropy: probabilities less what is right, for each example.
    slope = (adjusted(logits, shares).softmax(dim=1) - one_hot(labels, logits.shape[1])) / len(labels)
    for layer, x, after in zip(
        reversed(classifier.layers), reversed(entered), reversed([*entered[1:], logits]), strict=True
    ):
        if isinstance(layer, nn.Tanh):
            slope = slope * (1 - after.square())
        elif isinstance(layer, nn.Linear):
            of_input = slope @ layer.weight
            _move(optimizer, layer.weight, slope, x)
            _move(optimizer, layer.bias, slope, None)
            slope = of_input
    return class_loss(logits, labels, shares), logits, slope.view_as(features)


def _move(optimizer: torch.optim.SGD, parameter: Tensor, slope: Tensor, x: Tensor | None) -> None:
    """One step of a weight, whose gradient is ``slope.T @ x``, or of a bias, whose gradient is the sum of ``slope``."""
    (settings,) = optimizer.param_groups
    state = optimizer.state[parameter]
    momentum: Tensor | None = state.get("momentum_buffer")
    if momentum is None:
        momentum = state["momentum_buffer"] = slope.sum(dim=0) if x is None else slope.T @ x
    elif x is None:
        momentum.mul_(settings["momentum"]).add_(slope.sum(dim=0))
    else:
        momentum.addmm_(slope.T, x, beta=settings["momentum"])
    momentum.add_(parameter, alpha=settings["weight_decay"])
    parameter.add_(momentum, alpha=-settings["lr"])
