"""Pictures as sums of cosine waves."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from veilmark.audit.waves import FALL, Waves


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
