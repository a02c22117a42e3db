"""3x3 convolutions by Winograd against those of PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d, max_pool2d

from veilmark.ppidsg.networks import Extractor, Generator, WideConvolution
from veilmark.ppidsg.winograd import LARGEST_SIDE, convolve, from_pixels, largest_of_four, normalise, to_pixels


@settings(deadline=None)
@given(st.integers(1, LARGEST_SIDE), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_equals_the_direct_convolution(side, n, c, k, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, side, side, generator=draw)
    weight = torch.randn(k, c, 3, 3, generator=draw)
    made = from_pixels(convolve(to_pixels(x), weight, side), side)
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


@pytest.mark.parametrize("side", [16, 28, 32])
def test_the_extractor_is_the_same_either_way(side):
    torch.manual_seed(0)
    fast, plain = Extractor(3), Extractor(3).double()
    plain.load_state_dict(fast.state_dict())
    x = torch.rand(2, 3, side, side) * 2 - 1
    outputs = fast(x), plain(x.double())
    torch.testing.assert_close(outputs[0].double(), outputs[1], atol=1e-3, rtol=1e-3)
    for output in outputs:
        output.square().sum().backward()
    for (name, one), other in zip(fast.encoder.named_parameters(), plain.encoder.parameters(), strict=True):
        assert (one.grad.double() - other.grad).norm() / other.grad.norm() < 2e-2, name


def test_layers_are_called_where_somebody_listens():
    """Opacus takes gradients of single examples from hooks; a short cut around a layer would lose them."""
    network, heard = Extractor(1), []
    for layer in network.encoder:
        layer.register_forward_hook(lambda module, entered, left: heard.append(module))
    network(torch.zeros(1, 1, 16, 16))
    assert heard == list(network.encoder)


@pytest.mark.parametrize("side", [2, 6, 14])
def test_the_largest_of_four(side):
    x = torch.randn(2, 3, side, side, requires_grad=True)
    wanted, made = max_pool2d(x, 2), from_pixels(largest_of_four(to_pixels(x), side), side // 2)
    assert torch.equal(made, wanted)
    weights = torch.randn_like(wanted)
    (one,), (other,) = (torch.autograd.grad((y * weights).sum(), x) for y in (made, wanted))
    assert torch.equal(one, other)


def test_equal_pixels_share_one_gradient():
    x = torch.zeros(4, 1, 1, requires_grad=True)
    largest_of_four(x, 2).sum().backward()
    assert x.grad.sum() == 1


@pytest.mark.parametrize("side", [3, 5])
def test_slopes_and_slopes_of_slopes(side):
    """Attacks on gradients differentiate through them."""
    x = torch.randn(side**2, 1, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def made(x, weight):
        return convolve(x, weight, side).sin()

    assert torch.autograd.gradcheck(made, (x, weight))
    assert torch.autograd.gradgradcheck(made, (x, weight))


def test_slopes_of_slopes_of_the_largest():
    x = torch.randn(16, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: largest_of_four(x, 4).sin(), (x,))
