"""What entered a linear layer, out of its gradients; and the decoder that makes pictures of it."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from veilmark.audit.feature_inversion import layer_inputs, train_feature_decoder
from veilmark.ppidsg.networks import Extractor


def gradients_of(examples):
    torch.manual_seed(0)
    layer = nn.Linear(12, 5).to(examples.dtype)
    cross_entropy(layer(examples), torch.arange(len(examples)) % 5).backward()
    return layer.weight.grad, layer.bias.grad


def test_one_example_is_read_exactly():
    example = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(layer_inputs(*gradients_of(example)), example[0])


def test_of_two_examples_a_mixture_is_read():
    examples = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    found = layer_inputs(*gradients_of(examples))
    assert all((found - example).abs().max() > 0.01 for example in examples)
    # It lies in their span.
    shares = torch.linalg.lstsq(examples.T, found[:, None]).solution
    torch.testing.assert_close((examples.T @ shares)[:, 0], found, atol=1e-4, rtol=1e-4)


def test_a_decoder_learns_the_way_back():
    torch.manual_seed(0)
    pictures = torch.rand(6, 1, 16, 16) * 2 - 1
    encoder = Extractor(1).encoder
    errors = []
    for steps in (1, 40):
        decoder = train_feature_decoder(encoder, pictures, steps=steps, batch=6)
        with torch.no_grad():
            errors.append(float((decoder(encoder(pictures)) - pictures).square().mean()))
    assert errors[1] < 0.7 * errors[0]
