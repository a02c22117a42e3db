"""Gradient inversion: the positive controls that must succeed, the negative ones that must be at chance."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torch.nn.functional import one_hot

from veilmark.audit.gradient_inversion import (
    classifier_gradient,
    cosine_distance,
    cosine_inversion,
    dlg,
    generator_gradient,
    likeness,
    psnr,
    sgd_gradient,
    squared_distance,
    total_variation,
)
from veilmark.audit.waves import Waves
from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.losses import adversarial_loss, class_loss, semantic_loss
from veilmark.ppidsg.networks import Classifier, Discriminator, Extractor, Generator
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.local_training import Training, sgd


class LeNet(nn.Sequential):
    """The small sigmoid network of the DLG paper, with its wide uniform start."""

    def __init__(self, channels=1, side=32, classes=10):
        parts = []
        for enter, stride in ((channels, 2), (12, 2), (12, 1)):
            parts += [nn.Conv2d(enter, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
        super().__init__(*parts, nn.Flatten(), nn.Linear(12 * (side // 4) ** 2, classes))
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)


def scene(count, side=32, channels=1):
    """Discs and bars in [-1, 1]: edges and flat parts, as pictures have."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    made = []
    for _ in range(count):
        at = torch.randint(side // 4, 3 * side // 4, (2,), generator=generator)
        disc = (rows - at[0]).square() + (columns - at[1]).square() < (side // 4) ** 2
        made.append((0.8 * disc.float() - 0.4 + 0.4 * torch.sin(columns / 4.0)).expand(channels, side, side))
    return torch.stack(made)


def observed(gradient, x, labels):
    return [g.detach() for g in gradient(x, one_hot(labels, 10).float())]


@pytest.mark.parametrize("labels_known", [False, True])
def test_dlg_opens_a_gradient_of_one_picture(labels_known):
    gradient, x, t = classifier_gradient(LeNet()), scene(1), torch.tensor([3])
    found = dlg(
        gradient, observed(gradient, x, t), (1, 1, 32, 32), 10, t if labels_known else None, steps=20, restarts=1
    )
    assert float(psnr(found.pictures, x)[0]) > 25
    assert found.probabilities.argmax(dim=1).tolist() == [3]


@pytest.mark.parametrize("waves", [None, Waves(32, 32)])
def test_cosine_opens_a_gradient_of_one_picture(waves):
    gradient, x, t = classifier_gradient(LeNet()), scene(1), torch.tensor([3])
    found = cosine_inversion(gradient, observed(gradient, x, t), (1, 1, 32, 32), t, 10, steps=250, waves=waves)
    assert float(psnr(found.pictures, x)[0]) > 22
    assert found.pictures.abs().max() <= 1


@pytest.mark.parametrize("waves", [None, Waves(32, 32)])
def test_cosine_begins_where_it_is_told(waves):
    gradient, x, t = classifier_gradient(LeNet()), scene(1), torch.tensor([3])
    seen = observed(gradient, x, t)
    likely = (0.5 * x + 0.1)[0]
    found = cosine_inversion(gradient, seen, (1, 1, 32, 32), t, 10, steps=0, waves=waves, start=likely, restarts=3)
    torch.testing.assert_close(found.pictures[0], likely, atol=1e-5, rtol=0)
    alone = cosine_inversion(gradient, seen, (1, 1, 32, 32), t, 10, steps=30, waves=waves)
    helped = cosine_inversion(gradient, seen, (1, 1, 32, 32), t, 10, steps=30, waves=waves, start=likely)
    assert float(psnr(helped.pictures, x)[0]) > float(psnr(alone.pictures, x)[0])


def test_noise_in_place_of_the_gradient_opens_nothing():
    gradient, x, t = classifier_gradient(LeNet()), scene(1), torch.tensor([3])
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(g.shape, generator=generator) * g.std() for g in observed(gradient, x, t)]
    for found in (
        cosine_inversion(gradient, noise, (1, 1, 32, 32), t, 10, steps=100),
        cosine_inversion(gradient, noise, (1, 1, 32, 32), t, 10, steps=100, waves=Waves(32, 32)),
        dlg(gradient, noise, (1, 1, 32, 32), 10, t, steps=10, restarts=1),
    ):
        assert float(psnr(found.pictures, x)[0]) < 12


def test_generator_gradient_is_that_of_the_clients_step():
    torch.manual_seed(0)
    # In double precision: in single, the order of sums differs between the two by more than a fair tolerance.
    g, d, f, c = (
        part.double() for part in (Generator(1), Discriminator(1), Extractor(1), Classifier(128 * 16, 10, (16, 8)))
    )
    cipher = Cipher(Secret(b"k" * SECRET_BYTES), 4)
    x, t = scene(2, 16).double(), torch.tensor([1, 7])
    made = g(x)
    (adversarial_loss(d(made)) + semantic_loss(made, cipher.scramble(x)) + 2 * class_loss(c(f(made)), t)).backward()
    found = generator_gradient(g, d, nn.Sequential(f, c), cipher.scramble)(x, one_hot(t, 10).double())
    for parameter, gradient in zip(g.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_search_may_round_the_corner_of_the_semantic_loss():
    torch.manual_seed(0)
    g, d, head = nn.Conv2d(1, 1, 3, padding=1).double(), nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    parts, (x, t) = (g, d, head.double(), lambda pictures: -pictures), (scene(2, 16).double(), torch.tensor([1, 7]))
    made = g(x)
    loss = adversarial_loss(d(made)) + ((made + x).square() + 0.2**2).sqrt().mean() + 2 * class_loss(head(made), t)
    loss.backward()
    hard = one_hot(t, 10).double()
    for parameter, gradient in zip(g.parameters(), generator_gradient(*parts, corner=0.2)(x, hard), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    for sharp, rounded in zip(
        generator_gradient(*parts)(x, hard), generator_gradient(*parts, corner=1e-6)(x, hard), strict=True
    ):
        torch.testing.assert_close(sharp, rounded, rtol=1e-3, atol=1e-5)


def test_one_step_of_sgd_gives_its_gradient_away():
    network, x, t = LeNet(), scene(2), torch.tensor([1, 7])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = observed(classifier_gradient(network), x, t)
    training = Training(lr=0.05)
    optimizer = sgd(network, training, 1.0)
    class_loss(network(x), t).backward()
    optimizer.step()
    found = sgd_gradient(before, network.state_dict(), training.lr, training.weight_decay)
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def test_distances_by_hand():
    one, other = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([0.0, 1.0]), torch.tensor([2.0])]
    assert float(cosine_distance(one, other)) == pytest.approx(1 - 8 / (5 * 5**0.5))
    assert float(cosine_distance(one, one)) == pytest.approx(0, abs=1e-6)
    assert float(squared_distance(one, other)) == pytest.approx(9 + 1 + 4)
    assert float(total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]]))) == pytest.approx(
        (0 + 2) / 2 + (1 + 3) / 2
    )


def test_psnr_is_scikit_images():
    one, other = scene(1), scene(2)[1:]
    expected = peak_signal_noise_ratio(one[0].numpy(), other[0].numpy(), data_range=2.0)
    assert float(psnr(one, other)[0]) == pytest.approx(expected, rel=1e-5)


def test_likeness_finds_the_order_of_a_batch():
    truth = scene(4)
    near = likeness(truth.flip(0) + 0.01, truth, scene(9)[5:])
    assert near.order == [3, 2, 1, 0]
    assert min(near.psnr) > 40 > max(near.chance_psnr)
    assert min(near.ssim) > 0.95 > max(near.chance_ssim)


def test_a_guess_that_is_a_stranger_is_at_chance():
    truth, strangers = scene(2), scene(9)[5:]
    said = likeness(strangers[:2], truth, strangers)
    assert all(a <= b for a, b in zip(said.psnr, said.chance_psnr, strict=True))
