"""What is left of "image distribution sharing": how near G(x) is to the scrambled domain, and what it tells alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor, nn

from veilmark.federation.client_side import SecretFolder
from veilmark.federation.config import FederationConfig
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of, generator_of
from veilmark.federation.tasks.classify import Classify, load_classify
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.networks import Classifier, Extractor, Generator, Pixels, feature_count, start_from_secret
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import read_tensors
from veilmark.run.errors import ConfigError
from veilmark.run.seeds import rng_for

FOLDS = 5


def linear_probe(pictures: Tensor, labels: Tensor) -> float:
    """Accuracy in percent of a linear classifier on pictures, on those that it did not learn from.

    Logistic regression on standardised pixels, five folds in a fixed order.

    Args:
        pictures: ``(n, c, h, w)``.
        labels: ``(n,)``.
    """
    rows = pictures.flatten(1).double().numpy()
    rows = (rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6)
    said = cross_val_predict(LogisticRegression(C=0.01, max_iter=200), rows, labels.numpy(), cv=FOLDS)
    return 100 * float((said == labels.numpy()).mean())


def two_sample_score(one: Tensor, other: Tensor) -> float:
    """How well a linear classifier tells two sets of pictures apart, in percent: 50 is not at all.

    The classifier two-sample test (Lopez-Paz and Oquab 2017), with a linear classifier.

    Args:
        one: ``(n, c, h, w)``.
        other: ``(m, c, h, w)``; no picture of it comes from the same original as one of ``one``.
    """
    labels = torch.cat([torch.zeros(len(one), dtype=torch.int64), torch.ones(len(other), dtype=torch.int64)])
    return linear_probe(torch.cat([one, other]), labels)


def measure_generator(config: FederationConfig, data: Path | None, run: Path, secrets: Path) -> dict[str, Any]:
    """Figures of a finished run's generator on the public test set, which no client learned from.

    Args:
        config: The run's config; method ``ppidsg``.
        data: Folder of the data set.
        run: The run folder.
        secrets: Folder of the run's secrets.

    Returns:
        ``probe``: a linear classifier on G(x), percent; ``probe_x`` and ``probe_scrambled``: the same on x and on
        scramble(x). ``key_head``: accuracy in percent of F and C as the common secret starts them, behind G: what
        somebody has who holds the secret and trains nothing. ``l1``: mean absolute difference of G(x) and scramble(x),
        in [0, 2]; ``l1_x``: of x and scramble(x). ``two_sample``: how well G(x) is told from scramble(x') of
        other images, percent; ``two_sample_scrambled`` and ``two_sample_x``: how well scramble(x) and x are, what
        nearness could reach and where it begins. Empty where nothing is shared.

    Raises:
        ConfigError: If the method is another.
    """
    options = config.made_method().options
    if not isinstance(options, PPIDSGOptions):
        raise ConfigError(f"method {config.method} releases no generator; ppidsg does")
    if not options.share:
        return {}
    task, _, _, _ = load_classify(config.data, data, config.clients, config.seed)
    known = SecretFolder(secrets).of_client(0)
    cipher = cipher_of(options, known.federation, known.own)
    generator = Generator(task.channels, skip="generator" not in options.published)
    share, _ = read_tensors(run / f"checkpoints/server-{config.rounds:04d}.safetensors")
    generator.load_state_dict(generator_of(share))
    inputs, labels = task.test.inputs, task.test.targets
    names = [f"public/{row}".encode() for row in range(len(inputs))] if options.scope == "image" else None
    x, y = to_unit(inputs), to_unit(cipher.scramble(inputs, names))
    with torch.inference_mode():
        g = torch.cat([generator(some) for some in torch.split(x, 256)])
        said = _head_of(options, task, known.federation.derive(b"key"))(g).argmax(dim=1)
    # Drawn: test sets have an order (MNIST's second half was written by others), which alone tells halves apart.
    one, other = np.array_split(rng_for(config.seed, 96).permutation(len(x)), 2)
    return {
        "probe": linear_probe(g, labels),
        "key_head": 100 * float((said == labels).float().mean()),
        "probe_x": linear_probe(x, labels),
        "probe_scrambled": linear_probe(y, labels),
        "l1": float((g - y).abs().mean()),
        "l1_x": float((x - y).abs().mean()),
        "two_sample": two_sample_score(g[one], y[other]),
        "two_sample_scrambled": two_sample_score(y[one], y[other]),
        "two_sample_x": two_sample_score(x[one], y[other]),
        "test_images": len(x),
        "chance": 100 * float(np.bincount(labels.numpy()).max() / len(labels)),
    }


def _head_of(options: PPIDSGOptions, task: Classify, key: Secret) -> nn.Sequential:
    """F and C where the common secret starts them."""
    without = options.extractor == "none"
    extractor = Pixels() if without else Extractor(task.channels)
    if not without:
        start_from_secret(extractor, key, "F")
    classifier = Classifier(
        feature_count(task.channels, task.side, extractor=not without), len(task.classes), task.head_widths
    )
    start_from_secret(classifier, key, "C")
    return nn.Sequential(extractor, classifier)
