"""Pictures as sums of cosine waves."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from veilmark.audit.waves import FALL, LikelyPictures, Waves, principal_axes


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (5, 12)])
def test_there_and_back(height, width):
    waves, x = Waves(height, width), torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(waves.picture(waves.numbers(x)), x, atol=1e-5, rtol=0)


def test_numbers_are_scipys_transform_over_the_usual_amplitude():
    x = torch.rand(1, 1, 6, 9, generator=torch.Generator().manual_seed(0))
    ratio = dctn(x[0, 0].numpy(), norm="ortho") / Waves(6, 9).numbers(x)[0, 0].numpy()
    frequency = np.hypot(np.arange(6)[:, None], np.arange(9))
    np.testing.assert_allclose(ratio / ratio[0, 0], (1 + frequency) ** -FALL, rtol=1e-3)
    # Numbers of spread 1 make pictures of spread 1.
    assert (ratio**2).mean() == pytest.approx(1, rel=1e-3)


def pictures(count, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_components_are_those_of_the_covariance_two_deviations_long():
    public = pictures(30)
    mean, axes = principal_axes(public)
    flat = public.flatten(1) - mean
    covariance = flat.T @ flat / len(public)
    lengths = axes.norm(dim=1)
    np.testing.assert_allclose((lengths / 2).square(), torch.linalg.eigvalsh(covariance).flip(0)[:30], atol=1e-4)
    across = axes[:29] @ axes[:29].T
    torch.testing.assert_close(across, torch.diag(across.diagonal()), atol=1e-3, rtol=0)


def test_likely_pictures_are_the_mean_and_what_public_ones_have_in_common_and_waves():
    public = pictures(30)
    likely = LikelyPictures(public)
    assert likely.size((2, 3, 8, 8)) == (2, 3 * 64 + 30)
    nothing = torch.zeros(2, 3 * 64 + 30)
    torch.testing.assert_close(likely.picture(nothing), public.mean(dim=0).expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    mean, axes = principal_axes(public)
    common = nothing.clone()
    common[:, 192:] = (public[:2].flatten(1) - mean) @ (axes / axes.square().sum(dim=1, keepdim=True).clamp(1e-6)).T
    torch.testing.assert_close(likely.picture(common), public[:2], atol=1e-3, rtol=0)
    # Whatever public pictures are like, waves reach any other.
    fine = nothing.clone()
    fine[0, 0] = 1.0
    assert float((likely.picture(fine)[0] - public.mean(dim=0)).abs().max()) > 0.01
