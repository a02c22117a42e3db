import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.landmarks.heatmaps import gaussian_maps
from veilmark.sht.dhln import DHLN
from veilmark.sht.losses import (
    Batch,
    DHLNLoss,
    Weights,
    claim_loss,
    heatmap_cross_entropy,
    pixel_loss,
    point_distance,
)

SMALL = {"size": 64, "structure_widths": (16, 32, 32), "detail_widths": (16, 32)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_point_distance_is_pseudo_huber():
    a, b = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), torch.zeros(1, 2, 2)
    expected = [math.sqrt(25 + 1 / 16) - 0.25, 0.0]
    np.testing.assert_allclose(point_distance(a, b)[0], expected, rtol=1e-6)


@given(st.floats(0.01, 50), st.floats(0, 6.28))
@settings(max_examples=30, deadline=None)
def test_point_distance_is_within_a_quarter_pixel_of_the_distance(length, angle):
    point = torch.tensor([[[length * math.cos(angle), length * math.sin(angle)]]], dtype=torch.float64)
    value = float(point_distance(point, torch.zeros_like(point)))
    assert length - 0.25 <= value + 1e-9 <= length + 1e-9


def test_heatmap_cross_entropy_against_numpy():
    logits = torch.randn(2, 3, 5, 5, generator=generator(), dtype=torch.float64)
    target = torch.rand(2, 3, 5, 5, generator=generator(1), dtype=torch.float64)
    target = target / target.sum(dim=(2, 3), keepdim=True)
    e = np.exp(logits.numpy())
    probability = e / e.sum(axis=(2, 3), keepdims=True)
    expected = -(target.numpy() * np.log(probability)).sum(axis=(2, 3))
    np.testing.assert_allclose(heatmap_cross_entropy(logits, target), expected, rtol=1e-10)


def test_heatmap_cross_entropy_is_least_at_the_target():
    target = gaussian_maps(torch.tensor([[[20.0, 30.0]]]), 16, 4.0, 4.0)
    at_target = heatmap_cross_entropy(target.log(), target)
    entropy = -(target * target.log()).sum()
    torch.testing.assert_close(at_target.squeeze(), entropy)
    assert heatmap_cross_entropy(target.log() + torch.randn(target.shape, generator=generator()), target) > at_target


def test_pixel_loss_is_negative_psnr():
    face, target = torch.rand(2, 3, 8, 8, generator=generator()), torch.rand(2, 3, 8, 8, generator=generator(1))
    mse = ((face - target) ** 2).numpy().reshape(2, -1).mean(axis=1)
    psnr = 10 * np.log10(1.0 / (mse + 1e-4))
    np.testing.assert_allclose(pixel_loss(face, target, 40), -psnr, rtol=1e-5)
    torch.testing.assert_close(pixel_loss(face, face, 40), torch.full((2,), -40.0))


@given(st.lists(st.floats(0.05, 20), min_size=3, max_size=40))
@settings(max_examples=40, deadline=None)
def test_claim_loss_is_least_at_the_mean_distance(distances):
    distance = torch.tensor(distances, dtype=torch.float64)
    mean = distance.mean()
    at_mean = claim_loss(mean, distance).mean()
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert claim_loss(mean * factor, distance).mean() > at_mean


@pytest.mark.parametrize(
    "function",
    [
        lambda x: point_distance(x[..., 0], torch.zeros(2, 3, 2, dtype=x.dtype)),
        lambda x: heatmap_cross_entropy(x, torch.full_like(x, 1 / x[0, 0].numel()).detach()),
        lambda x: pixel_loss(x, torch.zeros_like(x), 30),
        lambda x: claim_loss(x.square() + 0.5, torch.ones_like(x)),
    ],
    ids=["point_distance", "heatmap_cross_entropy", "pixel_loss", "claim_loss"],
)
def test_gradients_in_float64(function):
    x = torch.randn(2, 3, 2, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,))


def batch(n=3, size=64, k=68, seed=0):
    points = torch.rand(n, k, 2, generator=generator(seed)) * size
    faces = torch.rand(n, 3, size, size, generator=generator(seed + 1))
    yes = torch.ones(n, dtype=torch.bool)
    return Batch(faces, faces.flip(1), points, yes, yes.clone())


def loss_of(model, weights=None):
    return DHLNLoss(weights or Weights(), model.scheme, model.size, model.map_stride)


def test_a_face_without_labels_counts_in_the_hallucination_only():
    torch.manual_seed(0)
    model, whole = DHLN(**SMALL), batch()
    output = model(whole.grid)
    unlabelled = Batch(whole.grid, whole.target, whole.points * 0, torch.zeros(3, dtype=torch.bool), whole.is_face)
    labelled, without = loss_of(model)(output, whole).parts, loss_of(model)(output, unlabelled).parts
    assert without["points"] == 0
    assert without["heatmaps"] == 0
    assert without["claim"] == 0
    torch.testing.assert_close(without["face"], labelled["face"])


def test_what_is_no_face_counts_in_trust_only():
    torch.manual_seed(0)
    model, whole = DHLN(**SMALL), batch()
    output = model(whole.grid)
    nothing = Batch(whole.grid, whole.target, whole.points, whole.labelled, torch.zeros(3, dtype=torch.bool))
    losses = loss_of(model)(output, nothing)
    assert [losses.parts[name] for name in ("points", "heatmaps", "face", "claim")] == [0, 0, 0, 0]
    expected = np.log1p(np.exp(output.trust_logit.detach().numpy())).mean()
    assert float(losses.parts["trust"]) == pytest.approx(expected, rel=1e-5)


def test_the_total_is_the_weighted_sum():
    torch.manual_seed(0)
    model, whole = DHLN(**SMALL), batch()
    weights = Weights(points=2, heatmaps=0.5, face=3, claim=0.25, trust=1.5)
    losses = loss_of(model, weights)(model(whole.grid), whole)
    expected = sum(getattr(weights, name) * value for name, value in losses.parts.items())
    torch.testing.assert_close(losses.total.detach(), expected)


def test_every_stage_is_supervised():
    torch.manual_seed(0)
    model, whole = DHLN(**SMALL), batch()
    output = model(whole.grid)
    for stage in output.stages:
        stage.logits.retain_grad()
        stage.face.retain_grad()
    loss_of(model)(output, whole).total.backward()
    assert all(float(s.logits.grad.abs().sum()) > 0 and float(s.face.grad.abs().sum()) > 0 for s in output.stages)


def test_one_batch_can_be_learned_by_heart():
    """The most basic sign that network, losses and optimiser fit together."""
    torch.manual_seed(0)
    model, whole = DHLN(**SMALL), batch(2)
    # Faces that can be told apart and painted: smooth pictures, targets a little sharper.
    smooth = torch.nn.functional.interpolate(whole.grid[:, :, :8, :8], (64, 64), mode="bicubic")
    points = torch.rand(2, 68, 2, generator=generator(3)) * 40 + 12
    whole = Batch(smooth, (smooth * 1.5 - 0.2).clamp(0, 1), points, whole.labelled, whole.is_face)
    loss, optimizer = loss_of(model), torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        optimizer.zero_grad()
        losses = loss(model(whole.grid), whole)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    output = model(whole.grid)
    assert float((output.points - points).norm(dim=2).mean()) < 1.5
    assert (
        float(pixel_loss(output.face, whole.target, 40).mean()) < float(pixel_loss(smooth, whole.target, 40).mean()) - 4
    )
