"""ATS: transforms are pure, policies are read, scores are the formulas, and it learns."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from pydantic import ValidationError
from torch import nn

from veilmark.federation.messages import check_update
from veilmark.federation.methods.ats import (
    ATSOptions,
    TransformedTraining,
    accuracy_score,
    privacy_score,
    search_policy,
    transform_all,
)
from veilmark.federation.transforms import LIBRARY, OPERATIONS, as_policy, transformed
from veilmark.run.errors import ConfigError

EVERY = [f"{name}:{level}" for name, op in OPERATIONS.items() if op.strength for level in (0, 4, 9)]
EVERY += [name for name, op in OPERATIONS.items() if not op.strength]


def method(**options):
    return TransformedTraining(ATSOptions(**options))


def play(bench, how, rounds=1, server=None, first=0):
    server = server or bench.server(how)
    for round_number in range(first, rounds):
        updates = {}
        for number in range(len(bench.owners)):
            updates[number] = bench.client(how, number).train_round(server.broadcast(), round_number)
        server.combine({n: check_update(update, server.declared(), 1000) for n, update in updates.items()})
    return server, updates


def noise(channels, seed=0, side=16):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (channels, side, side), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transform", EVERY)
def test_a_transform_keeps_shape_and_type_and_depends_on_nothing_else(transform, channels):
    picture = noise(channels, side=32)
    # From black to white, so that nothing is left for autocontrast to do.
    picture[:, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    before = picture.clone()
    first, again = (transformed(picture, (transform,), np.random.default_rng(3)) for _ in range(2))
    assert first.shape == picture.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert torch.equal(picture, before)
    changes_nothing = transform.endswith(":0") or (channels == 1 and transform.startswith("color"))
    assert torch.equal(first, picture) == (changes_nothing or transform == "autocontrast")


def test_single_transforms_against_numpy():
    picture = noise(1)
    values = picture.numpy()
    one = np.random.default_rng(0)
    assert np.array_equal(transformed(picture, ("invert",), one).numpy(), 255 - values)
    assert np.array_equal(transformed(picture, ("posterize:9",), one).numpy(), values & 0xF0)
    # The threshold falls from 256 to 0 in nine steps.
    cut = round(256 - 4 * 256 / 9)
    assert np.array_equal(
        transformed(picture, ("solarize:4",), one).numpy(), np.where(values < cut, values, 255 - values)
    )
    bright = np.clip(np.trunc(values * 1.5), 0, 255)
    dark = np.trunc(values * 0.5)
    drawn = [transformed(picture, ("brightness:9",), np.random.default_rng(seed)).numpy() for seed in range(8)]
    assert all(np.abs(d - bright).max() <= 1 or np.abs(d - dark).max() <= 1 for d in drawn)
    assert len({d.tobytes() for d in drawn}) == 2
    equal = np.asarray(ImageOps.equalize(Image.fromarray(values[0])))
    assert np.array_equal(transformed(picture, ("equalize",), one).numpy()[0], equal)


def test_shifts_go_both_ways_and_uncover_black():
    picture = torch.full((1, 16, 16), 200, dtype=torch.uint8)
    shift = round(16 * 150 / 331)
    ways = set()
    for seed in range(8):
        moved = transformed(picture, ("translate_x:9",), np.random.default_rng(seed))[0]
        empty = (moved == 0).all(dim=0)
        assert int(empty.sum()) == shift
        ways.add(bool(empty[0]))
    assert ways == {True, False}
    assert 128 in transformed(picture, ("rotate:9",), np.random.default_rng(0)).unique().tolist()


def test_policies_by_number_are_those_of_the_paper():
    assert len(LIBRARY) == 50
    assert as_policy((3, 1, 7)) == ("translate_x:9", "contrast:6", "translate_y:2")
    assert as_policy((43, 18, 18)) == ("translate_y:3", "contrast:7", "contrast:7")
    assert ATSOptions(policies=[[3, 1, 7], ["invert"]]).policies == (as_policy((3, 1, 7)), ("invert",))
    assert ATSOptions().policies == (as_policy((43, 18, 18)),)
    assert as_policy(LIBRARY) == LIBRARY


def test_a_policy_is_applied_in_order_and_an_empty_one_changes_nothing():
    picture = noise(3)
    assert torch.equal(transformed(picture, (), np.random.default_rng(0)), picture)
    both = transformed(picture, ("invert", "solarize:9"), np.random.default_rng(0))
    assert torch.equal(both, picture)
    step = transformed(picture, ("posterize:9",), np.random.default_rng(0))
    assert torch.equal(
        transformed(picture, ("posterize:9", "invert"), np.random.default_rng(0)),
        transformed(step, ("invert",), np.random.default_rng(0)),
    )


def test_a_hybrid_draws_one_policy_for_each_picture():
    pictures = torch.stack([noise(1, seed) for seed in range(40)])
    out = transform_all(pictures, [(), ("invert",)], 0, 1)
    same = [torch.equal(a, b) for a, b in zip(out, pictures, strict=True)]
    turned = [torch.equal(a, 255 - b) for a, b in zip(out, pictures, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 8 < sum(same) < 32
    assert torch.equal(out, transform_all(pictures, [(), ("invert",)], 0, 1))
    assert not torch.equal(out, transform_all(pictures, [(), ("invert",)], 0, 2))
    assert torch.equal(out[:5], transform_all(pictures[:5], [(), ("invert",)], 0, 1))


def test_clients_train_on_transformed_pictures_and_test_on_untouched_ones(bench):
    one, how = bench(), method(policies=[["invert"]])
    client = one.client(how, 1)
    assert torch.equal(client.learner.data.inputs, 255 - one.owners[1].inputs)
    seen = []
    client.learner.model.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    client.predict(one.server(how).broadcast(), one.task.test_inputs)
    assert torch.equal(torch.cat(seen), one.task.test_inputs.float() / 127.5 - 1)
    assert not how.personal


class Toy(nn.Module):
    """``W2 tanh(W1 x)``, whose gradients are written by hand below."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(5, 16, generator=generator) / 4)
        self.second = nn.Parameter(torch.randn(3, 5, generator=generator))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.first.T) @ self.second.T


