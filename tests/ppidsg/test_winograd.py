"""3x3 convolutions by Winograd against those of PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d

from veilmark.ppidsg.networks import Generator, WideConvolution
from veilmark.ppidsg.winograd import LARGEST_SIDE, convolve, from_pixels, normalise, to_pixels, transforms_of


@settings(deadline=None)
@given(st.integers(1, LARGEST_SIDE), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_equals_the_direct_convolution(side, n, c, k, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, side, side, generator=draw)
    weight = torch.randn(k, c, 3, 3, generator=draw)
    made = from_pixels(convolve(to_pixels(x), weight, transforms_of(side)), side)
    torch.testing.assert_close(made, conv2d(x, weight, padding=1), atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_pixels_and_back(side, n, c, seed):
    x = torch.randn(n, c, side, side, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(from_pixels(to_pixels(x), side), x)


def test_normalises_each_picture_and_channel():
    norm = nn.GroupNorm(5, 5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = torch.randn(3, 5, 7, 7)
    torch.testing.assert_close(from_pixels(normalise(to_pixels(x), norm), 7), norm(x), atol=1e-5, rtol=1e-5)


def test_a_wide_convolution_is_a_convolution():
    layer = WideConvolution(4, 2, 7, padding=3)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(layer(x), conv2d(x, layer.weight, layer.bias, padding=3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [16, 28, 32])
@pytest.mark.parametrize("skip", [True, False])
def test_the_generator_is_the_same_either_way(side, skip):
    """Its pictures, and the gradients of its weights; float64 takes the layers one by one."""
    torch.manual_seed(0)
    fast = Generator(1, skip=skip)
    plain = Generator(1, skip=skip).double()
    plain.load_state_dict(fast.state_dict())
    x = torch.rand(2, 1, side, side) * 2 - 1
    outputs = fast(x), plain(x.double())
    torch.testing.assert_close(outputs[0].double(), outputs[1], atol=1e-3, rtol=1e-3)
    for output in outputs:
        output.square().sum().backward()
    for (name, one), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        apart = (one.grad.double() - other.grad).norm() / other.grad.norm()
        # Rounding tips some ReLUs over, in float32 by direct convolutions as well.
        assert apart < 2e-2, name


def test_slopes_of_slopes():
    """Attacks on gradients differentiate through them."""
    transforms = transforms_of(3)
    double = type(transforms)(
        transforms.tiles, *(t.double() for t in (transforms.entering, transforms.leaving, transforms.kernel))
    )
    x = torch.randn(9, 1, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: convolve(x, w, double).sin(), (x, weight))
