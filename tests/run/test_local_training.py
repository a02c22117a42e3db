"""One owner's training by rounds: orders and learning rates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from veilmark.run.local_training import Training, batches, rate, sgd, sgd_weight


@pytest.mark.parametrize(
    ("examples", "batch", "local", "epochs", "sizes"),
    [(8, 4, 0, 1, [4, 4]), (7, 4, 0, 2, [4, 3, 4, 3]), (8, 2, 1, 1, [2]), (3, 2, 3, 1, [2, 1, 2])],
)
def test_steps_of_a_round(examples, batch, local, epochs, sizes):
    training = Training(batch=batch, local_steps=local, epochs=epochs)
    rows = batches(examples, training, 0, 0, 0)
    assert [len(some) for some in rows] == sizes
    whole = -(-examples // batch)
    if len(rows) >= whole:
        assert sorted(torch.cat(rows[:whole]).tolist()) == list(range(examples))


def test_orders_belong_to_seed_client_and_round():
    orders = {
        tuple(torch.cat(batches(20, Training(), *who)).tolist()) for who in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    }
    assert len(orders) == 4
    assert torch.equal(*(torch.cat(batches(20, Training(), 0, 1, 2)) for _ in range(2)))


def test_learning_rates_fall_in_a_line_after_the_given_round():
    assert [rate(r, 50, 20) for r in (0, 19, 20, 35, 49)] == [1.0, 1.0, 1.0, 0.5, pytest.approx(1 / 30)]
    assert rate(50, 50, 20) == rate(60, 50, 20) == 0.0
    assert [rate(r, 10, 20) for r in range(10)] == [1.0] * 10


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0, 0.95))
def test_sgd_weight_is_what_sgd_does(steps, momentum):
    made = nn.Linear(1, 1, bias=False)
    before = float(made.weight.detach())
    optimizer = sgd(made, Training(lr=0.01, momentum=momentum, weight_decay=0), 1.0)
    for _ in range(steps):
        made.weight.grad = torch.ones(1, 1)
        optimizer.step()
    assert (before - float(made.weight.detach())) / 0.01 == pytest.approx(sgd_weight(steps, momentum), rel=2e-3)
