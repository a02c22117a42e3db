"""The search for pictures that give the same gradient, and gradients in a form that is quickly compared.

The attacks that search are in :mod:`veilmark.audit.inversion_ladder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from veilmark.audit.gradient_inversion import GradientOf, cosine_inversion, generator_gradient
from veilmark.audit.waves import principal_axes
from veilmark.federation.tasks.classify import ClassifierNetwork
from veilmark.ppidsg.cipher import Table
from veilmark.run.local_training import Training, sgd_weight


class SmallSigmoidNetwork(nn.Sequential):
    """The network of the DLG paper (Zhu et al. 2019): smooth, with a wide start, and known to give pictures away.

    Args:
        channels: 1 or 3.
        side: Pixels, a multiple of 4.
        classes: Number of classes.
        seed: Of its weights.
    """

    def __init__(self, channels: int, side: int, classes: int, seed: int) -> None:
        parts: list[nn.Module] = []
        for enter, stride in ((channels, 2), (12, 2), (12, 1)):
            parts += [nn.Conv2d(enter, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
        super().__init__(*parts, nn.Flatten(), nn.Linear(12 * (side // 4) ** 2, classes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.5, 0.5, generator=generator)


class SmallSmoothGenerator(nn.Sequential):
    """A generator that gives pictures away: three convolutions, smooth, without normalisation, with a wide start.

    PPIDSG's own is deep, normalised and full of corners.

    Args:
        channels: 1 or 3, of what enters and of what leaves.
        seed: Of its weights.
    """

    def __init__(self, channels: int, seed: int) -> None:
        parts: list[nn.Module] = []
        for enter in (channels, 12):
            parts += [nn.Conv2d(enter, 12, 5, padding=2), nn.Sigmoid()]
        super().__init__(*parts, nn.Conv2d(12, channels, 5, padding=2), nn.Tanh())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.3, 0.3, generator=generator)


def smooth_gradient(
    channels: int,
    side: int,
    classes: int,
    scramble: Callable[[Tensor], Tensor],
    semantic: float = 1.0,
    class_weight: float = 2.0,
    corner: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> GradientOf:
    """The gradient of PPIDSG's generator step where G, D, and C after F are small and smooth.

    Args:
        channels: 1 or 3.
        side: Pixels, a multiple of 4.
        classes: Number of classes.
        scramble: The cipher; differentiable.
        semantic: Weight of the semantic loss.
        class_weight: Weight of the class loss.
        corner: See :func:`veilmark.audit.gradient_inversion.generator_gradient`.
        seed: Of the networks.
        device: Where they compute.
    """
    judge, head = (
        SmallSigmoidNetwork(channels, side, leaves, seed + place).to(device)
        for place, leaves in enumerate((1, classes))
    )
    generator = SmallSmoothGenerator(channels, seed).to(device)
    return generator_gradient(generator, judge, head, scramble, semantic, class_weight, corner)


def compact_gradient(network: ClassifierNetwork, seen: Mapping[str, Tensor]) -> tuple[GradientOf, list[Tensor]]:
    """The gradient of plain training, of the tensors that were seen; of wide layers only what a cosine depends on.

    The gradient of a linear layer's weights has rank n for n pictures, and is not written down: two numbers stand for
    it, how far it reaches along the seen one and how far across. All lengths and angles to the seen one are the same.

    Args:
        network: The classifier.
        seen: Gradients by name, on its device.

    Returns:
        What makes gradients, and the seen ones, in the same form and order.
    """
    named = dict(network.named_parameters())
    plain = [name for name in seen if not name.startswith("classifier.")]
    linear = {
        place: f"classifier.layers.{place}"
        for place, layer in enumerate(network.classifier.layers)
        if isinstance(layer, nn.Linear)
    }

    def gradient(pictures: Tensor, probabilities: Tensor) -> Sequence[Tensor]:
        x, entered, left = network.extractor(pictures), {}, {}
        for place, layer in enumerate(network.classifier.layers):
            y = layer(x)
            if place in linear:
                entered[place], left[place] = x, y
            x = y
        loss = cross_entropy(x, probabilities)
        wanted = [*(named[name] for name in plain), *left.values()]
        slopes = torch.autograd.grad(loss, wanted, create_graph=True)
        found = list(slopes[: len(plain)])
        for (place, name), slope in zip(linear.items(), slopes[len(plain) :], strict=True):
            if f"{name}.bias" in seen:
                found.append(slope.sum(dim=0))
            if f"{name}.weight" in seen:
                found.append(_along_and_across(slope, entered[place], seen[f"{name}.weight"]))
        return found

    aim = [seen[name] for name in plain]
    for name in linear.values():
        if f"{name}.bias" in seen:
            aim.append(seen[f"{name}.bias"])
        if f"{name}.weight" in seen:
            along = seen[f"{name}.weight"].norm()
            aim.append(torch.stack([along, torch.zeros_like(along)]))
    return gradient, aim


def stepped_gradient(network: ClassifierNetwork, names: Sequence[str], training: Training, lr: float) -> GradientOf:
    """What a round of several steps of SGD gives away, with its graph through all of them: a client played by a search.

    Args:
        network: The classifier that was broadcast.
        names: Of the tensors that travel.
        training: Momentum and weight decay; ``batch`` pictures are a step, in their order.
        lr: The learning rate.

    Returns:
        What makes, of pictures and class probabilities, the change of those tensors in units of one gradient, as
        :func:`veilmark.audit.gradient_inversion.sgd_gradient` takes it from a message.
    """
    start: dict[str, Tensor] = dict(network.named_parameters())

    def gradient(pictures: Tensor, probabilities: Tensor) -> Sequence[Tensor]:
        weights = start
        velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        batches = list(
            zip(torch.split(pictures, training.batch), torch.split(probabilities, training.batch), strict=True)
        )
        for x, said in batches:
            loss = cross_entropy(functional_call(network, weights, (x,)), said)
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            for (name, weight), slope in zip(weights.items(), slopes, strict=True):
                velocity[name] = training.momentum * velocity[name] + slope + training.weight_decay * weight
            weights = {name: weight - lr * velocity[name] for name, weight in weights.items()}
        scale = lr * sgd_weight(len(batches), training.momentum)
        return [(start[name] - weights[name]) / scale - training.weight_decay * start[name] for name in names]

    return gradient


def _along_and_across(slope: Tensor, entered: Tensor, seen: Tensor) -> Tensor:
    """``slope^T entered``, as its part along ``seen`` and the length of the rest."""
    along = ((slope @ seen) * entered).sum() / seen.norm().clamp(min=1e-30)
    square = ((slope @ slope.T) * (entered @ entered.T)).sum()
    return torch.stack([along, (square - along.square()).clamp(min=1e-30).sqrt()])


def scrambled(table: Table, pictures: Tensor) -> Tensor:
    """What the cipher does to pictures in [-1, 1], with its graph, which :meth:`Cipher.scramble` does not keep."""
    place, negated = (torch.from_numpy(some).to(pictures.device) for some in (table.place, table.negated))
    return (pictures.flatten(1)[:, place] * (1 - 2 * negated.to(pictures.dtype))).view(pictures.shape)


def search(
    gradient: GradientOf,
    seen: Sequence[Tensor],
    labels: Tensor,
    classes: int,
    public: Tensor,
    *,
    steps: int,
    seed: int = 0,
) -> Tensor:
    """Pictures whose gradient has nearly the direction of one that was seen.

    It goes along the principal components of public pictures: pixel by pixel it finds less in the same time.

    Args:
        gradient: What makes gradients.
        seen: The gradient that was seen; the search computes on its device.
        labels: ``(n,)`` int64.
        classes: Number of classes.
        public: ``(m, c, s, s)`` in [-1, 1], on the CPU: other pictures of the same kind.
        steps: Of Adam.
        seed: Of the start.

    Returns:
        ``(n, c, s, s)`` in [-1, 1], on that device.
    """
    shape = (len(labels), *public.shape[1:])
    mean, axes = (some.to(seen[0].device) for some in principal_axes(public))

    def picture(z: Tensor) -> Tensor:
        # Of as many numbers as there are pixels the first ones count.
        made: Tensor = (mean + z.flatten(1)[:, : len(axes)] @ axes).clamp(-1, 1).view(z.shape)
        return made

    found = cosine_inversion(
        lambda z, probabilities: gradient(picture(z), probabilities), seen, shape, labels, classes,
        steps=steps, smoothness=0, seed=seed,
    )  # fmt: skip
    return picture(found.pictures)
