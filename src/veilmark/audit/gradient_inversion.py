"""Pictures out of gradients: DLG, iDLG, and cosine distance with total variation, on any method's own losses.

An attack sees a gradient and knows, or guesses, the function that made it: pictures and class probabilities to
gradients. Which parts of that function the attacker really has is what the rungs of an audit's ladder differ in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from veilmark.audit.waves import Waves
from veilmark.ppidsg.losses import adversarial_loss, semantic_loss

GradientOf = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Pictures ``(n, c, h, w)`` in [-1, 1] and class probabilities ``(n, k)`` to gradients, with their graph."""
Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""How far two gradients are apart, with its graph."""


class Coordinates(Protocol):
    """Numbers that pictures are made of, so that a search may go along them."""

    def size(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        """The shape of the numbers behind pictures of a shape ``(n, c, h, w)``."""

    def picture(self, numbers: Tensor) -> Tensor:
        """The pictures, with their graph."""


FAINT = 0.2
"""Spread of DLG's first picture."""
STANDSTILL = 0.01
"""Share of its distance that a step of DLG must gain for another one."""


def classifier_gradient(network: nn.Module) -> GradientOf:
    """The gradient of plain training: cross-entropy with respect to all of a classifier's weights."""
    weights = list(network.parameters())

    def gradient(pictures: Tensor, probabilities: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(cross_entropy(network(pictures), probabilities), weights, create_graph=True)

    return gradient


def generator_gradient(
    generator: nn.Module,
    discriminator: nn.Module,
    classifier: nn.Module,
    scramble: Callable[[Tensor], Tensor],
    semantic: float = 1.0,
    classes: float = 2.0,
    corner: float = 0.0,
) -> GradientOf:
    """The gradient of PPIDSG's generator step (arXiv 2312.10380, section 4): adversarial, semantic and class loss.

    Args:
        generator: G, whose gradient is seen.
        discriminator: D, or what the attacker has in its place.
        classifier: C after F, or what the attacker has in its place.
        scramble: The cipher, or what the attacker has in its place; differentiable.
        semantic: Weight of the semantic loss.
        classes: Weight of the class loss.
        corner: How far the corner of the semantic loss is rounded, in units of a picture in [-1, 1]; 0: as clients have
            it. A search that plays clients may round it: the slope of a mean absolute difference is the same far from
            the truth and near it, and leads nowhere.
    """
    weights = list(generator.parameters())

    def gradient(pictures: Tensor, probabilities: Tensor) -> Sequence[Tensor]:
        generated = generator(pictures)
        like = (
            _rounded(generated - scramble(pictures), corner) if corner else semantic_loss(generated, scramble(pictures))
        )
        loss = adversarial_loss(discriminator(generated)) + semantic * like
        loss = loss + classes * cross_entropy(classifier(generated), probabilities)
        # Who only looks at the gradient does not pay for the way back through it.
        searched = pictures.requires_grad or probabilities.requires_grad
        return torch.autograd.grad(loss, weights, create_graph=searched)

    return gradient


def _rounded(difference: Tensor, corner: float) -> Tensor:
    """The mean absolute difference but for its corner: a hyperbola (Charbonnier et al. 1994)."""
    return (difference.square() + corner**2).sqrt().mean()


def sgd_gradient(
    before: dict[str, Tensor], after: dict[str, Tensor], lr: float, weight_decay: float
) -> dict[str, Tensor]:
    """The gradient behind one step of SGD, from the weights before and after it.

    Args:
        before: Weights that were broadcast.
        after: Weights that came back.
        lr: Learning rate of the step.
        weight_decay: SGD's.

    Returns:
        By name; 0 where nothing moved, which was not sent: where a client sends all, decay moves everything.
    """
    moved = {name: before[name] - after[name] for name in after}
    return {
        name: torch.where(moved[name] == 0, moved[name], moved[name] / lr - weight_decay * before[name])
        for name in after
    }


@dataclass(frozen=True, eq=False)
class Inverted:
    """What an attack took out of a gradient, on the gradient's device.

    Attributes:
        pictures: ``(n, c, h, w)`` in [-1, 1].
        probabilities: ``(n, k)``: how the attack labels them.
        distance: Of their gradient to the one seen: in the attack's own measure, smaller is nearer.
    """

    pictures: Tensor
    probabilities: Tensor
    distance: float


def cosine_inversion(
    gradient: GradientOf,
    seen: Sequence[Tensor],
    shape: tuple[int, int, int, int],
    labels: Tensor,
    classes: int,
    *,
    steps: int = 400,
    lr: float = 0.1,
    smoothness: float = 0.02,
    waves: Waves | None = None,
    start: Tensor | None = None,
    restarts: int = 1,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Inverted:
    """Geiping et al. 2020 (arXiv 2003.14053): cosine distance and total variation, Adam on signs, labels given.

    With waves it goes along them in place of pixels, and finds more in as many steps.

    Args:
        gradient: What makes gradients.
        seen: The gradient that was seen; the search computes on its device.
        shape: Of the pictures: number, channels, height, width.
        labels: ``(n,)`` int64.
        classes: Number of classes.
        steps: Steps of Adam for each start.
        lr: Its rate; a tenth after 3/8, 5/8 and 7/8 of the steps.
        smoothness: Weight of the total variation; 0.02 was best of 0.0001, 0.02 and 0.2 on pictures of CIFAR-10's
            training set.
        waves: Of pictures of this size, on that device; None searches pixel by pixel.
        start: Where every picture begins, ``(c, h, w)`` in [-1, 1]: what the attacker takes for likely; noise by
            default.
        restarts: Random starts; the nearest is kept. With ``start`` one is all there is.
        seed: Of the starts.
        advance: Called after each step.
    """
    device = seen[0].device
    probabilities = one_hot(labels, classes).float().to(device)
    milestones = [steps * part // 8 for part in (3, 5, 7)]
    best: Inverted | None = None
    for number in range(restarts if start is None else 1):
        if start is None:
            generator = torch.Generator().manual_seed(seed * 1000 + number)
            x = torch.randn(shape, generator=generator).to(device)
        else:
            x = start.to(device).expand(shape).clone()
            x = x if waves is None else waves.numbers(x)
        x.requires_grad_()
        optimizer = torch.optim.Adam([x], lr)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
        for _ in range(steps):
            picture = x if waves is None else waves.picture(x)
            apart = cosine_distance(gradient(picture, probabilities), seen)
            (slope,) = torch.autograd.grad(apart + smoothness * total_variation(picture), x)
            x.grad = slope.sign()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                if waves is None:
                    x.clamp_(-1, 1)
                else:
                    x.copy_(waves.numbers(waves.picture(x).clamp(-1, 1)))
            advance()
        # Waves of a picture within bounds are within them but for rounding.
        found = x.detach() if waves is None else waves.picture(x.detach()).clamp(-1, 1)
        nearness = float(cosine_distance(gradient(found, probabilities), seen).detach())
        if best is None or nearness < best.distance:
            best = Inverted(found, probabilities, nearness)
    assert best is not None
    return best


def dlg(
    gradient: GradientOf,
    seen: Sequence[Tensor],
    shape: tuple[int, int, int, int],
    classes: int,
    labels: Tensor | None = None,
    *,
    distance: Distance | None = None,
    along: Coordinates | None = None,
    steps: int = 100,
    restarts: int = 3,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Inverted:
    """DLG (Zhu et al. 2019, arXiv 1906.08935): squared distance of gradients, L-BFGS, labels found with the pictures.

    With labels given it is iDLG (Zhao et al. 2020, arXiv 2001.02610), which takes them from the gradient's signs.
    Distance, if no other is given, and optimiser are the paper's; it goes along cosine waves, or other coordinates, in
    place of pixels, with a line search.

    Args:
        gradient: What makes gradients.
        seen: The gradient that was seen; the search computes on its device.
        shape: Of the pictures: number, channels, height, width.
        classes: Number of classes.
        labels: ``(n,)`` int64 where they are known.
        distance: Of two gradients; squared by default.
        along: Coordinates of pictures of this shape, on that device; cosine waves by default.
        steps: Steps of L-BFGS for each start, about 20 evaluations each; fewer where nothing more is gained.
        restarts: Random starts; the nearest is kept.
        seed: Of the starts.
        advance: Called after each step.
    """
    best: Inverted | None = None
    measured, device = distance or squared_distance, seen[0].device
    known = None if labels is None else one_hot(labels, classes).float().to(device)
    coordinates = along or Waves(*shape[2:], device=device)
    for start in range(restarts):
        generator = torch.Generator().manual_seed(seed * 1000 + start)
        # A faint start: a glaring one saturates the network and leads nowhere.
        drawn = torch.randn(coordinates.size(shape), generator=generator)
        numbers = (FAINT * drawn).to(device).requires_grad_()
        logits = torch.randn(shape[0], classes, generator=generator).to(device).requires_grad_()
        wanted = [numbers, logits] if known is None else [numbers]
        optimizer = torch.optim.LBFGS(
            wanted, lr=1, max_eval=20, tolerance_grad=0, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def apart(numbers: Tensor = numbers, logits: Tensor = logits) -> Tensor:
            said = logits.softmax(dim=1) if known is None else known
            return measured(gradient(coordinates.picture(numbers), said), seen)

        def closure(wanted: Sequence[Tensor] = wanted, apart: Callable[[], Tensor] = apart) -> Tensor:
            far = apart()
            for tensor, slope in zip(wanted, torch.autograd.grad(far, wanted), strict=True):
                tensor.grad = slope
            return far.detach()

        last = float("inf")
        for _ in range(steps):
            before = float(optimizer.step(closure))  # type: ignore[no-untyped-call]
            advance()
            if not before < (1 - STANDSTILL) * last:
                break
            last = before
        nearness = float(apart().detach())
        if np.isfinite(nearness) and (best is None or nearness < best.distance):
            said = logits.detach().softmax(dim=1) if known is None else known
            best = Inverted(coordinates.picture(numbers.detach()).clamp(-1, 1), said, nearness)
    if best is None:
        # Every start ran away: the attack has nothing, and says so by noise.
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        even = torch.full((shape[0], classes), 1 / classes)
        return Inverted(noise.to(device), even.to(device), float("inf"))
    return best


def cosine_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """1 less the cosine of the angle between two gradients, all tensors taken together."""
    a, b = _flat(one), _flat(other)
    return 1 - (a @ b) / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-30)


def squared_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Sum of squared differences of two gradients."""
    return (_flat(one) - _flat(other)).square().sum()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def noise_like(gradients: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Noise in place of gradients, tensor by tensor of the same spread: what negative controls are played on."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(some.shape, generator=generator).to(some.device) * some.std(correction=0) for some in gradients]


def total_variation(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, down and across."""
    down, across = pictures.diff(dim=2).abs().mean(), pictures.diff(dim=3).abs().mean()
    return down + across


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of pictures in [-1, 1], ``(n, c, h, w)`` twice to ``(n,)``; 100 at most."""
    return -10 * torch.log10(((one - other) / 2).square().flatten(1).mean(dim=1).clamp(min=1e-10))


@dataclass(frozen=True, eq=False)
class Likeness:
    """How near guesses come to the truth, and how near strangers do.

    Attributes:
        order: ``(n,)``: which guess was matched with each true picture.
        psnr: ``(n,)`` dB.
        ssim: ``(n,)``.
        chance_psnr: ``(n,)`` dB: that of the nearest stranger.
        chance_ssim: ``(n,)``: that of the stranger with the largest one.
    """

    order: list[int]
    psnr: list[float]
    ssim: list[float]
    chance_psnr: list[float]
    chance_ssim: list[float]


def likeness(guesses: Tensor, truth: Tensor, strangers: Tensor) -> Likeness:
    """Scores guesses of a batch, whose order no attack can know.

    Args:
        guesses: ``(n, c, h, w)`` in [-1, 1].
        truth: ``(n, c, h, w)``.
        strangers: ``(m, c, h, w)``: other pictures of the public set; the chance level is what the best of them has.
    """
    apart = torch.stack([psnr(guesses, true.expand_as(guesses)) for true in truth])
    _, order = linear_sum_assignment(-apart.numpy())
    near = torch.stack([psnr(strangers, true.expand_as(strangers)) for true in truth]).amax(dim=1)
    return Likeness(
        [int(guess) for guess in order],
        [float(apart[row, guess]) for row, guess in enumerate(order)],
        [ssim(truth[row], guesses[guess]) for row, guess in enumerate(order)],
        near.tolist(),
        [max(ssim(true, stranger) for stranger in strangers) for true in truth],
    )


def ssim(one: Tensor, other: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures in [-1, 1], ``(c, h, w)``; at most 1."""
    found = structural_similarity(one.numpy(), other.numpy(), data_range=2.0, channel_axis=0)  # type: ignore[no-untyped-call]
    return float(found)
