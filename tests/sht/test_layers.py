"""The layers of SHT."""

import pytest
import torch
from torch import nn

from veilmark.sht.layers import Norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_norm_learns_behind_frozen_layers(layout):
    """PyTorch's own GroupNorm ends the process where channels lie last."""
    torch.manual_seed(0)
    ours, theirs = Norm(32), nn.GroupNorm(2, 32)
    x = torch.randn(2, 32, 5, 5)
    ours(x.to(memory_format=layout)).square().sum().backward()
    theirs(x.clone().requires_grad_()).square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert ours.num_groups == 2