def by_hand(net, x, label):
    first, second = (w.detach().double().numpy() for w in (net.first, net.second))
    hidden = np.tanh(first @ x)
    logits = second @ hidden
    error = np.exp(logits - logits.max())
    error = error / error.sum() - np.eye(3)[label]
    back = (second.T @ error) * (1 - hidden**2)
    return np.concatenate([np.outer(back, x).ravel(), np.outer(error, hidden).ravel()])


def test_the_privacy_score_is_its_formula():
    net = Toy()
    pictures = torch.stack([noise(1, seed, 4) for seed in range(3)])
    labels = torch.tensor([0, 1, 2])
    starts = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    cosines = []
    for picture, label, start in zip(pictures.numpy(), labels.numpy(), starts.double().numpy(), strict=True):
        x, x0 = picture.ravel() / 127.5 - 1, start.ravel()
        aim = by_hand(net, x, label)
        for j in range(5):
            there = by_hand(net, (1 - j / 5) * x0 + j / 5 * x, label)
            cosines.append(there @ aim / np.linalg.norm(there) / np.linalg.norm(aim))
    assert privacy_score(net, pictures, labels, starts, 5) == pytest.approx(np.mean(cosines), rel=1e-4)


def test_the_accuracy_score_is_its_formula():
    net = Toy()
    pictures = torch.stack([noise(1, seed, 4) for seed in range(6)])
    first, second = (w.detach().double().numpy() for w in (net.first, net.second))
    rows = []
    for picture in pictures.numpy():
        hidden = np.tanh(first @ (picture.ravel() / 127.5 - 1))
        rows.append((second.sum(axis=0) * (1 - hidden**2)) @ first)
    values = np.linalg.svd(np.corrcoef(rows), compute_uv=False)
    expected = -sum(np.log(v + 1e-5) + 1 / (v + 1e-5) for v in values) / 6
    # The smallest eigenvalues are near 0, where 1 / v magnifies float32.
    assert accuracy_score(net, pictures) == pytest.approx(expected, rel=0.01)


def test_the_search_keeps_accurate_policies_the_most_private_first(bench):
    one = bench()
    net, own = one.task.network(0), one.owners[0]
    scored = {"candidates": 6, "scored": 2, "steps": 3}
    every = search_policy(net, net, own.inputs, own.targets, np.random.default_rng(0), least_accuracy=-1e9, **scored)
    assert [c.privacy for c in every] == sorted(c.privacy for c in every)
    assert all(len(c.policy) <= 3 for c in every)
    middle = sorted(c.accuracy for c in every)[2]
    some = search_policy(net, net, own.inputs, own.targets, np.random.default_rng(0), least_accuracy=middle, **scored)
    assert some == [c for c in every if c.accuracy >= middle]
    with pytest.raises(ConfigError, match="lower it to that"):
        search_policy(net, net, own.inputs, own.targets, np.random.default_rng(0), least_accuracy=0.0, **scored)


def test_an_update_is_the_whole_classifier_and_a_resumed_run_equals_an_unbroken_one(bench):
    one, how = bench(), method()
    unbroken, updates = play(one, how, rounds=2)
    assert set(updates[0].tensors) == set(one.task.network(0).state_dict())
    half, _ = play(one, how, rounds=1)
    server = one.server(how)
    server.load_state({k: v.clone() for k, v in half.state().items()})
    resumed, _ = play(one, how, 2, server, first=1)
    assert all(torch.equal(value, unbroken.broadcast()[name]) for name, value in resumed.broadcast().items())


def test_it_learns(bench):
    one, how = bench(images=24, epochs=6, lr=0.01), method()
    server, _ = play(one, how, rounds=2)
    answers = one.client(how).predict(server.broadcast(), one.task.test_inputs)
    assert (answers == one.task.test.targets).float().mean() > 0.8


def test_wrong_policies_are_refused():
    for policies, words in [
        ([], "at least one"),
        ([[50]], "0 to 49"),
        ([["blur:1"]], "no transform"),
        ([["rotate"]], "level from 0 to 9"),
        ([["rotate:10"]], "level from 0 to 9"),
        ([["invert:3"]], "has no level"),
    ]:
        with pytest.raises(ValidationError, match=words):
            method(policies=policies)
