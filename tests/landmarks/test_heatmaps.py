"""Heatmaps: decoding is exact in crop pixels, and targets decode to the points that they were made from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.landmarks.heatmaps import cell_centres, decode, gaussian_maps


@pytest.mark.parametrize(
    ("cells", "stride", "expected"),
    [
        (3, 1.0, [0.5, 1.5, 2.5]),  # one cell a pixel: pixel centres
        (2, 4.0, [2.0, 6.0]),  # cell 0 covers [0, 4)
        (2, 0.5, [0.25, 0.75]),  # finer than pixels
    ],
)
def test_cell_centres(cells: int, stride: float, expected: list[float]) -> None:
    centres = cell_centres(cells, stride, torch.zeros(1, dtype=torch.float64))
    assert centres.tolist() == expected
    assert centres.dtype == torch.float64


@pytest.mark.parametrize("stride", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3)])
def test_a_single_cell_decodes_to_its_centre(row: int, column: int, stride: float) -> None:
    logits = torch.zeros(1, 1, 5, 7)
    logits[0, 0, row, column] = 200.0
    points, spread, probability = decode(logits, stride)
    torch.testing.assert_close(points[0, 0], torch.tensor([(column + 0.5) * stride, (row + 0.5) * stride]))
    assert spread.item() < 0.01 * stride
    assert probability[0, 0, row, column] == 1


@pytest.mark.parametrize(("mean_x", "mean_y", "sigma"), [(30.0, 30.0, 3.0), (25.3, 41.8, 4.0), (33.1, 22.6, 5.5)])
@pytest.mark.parametrize("stride", [1.0, 2.0, 4.0])
def test_a_gaussian_decodes_to_its_mean_and_spread(mean_x: float, mean_y: float, sigma: float, stride: float) -> None:
    cells = round(64 / stride)
    centre = (torch.arange(cells) + 0.5) * stride
    squares = (centre[None, :] - mean_x).square() + (centre[:, None] - mean_y).square()
    points, spread, _ = decode((-squares / (2 * sigma**2))[None, None], stride)
    torch.testing.assert_close(points[0, 0], torch.tensor([mean_x, mean_y]), atol=0.05, rtol=0)
    # A variance of sigma squared along each of two axes.
    assert spread.item() == pytest.approx(math.sqrt(2) * sigma, rel=0.02)


@pytest.mark.parametrize(("h", "w", "stride"), [(32, 32, 4.0), (16, 24, 2.0), (1, 9, 1.0)])
def test_a_uniform_map_is_the_middle_with_the_spread_of_a_rectangle(h: int, w: int, stride: float) -> None:
    points, spread, probability = decode(torch.full((2, 3, h, w), -7.0), stride)
    torch.testing.assert_close(points, torch.tensor([w, h]).mul(stride / 2).expand(2, 3, 2))
    expected = stride * math.sqrt((h**2 - 1 + w**2 - 1) / 12)
    torch.testing.assert_close(spread, torch.full((2, 3), expected), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(probability.sum(dim=(2, 3)), torch.ones(2, 3))


def test_maps_are_decoded_one_by_one() -> None:
    logits = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    together = decode(logits, 2.0)
    for i in range(2):
        for j in range(3):
            alone = decode(logits[i : i + 1, j : j + 1], 2.0)
            for one, all_ in zip(alone, together, strict=True):
                torch.testing.assert_close(one[0, 0], all_[i, j])


def test_decoding_does_not_change_with_a_constant() -> None:
    logits = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one, other in zip(decode(logits, 2.0), decode(logits + 1000, 2.0), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (torch.bfloat16, torch.float32),  # 8 bits would cost a tenth of a pixel
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision(given: torch.dtype, used: torch.dtype) -> None:
    logits = gaussian_maps(torch.tensor([[[70.3, 41.9]]]), 64, 2.0, 8.0).clamp_min(1e-30).log().to(given)
    points, spread, probability = decode(logits, 2.0)
    assert {points.dtype, spread.dtype, probability.dtype} == {used}
    # Only the logits were rounded, never the coordinates.
    torch.testing.assert_close(decode(logits.double(), 2.0)[0], points.double(), atol=1e-4, rtol=0)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps: decode(maps, 4.0), (logits,))
    inside = 3 + 6 * torch.rand(2, 2, 2, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda points: gaussian_maps(points, 6, 2.0, 3.0), (inside.requires_grad_(),))


def test_a_certain_map_has_finite_gradients() -> None:
    # The root in the spread would divide by zero.
    logits = torch.zeros(1, 1, 4, 4)
    logits[..., 0, 0] = 500.0
    logits.requires_grad_()
    points, spread, _ = decode(logits, 4.0)
    (points.sum() + spread.sum()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@given(st.floats(-200, 300), st.floats(-200, 300), st.sampled_from([1.0, 2.0, 4.0]), st.floats(0.5, 40))
@settings(max_examples=40, deadline=None)
def test_targets_are_distributions_wherever_the_point_is(x: float, y: float, stride: float, sigma: float) -> None:
    maps = gaussian_maps(torch.tensor([[[x, y]]]), round(64 / stride), stride, sigma)
    assert maps.shape == (1, 1, round(64 / stride), round(64 / stride))
    assert maps.min() >= 0
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("x", "y", "row", "column"),
    [
        (-50.0, 9.0, 2, 0),  # left of the crop
        (500.0, 9.0, 2, 7),  # right of it
        (9.0, -1.0, 0, 2),  # above
        (9.0, 33.0, 7, 2),  # below
        (13.0, 22.9, 5, 3),  # inside: the cell that covers the point
    ],
)
def test_targets_peak_in_the_nearest_cell(x: float, y: float, row: int, column: int) -> None:
    maps = gaussian_maps(torch.tensor([[[x, y]]]), 8, 4.0, 3.0)
    assert divmod(int(maps.flatten().argmax()), 8) == (row, column)


@given(st.data(), st.sampled_from([(64, 2.0), (32, 4.0), (128, 1.0)]), st.floats(1.0, 2.5))
@settings(max_examples=40, deadline=None)
def test_targets_decode_to_their_points(data: st.DataObject, grid: tuple[int, float], sigma_in_cells: float) -> None:
    cells, stride = grid
    sigma = sigma_in_cells * stride
    inside = st.floats(6 * sigma, cells * stride - 6 * sigma)
    points = torch.tensor([[[data.draw(inside), data.draw(inside)] for _ in range(2)]], dtype=torch.float64)
    decoded, spread, _ = decode(gaussian_maps(points, cells, stride, sigma).log(), stride)
    torch.testing.assert_close(decoded, points, atol=1e-4, rtol=0)
    torch.testing.assert_close(spread, torch.full_like(spread, math.sqrt(2) * sigma), rtol=1e-3, atol=0)
