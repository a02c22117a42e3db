"""The joint step: who learns from what, what counts, and what each weight switches off."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from veilmark.sht.dhln import DHLN, DHLNOutput, Stage
from veilmark.sht.discriminators import Discriminators
from veilmark.sht.fptn import FPTN
from veilmark.sht.joint import (
    SHT,
    JointBatch,
    JointLoss,
    JointWeights,
    add_pseudo_labels,
    confident,
    structural_dissimilarity,
)
from veilmark.sht.losses import Batch, DHLNLoss, Weights

SIZE = 64
ALL = {"confident": 10.0}
"""Every pair counts: an untrained network is sure of nothing."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth(n, seed=0):
    coarse = torch.rand(n, 3, 8, 8, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)


def batch(n, seed, labelled=True):
    target = smooth(n, seed)
    grid = torch.nn.functional.avg_pool2d(target, 4)
    grid = torch.nn.functional.interpolate(grid, (SIZE, SIZE), mode="bicubic")
    points = torch.rand(n, 68, 2, generator=generator(seed + 1)) * 40 + 12 if labelled else torch.zeros(n, 68, 2)
    return Batch(grid, target, points, torch.full((n,), labelled), torch.ones(n, dtype=torch.bool))


def joint_batch(labelled=2, pairs=2):
    return JointBatch(batch(labelled, 1), batch(2 * pairs, 5, labelled=False))


def network(stir=True, sure=True):
    torch.manual_seed(0)
    dhln = DHLN(size=SIZE, structure_widths=(16, 32, 32), detail_widths=(16, 32), painter_width=16)
    model = SHT(dhln, FPTN(size=SIZE, channels=16, blocks=2, painter_width=16))
    with torch.no_grad():
        if stir:
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(3)))
        dhln.trust.weight.zero_()
        dhln.trust.bias.fill_(5.0 if sure else -5.0)
    return model


def loss_of(**weights):
    torch.manual_seed(1)
    return JointLoss(
        DHLNLoss(Weights(), "ibug68", SIZE, 4), JointWeights(**{**ALL, **weights}), Discriminators(68, SIZE)
    )


# Who learns


def test_transfer_teaches_the_points_of_b_and_not_those_of_a():
    """Seen where they enter FPTN: the points of A carry no graph, those of B and the look of A do."""
    model, seen = network(), {}

    def watch(module, arguments):
        seen["faces"], seen["source"], seen["target"] = arguments
        for entering in (seen["faces"], seen["target"]):
            entering.retain_grad()

    model.fptn.register_forward_pre_hook(watch)
    output = model(*joint_batch().inputs)
    assert not seen["source"].requires_grad
    assert not output.maps.requires_grad
    output.transfer.face.square().mean().backward()
    assert float(seen["target"].grad.abs().sum(dim=2).min()) > 0
    assert float(seen["faces"].grad.abs().sum()) > 0
    torch.testing.assert_close(seen["source"], output.pairs.points[:2].detach())
    torch.testing.assert_close(seen["target"], output.pairs.points[2:])


