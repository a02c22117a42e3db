"""Pairs for training: drawn from (seed, epoch, place) alone, A and B in one light and one mirror."""

import numpy as np
import pytest
import torch

from veilmark.faces.datasets import load_faces
from veilmark.sht.joint_samples import JointSamples, PairConfig
from veilmark.sht.protocol import prepare_faces
from veilmark.sht.samples import SampleConfig, TrainingFaces

STILL = {"rotation": 0, "zoom": 0, "shift": 0, "mirror": False, "colour": 0, "cover": 0}


@pytest.fixture(scope="module")
def cache(synthetic_ytf68, tmp_path_factory):
    faces = load_faces("ytf68", synthetic_ytf68, "train").labelled
    return prepare_faces(faces, tmp_path_factory.mktemp("cache"), "train", 64)


def samples(cache, kind="video", per_step=2, seed=3, **config):
    labelled = TrainingFaces(cache, SampleConfig.model_validate(config), "ibug68", 64, seed)
    return JointSamples(labelled, [cache], PairConfig(kind=kind, per_step=per_step))


def same(one, other):
    parts = [(a, b) for x, y in ((one.labelled, other.labelled), (one.pairs, other.pairs)) for a, b in zip(vars(x).values(), vars(y).values(), strict=True)]  # fmt: skip
    return all((a is None and b is None) or torch.equal(a, b) for a, b in parts)


def test_a_step_is_drawn_from_seed_epoch_and_number_alone(cache):
    first = samples(cache)
    wanted = first.step(1, 2, 2)
    again = samples(cache)
    for epoch, number in [(0, 0), (2, 3), (1, 0)]:  # other steps in between change nothing
        again.step(epoch, number, 2)
    assert same(again.step(1, 2, 2), wanted)
    for other in (first.step(1, 1, 2), first.step(2, 2, 2), samples(cache, seed=4).step(1, 2, 2)):
        assert not torch.equal(other.pairs.grid, wanted.pairs.grid)


def test_the_shares_of_two_processes_are_the_whole_batch(cache):
    whole = samples(cache).step(1, 0, 4)
    shares = [samples(cache).step(1, 0, 4, rank, 2) for rank in (0, 1)]
    for name in ("grid", "target", "points", "labelled", "is_face"):
        labelled = [getattr(share.labelled, name) for share in shares]
        assert torch.equal(torch.stack(labelled, dim=1).flatten(0, 1), getattr(whole.labelled, name)), name
        # Each has one A and one B.
        (a0, b0), (a1, b1) = (getattr(share.pairs, name) for share in shares)
        assert torch.equal(torch.stack([a0, a1, b0, b1]), getattr(whole.pairs, name)), name


def test_the_labels_of_the_pairs_are_not_looked_at(cache):
    pairs = samples(cache).step(0, 0, 2).pairs
    assert not pairs.labelled.any()
    assert not pairs.points.any()
    assert bool(pairs.is_face.all())


def test_a_goes_before_b_and_both_are_of_one_video(cache):
    drawn = samples(cache, augmentation=STILL, per_step=8, sizes=(64, 64))
    batch, pairs = drawn.step(0, 0, 2), drawn.pairs(0)
    for place, (a, b) in enumerate(pairs):
        assert a != b
        assert drawn.faces[a].person == drawn.faces[b].person
        assert drawn.faces[a].video == drawn.faces[b].video
        for row, number in ((place, a), (8 + place, b)):
            _, crop = drawn.labelled.config, cache[number]
            from_cache = TrainingFaces(cache, SampleConfig(no_face=0, augmentation=STILL), "ibug68", 64, 0)
            target = from_cache.batch(0, np.array([number])).target[0]
            torch.testing.assert_close(batch.pairs.target[row], target)
            assert crop.face is drawn.faces[number]


def test_every_face_gets_its_turn_within_an_epoch(cache):
    assert sorted(a for a, _ in samples(cache).pairs(0)) == list(range(8))
    assert samples(cache).pairs(0) != samples(cache).pairs(1)


def test_more_steps_than_pairs_start_over_with_other_draws(cache):
    drawn = samples(cache, per_step=8)
    assert not torch.equal(drawn.step(0, 0, 2).pairs.target, drawn.step(0, 1, 2).pairs.target)


# A person whose two frames are one picture: whatever differs between A and B then comes from the draw.


class OneFace(JointSamples):
    """Pairs of a face with itself, so that A and B may differ by the draw alone."""

    def pairs(self, epoch):
        return [(0, 0)]


def one_face(cache, **augmentation):
    config = SampleConfig.model_validate({"augmentation": {**STILL, **augmentation}, "sizes": (64, 64)})
    return OneFace(TrainingFaces(cache, config, "ibug68", 64, 3), [cache], PairConfig(per_step=12))


@pytest.mark.parametrize("augmentation", [{"colour": 1}, {"mirror": True}, {"colour": 2, "mirror": True}])
def test_a_and_b_have_one_light_and_one_mirror(cache, augmentation):
    a, b = one_face(cache, **augmentation).step(0, 0, 2).pairs.target.chunk(2)
    assert torch.equal(a, b)
    # The draws are not all the same one.
    assert len({face.numpy().tobytes() for face in a}) > 1


def test_about_half_of_the_pairs_are_mirrored(cache):
    drawn = one_face(cache, mirror=True)
    plain = one_face(cache).step(0, 0, 2).pairs.target[0]
    faces = torch.cat([drawn.step(0, number, 2).pairs.target.chunk(2)[0] for number in range(4)])
    mirrored = sum(torch.equal(face, plain.flip(2)) for face in faces)
    assert mirrored + sum(torch.equal(face, plain) for face in faces) == 48
    assert 10 < mirrored < 38


def test_crops_differ_between_a_and_b(cache):
    a, b = one_face(cache, rotation=10, zoom=0.1, shift=0.05).step(0, 0, 2).pairs.target.chunk(2)
    assert float((a - b).abs().mean(dim=(1, 2, 3)).min()) > 0.005


def test_b_of_a_warped_pair_is_a_warped_copy_of_a(cache):
    drawn = samples(cache, kind="warp", augmentation=STILL, sizes=(64, 64), per_step=8)
    a, b = drawn.step(0, 0, 2).pairs.target.chunk(2)
    shift = (a - b).abs().mean(dim=(1, 2, 3))
    others = (a - b.roll(1, 0)).abs().mean(dim=(1, 2, 3))
    assert bool((shift > 0.002).all())
    assert float(shift.mean()) < 0.6 * float(others.mean())
    assert all(one == two for one, two in drawn.pairs(0))


def test_pairs_are_degraded_to_the_sizes_asked_for(cache):
    batch = samples(cache, augmentation=STILL, sizes=(16, 16), per_step=4).step(0, 0, 2)
    lost = (batch.pairs.grid - batch.pairs.target).abs().mean(dim=(1, 2, 3))
    kept = samples(cache, augmentation=STILL, sizes=(64, 64), per_step=4).step(0, 0, 2)
    assert bool((lost > (kept.pairs.grid - kept.pairs.target).abs().mean(dim=(1, 2, 3))).all())
