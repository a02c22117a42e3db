"""FedCG's conditional GAN of features (Wu et al. 2022, arXiv 2111.08211): generator G(z, y), discriminator D(f, y).

Shapes are those of the authors' networks for LeNet features, with a first (last) kernel that fits the side of the map:
four transposed convolutions of 512, 256 and 128 channels, and their mirror image with spectral norms. Two things differ
because our extractor does: normalisation is GroupNorm, which has no running statistics to average, and G ends in
GroupNorm and ReLU, as the extractor does, where theirs both end in a sigmoid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax
from torch.nn.utils.parametrizations import spectral_norm

_GROUP = 16


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _GROUP, channels)


class FeatureGenerator(nn.Module):
    """G: noise and a class to features of a picture of that class.

    Args:
        classes: Number of classes.
        features: Channels of the features, a multiple of 16.
        side: Height and width of the features, 4 or more.
        noise: Numbers in z.
    """

    def __init__(self, classes: int, features: int, side: int, noise: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, classes)
        layers: list[nn.Module] = []
        kernels = (side - 3, 2, 2, 2)
        for enter, leave, kernel in zip(
            (noise + classes, 512, 256, 128), (512, 256, 128, features), kernels, strict=True
        ):
            layers += [nn.ConvTranspose2d(enter, leave, kernel, bias=False), _norm(leave), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers[:-1], nn.ReLU())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Features ``(n, features, side, side)``, 0 or more, of noise ``(n, noise)`` and classes ``(n,)``."""
        both = torch.cat([z, self.embedding(y)], dim=1)
        made: Tensor = self.layers(both[:, :, None, None])
        return made


class FeatureDiscriminator(nn.Module):
    """D: tells the extractor's features from G's, knowing the class.

    Args:
        classes: Number of classes.
        features: Channels of the features.
        side: Height and width of the features, 4 or more.
    """

    def __init__(self, classes: int, features: int, side: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, classes)
        layers: list[nn.Module] = []
        for enter, leave in ((features + classes, 128), (128, 256), (256, 512)):
            layers += [spectral_norm(nn.Conv2d(enter, leave, 2, bias=False)), _norm(leave), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(512, 1, side - 3, bias=False)), nn.Flatten())

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        """Verdicts ``(n, 1)`` as logits: high for the extractor's, low for G's."""
        known = self.embedding(y)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        verdicts: Tensor = self.layers(torch.cat([features, known], dim=1))
        return verdicts


def real_or_made_loss(real: Tensor, made: Tensor) -> Tensor:
    """What D minimises, from its logits on both: ``-mean(log s(real)) - mean(log(1 - s(made)))``, s the sigmoid."""
    right = binary_cross_entropy_with_logits(real, torch.ones_like(real))
    return right + binary_cross_entropy_with_logits(made, torch.zeros_like(made))


def deceiving_loss(made: Tensor) -> Tensor:
    """What G minimises, from D's logits on what it made: ``-mean(log s(made))``, s the sigmoid."""
    return binary_cross_entropy_with_logits(made, torch.ones_like(made))


def distillation_loss(global_logits: Tensor, ensemble_logits: Tensor) -> Tensor:
    """How far the global answers are from the clients': ``KL(softmax(ensemble) || softmax(global))``, mean over rows.

    Args:
        global_logits: ``(n, classes)``.
        ensemble_logits: ``(n, classes)``, the clients' weighted mean.
    """
    aim, answer = log_softmax(ensemble_logits, dim=1), log_softmax(global_logits, dim=1)
    return (aim.exp() * (aim - answer)).sum(dim=1).mean()