def test_a_goes_before_b_and_labelled_faces_before_both():
    model, both = network().eval(), joint_batch(labelled=3, pairs=2)
    with torch.no_grad():
        output = model(*both.inputs)
        labelled, pairs = model.dhln(both.labelled.grid), model.dhln(both.pairs.grid)
        painted = model.fptn(pairs.face[:2].clamp(0, 1), pairs.points[:2], pairs.points[2:])
    torch.testing.assert_close(output.labelled.points, labelled.points, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(output.pairs.points, pairs.points, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(output.transfer.face, painted.face, rtol=0, atol=2e-3)


def test_b_enters_through_its_points_alone():
    """Heatmaps of another look with the same expectation paint the same face: nothing else gets through."""
    model, both = network().eval(), joint_batch(pairs=2)
    other = both.pairs.grid.clone()
    with torch.no_grad():
        before = model(*both.inputs)
        decode = model.dhln.forward

        def same_points(faces, hallucinate=True):
            said = decode(faces, hallucinate)
            last = said.stages[-1]
            points = torch.cat([last.points[:-2], before.pairs.points[2:]])
            return DHLNOutput([*said.stages[:-1], Stage(last.logits, points, last.spread, last.face)], *said[1:])

        model.dhln.forward = same_points
        other[2:] = other[2:].flip(1)
        after = model(both.labelled.grid, other)
    assert not torch.allclose(after.pairs.stages[-1].logits[2:], before.pairs.stages[-1].logits[2:], atol=1e-3)
    torch.testing.assert_close(after.transfer.face, before.transfer.face, rtol=0, atol=1e-3)


def test_the_labelled_batch_counts_in_full_in_every_step():
    model, both, loss = network(), joint_batch(), loss_of()
    losses = loss(model(*both.inputs), both)
    base = loss.dhln(model(*both.inputs).labelled, both.labelled)
    for name, value in base.parts.items():
        torch.testing.assert_close(losses.parts[name], value)
    without = loss_of(transfer=0, hallucination=0)
    torch.testing.assert_close(without(model(*both.inputs), both).total, base.total)


def test_the_total_is_the_weighted_sum():
    model, both = network(), joint_batch()
    weights = {"transfer": 0.3, "structure": 0.5, "adversarial": 0.02, "hallucination": 0.7}
    loss = loss_of(**weights)
    output = model(*both.inputs)
    losses, base = loss(output, both), loss.dhln(output.labelled, both.labelled)
    face = loss.dhln.parts(output.pairs, both.pairs)["face"]
    parts = losses.parts
    transfer = (parts["transfer"] + 0.5 * parts["structure"] + 0.02 * parts["adversarial"]) / 0.05
    expected = base.total + 0.3 * transfer + 0.7 * loss.dhln.weights.face * face
    torch.testing.assert_close(losses.total, expected)


def test_the_pixels_of_transfer_are_those_of_the_real_b():
    model, both, loss = network(), joint_batch(), loss_of()
    output = model(*both.inputs)
    expected = (output.transfer.face - both.pairs.target[2:]).abs().mean()
    torch.testing.assert_close(loss(output, both).parts["transfer"], expected.detach())


def touched(model, losses):
    losses.total.backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(
    ("weights", "missing"),
    [
        ({}, {"teacher"}),
        ({"adversarial": 0}, {"teacher", "adversarial"}),
        ({"teacher": 0.5}, set()),
    ],
)
def test_a_weight_of_zero_switches_its_part_off(weights, missing):
    model, both = network(), joint_batch()
    losses = loss_of(**weights)(model(*both.inputs), both)
    assert {"teacher", "adversarial"} - set(losses.parts) == missing


def test_without_transfer_fptn_learns_nothing():
    model, both = network(), joint_batch()
    assert touched(model, loss_of(transfer=0)(model(*both.inputs), both)) == {"dhln"}
    model = network()
    assert touched(model, loss_of()(model(*both.inputs), both)) == {"dhln", "fptn"}


def test_the_painter_does_not_teach_its_judges():
    model, both, loss = network(), joint_batch(), loss_of()
    loss(model(*both.inputs), both).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in loss.network.parameters())
    assert all(p.requires_grad for p in loss.network.parameters())
    model.zero_grad()
    loss.loss(loss.network, model(*both.inputs), both).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.network.parameters())


# The gate


def answer(error, trust):
    """What a network with these expected errors (shares of the side) and trust logits says."""
    n = len(error)
    claims = torch.tensor(error)[:, None].expand(n, 68) * SIZE
    return DHLNOutput([], claims, torch.tensor(trust))


@pytest.mark.parametrize(
    ("error", "trust", "sure"),
    [
        (0.03, 2.0, True),
        (0.05, 2.0, False),  # too large an error
        (0.03, -0.1, False),  # probably no face
        (0.0399, 0.1, True),  # just within both
    ],
)
def test_confidence_needs_trust_and_a_small_error(error, trust, sure):
    assert bool(confident(answer([error], [trust]), SIZE, 0.04)) == sure


