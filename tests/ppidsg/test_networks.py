"""PPIDSG's networks and losses."""

import numpy as np
import pytest
import torch

from veilmark.ppidsg.losses import (
    adversarial_loss,
    class_loss,
    discriminator_loss,
    proximal_loss,
    reconstruction_loss,
    semantic_loss,
)
from veilmark.ppidsg.networks import (
    Classifier,
    Discriminator,
    Extractor,
    Generator,
    Halving,
    feature_count,
    start_from_secret,
)
from veilmark.ppidsg.secret import Secret
from veilmark.run.errors import ConfigError

DRAW = torch.Generator().manual_seed(0)


def pictures(n, channels, side):
    return torch.rand(n, channels, side, side, generator=DRAW) * 2 - 1


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 16)])
def test_shapes_and_ranges(channels, side):
    x = pictures(2, channels, side)
    g, f = Generator(channels), Extractor(channels)
    y = g(x)
    assert y.shape == x.shape
    assert y.abs().max() <= 1
    assert Discriminator(channels)(x).shape == (2, 1, side // 4 - 2, side // 4 - 2)
    features = f(x)
    assert features[0].numel() == feature_count(channels, side)
    assert f.reconstruct(x).shape == x.shape
    assert Classifier(feature_count(channels, side), 7)(features).shape == (2, 7)


def test_sizes_are_those_of_the_paper():
    """G 1.96 M, D 0.17 M, C 29.9 M and 37.8 M; F is near the published 0.39 M."""
    assert round(count(Generator(1)) / 1e6, 2) == 1.96
    assert round(count(Discriminator(1)) / 1e6, 2) == 0.17
    assert 0.3e6 < count(Extractor(1)) < 0.45e6
    assert feature_count(1, 28) == 6272
    assert feature_count(3, 32) == 8192
    with torch.device("meta"):
        assert round(count(Classifier(6272, 10)) / 1e6, 1) == 29.9
        assert round(count(Classifier(8192, 10)) / 1e6, 1) == 37.8


def test_no_answer_depends_on_the_rest_of_the_batch():
    x = pictures(3, 1, 28)
    for network in (Generator(1), Discriminator(1), Extractor(1)):
        network.train()
        torch.testing.assert_close(network(x)[:1], network(x[:1]), atol=1e-5, rtol=1e-4)


def test_the_published_generator_has_no_skips():
    x = pictures(1, 1, 28)
    torch.manual_seed(0)
    ours = Generator(1)
    torch.manual_seed(0)
    published = Generator(1, skip=False)
    published.load_state_dict(ours.state_dict())
    assert not torch.allclose(ours(x), published(x))


@pytest.mark.parametrize("side", [8, 30])
def test_sides_that_do_not_fit_are_refused(side):
    with pytest.raises(ConfigError, match=f"pictures are {side} px"):
        feature_count(1, side)


def test_the_extractor_reproduces_negative_values():
    """The published decoder ends in ReLU: its error on a black picture (-1) could not fall below 1."""
    x = torch.full((2, 1, 16, 16), -0.9)
    network = Extractor(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = reconstruction_loss(network.reconstruct(x), x)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 2, 6), (2, 64, 28, 28)])
def test_halving_is_max_pooling_whether_it_learns_or_is_asked(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.max_pool2d(x, 2)
    assert torch.equal(Halving()(x), wanted)
    with torch.inference_mode():
        assert torch.equal(Halving()(x), wanted)


def test_a_start_from_a_secret_is_the_same_everywhere_and_open_to_nobody_else():
    def made(secret, name):
        network = Extractor(1)
        start_from_secret(network, secret, name)
        return torch.cat([p.flatten() for p in network.parameters()])

    one, other = Secret(bytes(32)), Secret(bytes([1]) + bytes(31))
    assert torch.equal(made(one, "F"), made(one, "F"))
    for different in (made(other, "F"), made(one, "C")):
        # All but the scales and biases, which every start shares.
        apart = made(one, "F") != different
        assert apart.float().mean() > 0.99


def test_a_start_from_a_secret_has_the_spread_that_pytorch_gives():
    network, plain = Extractor(3), Extractor(3)
    start_from_secret(network, Secret(bytes(32)), "F")
    for (name, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        if ours.ndim > 1 and ours.numel() > 5000 and "decoder" not in name:
            assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.1), name
            assert abs(float(ours.mean())) < 0.1 * float(ours.std())


def test_losses_against_formulas():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 1, 5, 5)), rng.normal(size=(4, 1, 5, 5))
    logits, labels = rng.normal(size=(4, 3)), np.array([0, 2, 1, 1])
    ta, tb, tl = (torch.from_numpy(v) for v in (a, b, logits))
    assert float(adversarial_loss(ta)) == pytest.approx(np.mean((a - 1) ** 2))
    assert float(semantic_loss(ta, tb)) == pytest.approx(np.mean(np.abs(a - b)))
    assert float(reconstruction_loss(ta, tb)) == pytest.approx(np.mean((a - b) ** 2))
    assert float(discriminator_loss(ta, tb)) == pytest.approx((np.mean((a - 1) ** 2) + np.mean(b**2)) / 2)
    exact = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True)])
    assert float(class_loss(tl, torch.from_numpy(labels))) == pytest.approx(exact, rel=1e-5)
    shares = np.array([0.2, 0.5, 0.3])
    weighted = shares * np.exp(logits)
    exact = -np.mean(np.log(weighted[np.arange(4), labels] / weighted.sum(axis=1)))
    assert float(class_loss(tl, torch.from_numpy(labels), torch.from_numpy(shares))) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    "loss", [adversarial_loss, lambda x: discriminator_loss(x, x.flip(0)), lambda x: semantic_loss(x, x.flip(0) + 3)]
)
def test_gradients(loss):
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(loss, (x,))


def test_the_proximal_loss_is_half_the_squared_distance():
    network = torch.nn.Linear(3, 2)
    start = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    expected = 0.5 * sum(
        float(np.square(value.numpy() - start[name].numpy()).sum()) for name, value in network.state_dict().items()
    )
    assert float(proximal_loss(network, start)) == pytest.approx(expected)
