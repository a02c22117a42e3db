"""The discriminators: the published losses, and they learn to tell a real face from a painted one."""

import pytest
import torch

from veilmark.sht.discriminators import Discriminators, PatchDiscriminator, discriminator_loss, generator_loss


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("real", "painted", "judge", "painter"),
    [
        ([1.0, 1.0], [0.0, 0.0], 0.0, 1.0),  # the judge is right: the painter has all to gain
        ([0.0, 0.0], [1.0, 1.0], 1.0, 0.0),  # fooled
        ([0.5, 0.5], [0.5, 0.5], 0.25, 0.25),  # cannot tell
        ([2.0, 1.0], [0.0, -2.0], 1.25, 5.0),  # too far is as wrong as too near
    ],
)
def test_losses_by_hand(real, painted, judge, painter):
    real, painted = torch.tensor(real), torch.tensor(painted)
    assert float(discriminator_loss(real, painted)) == pytest.approx(judge)
    assert float(generator_loss(painted)) == pytest.approx(painter)


def test_gradients_in_float64():
    real, painted = (
        torch.randn(2, 2, 3, 3, generator=generator(seed), dtype=torch.float64, requires_grad=True) for seed in (0, 1)
    )
    assert torch.autograd.gradcheck(discriminator_loss, (real, painted))
    assert torch.autograd.gradcheck(generator_loss, (painted,))


def both(points=5, size=64):
    torch.manual_seed(0)
    return Discriminators(points, size)


def inputs(n=2, k=5, size=64, seed=0):
    faces, look = (torch.rand(n, 3, size, size, generator=generator(seed + i)) for i in (0, 1))
    return faces, look, torch.rand(n, k, 8, 8, generator=generator(seed + 2))


def test_a_verdict_for_every_patch_of_both():
    assert PatchDiscriminator(4)(torch.zeros(2, 4, 64, 64)).shape == (2, 1, 8, 8)
    assert both()(*inputs()).shape == (2, 2, 8, 8)


def test_one_judges_the_look_the_other_the_pose():
    """What each must not know moves it not a bit; what it is there for does."""
    model = both()
    faces, look, maps = inputs()
    verdicts = model(faces, look, maps)
    other_look, other_pose = model(faces, look.flip(0), maps), model(faces, look, maps.flip(1))
    assert torch.equal(other_look[:, 1], verdicts[:, 1])
    assert not torch.allclose(other_look[:, 0], verdicts[:, 0], atol=1e-4)
    assert torch.equal(other_pose[:, 0], verdicts[:, 0])
    assert not torch.allclose(other_pose[:, 1], verdicts[:, 1], atol=1e-4)


def test_every_parameter_learns():
    model = both()
    model(*inputs()).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_it_learns_to_tell_real_from_painted():
    model, (real, look, maps) = both(), inputs()
    painted = torch.nn.functional.avg_pool2d(real, 5, stride=1, padding=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = float(discriminator_loss(model(real, look, maps), model(painted, look, maps)).detach())
    for _ in range(40):
        optimizer.zero_grad()
        loss = discriminator_loss(model(real, look, maps), model(painted, look, maps))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 < before
    for judge in (0, 1):
        assert (
            float(model(real, look, maps)[:, judge].mean()) > float(model(painted, look, maps)[:, judge].mean()) + 0.5
        )