def test_unsure_pairs_do_not_count():
    model, both, loss = network(), joint_batch(pairs=2), loss_of(confident=0.04)

    def losses(errors):
        output = model(*both.inputs)
        pairs = DHLNOutput(output.pairs.stages, answer(errors, [3.0] * 4).expected_error, torch.full((4,), 3.0))
        return loss(output._replace(pairs=pairs), both), output

    sure, output = losses([0.01] * 4)
    each = (output.transfer.face - both.pairs.target[2:]).abs().mean(dim=(1, 2, 3)).detach()
    torch.testing.assert_close(sure.parts["transfer"], each.mean())
    # Either face of a pair is enough to leave it out.
    for unsure in ([0.09, 0.01, 0.01, 0.01], [0.01, 0.01, 0.09, 0.01]):
        some, _ = losses(unsure)
        torch.testing.assert_close(some.parts["transfer"], each[1])
        assert float(some.parts["confident"]) == 0.5
    none, _ = losses([0.09] * 4)
    assert float(none.parts["transfer"]) == float(none.parts["structure"]) == float(none.parts["confident"]) == 0
    assert bool(none.total.isfinite())


def test_pseudo_labels_come_only_where_the_teacher_is_sure():
    both = joint_batch(pairs=2)
    sure = add_pseudo_labels(network(), both, 10.0)
    with torch.no_grad():
        said = network().dhln(both.pairs.target, hallucinate=False)
    assert bool(sure.pairs.labelled.all())
    torch.testing.assert_close(sure.pairs.points, said.points)
    assert not sure.pairs.points.requires_grad
    assert sure.labelled is both.labelled
    assert not bool(add_pseudo_labels(network(sure=False), both, 10.0).pairs.labelled.any())
    assert not bool(add_pseudo_labels(network(), both, 1e-6).pairs.labelled.any())


def test_pseudo_labels_teach_where_they_count():
    model, both = network(), joint_batch(pairs=1)
    loss = loss_of(teacher=1.0)
    plain = loss(model(*both.inputs), both)
    taught = loss(model(*both.inputs), add_pseudo_labels(network(stir=False), both, 10.0))
    assert float(plain.parts["teacher"]) == 0
    assert float(taught.parts["teacher"]) > 0
    torch.testing.assert_close(taught.total - plain.total, taught.parts["teacher"])


# Its parts


def test_structural_dissimilarity_is_that_of_scikit_image():
    """Over the whole picture, its border too: scikit-image's own mean leaves five pixels out on each side."""
    faces, truth = smooth(3), (smooth(3, 8) * 0.5 + smooth(3) * 0.5)
    expected = [
        structural_similarity(
            a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), data_range=1.0, channel_axis=2,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
        )[1].mean()
        for a, b in zip(faces, truth, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(structural_dissimilarity(faces, truth), (1 - np.array(expected)) / 2, atol=3e-4)
    torch.testing.assert_close(structural_dissimilarity(faces, faces), torch.zeros(3), atol=1e-5, rtol=0)


def test_every_parameter_learns():
    """All but the trust of the pairs' network, and what nothing reads (see FPTN)."""
    model, both = network(), joint_batch()
    loss_of()(model(*both.inputs), both).total.backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    idle = [name for name, p in trained if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_a_network_without_a_detail_stream_is_refused():
    dhln = DHLN(size=SIZE, structure_widths=(16, 32, 32), detail=False)
    with pytest.raises(ValueError, match="no detail stream"):
        SHT(dhln, FPTN(size=SIZE, channels=16, painter_width=16))(*joint_batch().inputs)


def test_one_joint_batch_can_be_learned_by_heart():
    model, both = network(stir=False), joint_batch()
    loss = loss_of(adversarial=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(50):
        optimizer.zero_grad()
        losses = loss(model(*both.inputs), both)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append({name: float(value) for name, value in losses.parts.items()})
    assert history[-1]["points"] < 0.5 * history[0]["points"]
    assert history[-1]["transfer"] < 0.7 * history[0]["transfer"]
