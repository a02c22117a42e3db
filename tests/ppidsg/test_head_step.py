"""C's own step of SGD against autograd and PyTorch's optimiser."""

import copy

import pytest
import torch

from veilmark.ppidsg.head_step import head_step
from veilmark.ppidsg.losses import class_loss
from veilmark.ppidsg.networks import Classifier
from veilmark.run.local_training import Training, sgd


@pytest.mark.parametrize("shares", [None, [0.4, 0.3, 0.2, 0.1, 0.0]])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_is_what_backward_and_sgd_do(momentum, shares):
    shares = None if shares is None else torch.tensor(shares, dtype=torch.float64)
    torch.manual_seed(0)
    plain = Classifier(12, 5, (9, 7)).double()
    ours = copy.deepcopy(plain)
    training = Training(lr=0.3, momentum=momentum, weight_decay=0.1)
    optimizers = [sgd(network, training, 0.5) for network in (plain, ours)]
    for _ in range(4):
        features = torch.randn(6, 3, 2, 2, dtype=torch.float64)
        labels = torch.randint(0, 4, (6,))
        watched = features.clone().requires_grad_()
        expected = plain(watched)
        loss = class_loss(expected, labels, shares)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        found, logits, slope = head_step(ours, optimizers[1], features, labels, shares)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(found, loss.detach())
        torch.testing.assert_close(slope, watched.grad, atol=1e-6, rtol=1e-5)
    for one, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
        assert other.grad is None


def test_its_momentum_is_the_optimisers():
    """What a client keeps between rounds is packed from the optimiser."""
    torch.manual_seed(0)
    classifier = Classifier(4, 3, (5, 5))
    optimizer = sgd(classifier, Training(), 1.0)
    head_step(classifier, optimizer, torch.randn(2, 4), torch.tensor([0, 2]))
    assert len(optimizer.state_dict()["state"]) == 6
    again = sgd(classifier, Training(), 1.0)
    again.load_state_dict(optimizer.state_dict())
    for parameter in classifier.parameters():
        assert torch.equal(again.state[parameter]["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"])
