"""Class mixes out of a generator: what is read, the regression behind it, and the attack on a client that it rehearsed."""

import numpy as np
import pytest
import torch

from tiny_federations import config, play
from veilmark.audit import class_mix
from veilmark.audit.audits import ATTACKS, audit_run
from veilmark.audit.class_counts import label_score, prior_counts
from veilmark.audit.class_mix import ClassMix, MixRegression, reading


def test_a_class_that_moved_stands_out():
    labels = torch.arange(3).repeat_interleave(4)
    before = torch.randn(12, 50, generator=torch.Generator().manual_seed(0))
    after = before + 0.01
    after[labels == 1] += 0.5
    read = reading(before, after, labels, 3)
    assert read.shape == (3, 4)
    np.testing.assert_allclose(read.mean(axis=0), 0, atol=1e-9)
    assert read[:, 0].argmax() == 1
    assert read[:, 2].argmax() == 1


def test_a_class_without_a_picture_is_read_as_all_of_them():
    labels = torch.tensor([0, 0, 2, 2])
    before = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    read = reading(before, before + 0.1, labels, 3)
    assert np.isfinite(read).all()
    # The mean of all pictures is at no distance from the mean of all classes' means, here.
    assert read[1, 1] == read[:, 1].min()


def rehearsals(count, seed, slope):
    """Readings that follow class shares by a slope, amid noise, and each class from a level of its own."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(5), size=count)
    level = np.random.default_rng(99).normal(size=(5, 4))
    return slope * shares[..., None] + level + 0.05 * rng.normal(size=(count, 5, 4)), shares


@pytest.mark.parametrize(("slope", "learned"), [(1.0, True), (0.0, False)])
def test_the_regression_counts_where_readings_tell_and_only_there(slope, learned):
    readings, shares = rehearsals(24, 0, slope)
    regression = MixRegression(readings, shares)
    ours, chance = [], []
    for read, share in zip(*rehearsals(40, 1, slope), strict=True):
        have = np.random.default_rng(2).multinomial(100, share)
        ours.append(label_score(regression.counts(read, 100), have).l1)
        chance.append(label_score(prior_counts(100, 5), have).l1)
    assert (np.mean(ours) < 0.5 * np.mean(chance)) == learned
    assert np.mean(ours) < 1.15 * np.mean(chance)


def test_counts_of_a_rehearsal_are_of_the_classes_that_are_there():
    labels = np.array([0] * 3 + [2] * 40)
    for seed in range(5):
        rows = class_mix.drawn(labels, 64, 0.3, np.random.default_rng(seed))
        assert len(rows) == 64
        assert set(labels[rows]) <= {0, 2}


def test_what_a_known_client_learned_is_read_out(tmp_path, monkeypatch):
    """The positive control, small: a step of few classes with all known; noise in its place tells nothing."""
    made = config(method="ppidsg", rounds=1, data__test=200, training__batch=16, training__epochs=1)
    run = play(tmp_path / "run", made).path
    scene_stage = class_mix._Stage(1, 16, True, class_mix.SKEWED, 8, 6)
    scores = {}

    def findings(self, scene):
        asked, learned, held = class_mix._parts(scene)
        seen = class_mix._rehearsed(scene, scene_stage, asked, learned, scene_stage.learned, 0)
        tried = class_mix._rehearsed(scene, scene_stage, asked, held, scene_stage.held, 1)
        regression = MixRegression(seen.readings, seen.counts / seen.counts.sum(axis=1, keepdims=True))
        for name, readings in (("seen", tried.readings), ("noise", tried.noise)):
            scores[name] = np.mean([score.l1 for score in class_mix._scored(regression, readings, tried.counts)])
        scores["chance"] = np.mean([label_score(prior_counts(16, 10), have).l1 for have in tried.counts])
        return []

    monkeypatch.setattr(ClassMix, "findings", findings)
    audit_run(run, None, tmp_path / "out", without=set(ATTACKS) - {ClassMix.name})
    assert scores["seen"] < 0.75 * scores["chance"]
    assert scores["noise"] > 0.85 * scores["chance"]


def test_a_client_without_a_travelling_generator_is_no_target(tmp_path):
    run = play(tmp_path / "run", config(method="none", rounds=1)).path
    summary = audit_run(run, None, tmp_path / "out", without=ATTACKS)
    assert "no generator travels" in summary["obstacles"][ClassMix.name]
