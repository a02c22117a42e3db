"""Membership with shadow networks: members of overfitted ones are found, and none of a network that saw nobody."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from tiny_federations import config, play
from veilmark.audit import shadows as trained
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.membership import membership_score
from veilmark.audit.record import read_record
from veilmark.audit.shadow_membership import MembershipByLiRA, MembershipByPredictions, lira_offline
from veilmark.audit.shadows import questions, shadows_of
from veilmark.federation.tasks.classify import load_classify, without_owner

ATTACKS = (MembershipByLiRA, MembershipByPredictions)


def read(run):
    record = read_record(run.path / "transcript")
    task, owners, _, _ = load_classify(record.config.data, None, record.config.clients, record.config.seed)
    strangers = without_owner(record.config.data, None, owners, 200)
    return Scene(record, task.test, Truth(owners, strangers=strangers))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = config(method="none", rounds=1, data__test=120, data__per_client=20, data__head_widths=[64, 32])
    return read(play(tmp_path_factory.mktemp("shadows") / "run", made))


@pytest.fixture(scope="module")
def found(scene):
    return {attack: attack(shadows=6).findings(scene) for attack in ATTACKS}


@pytest.mark.parametrize("attack", ATTACKS)
def test_members_known_by_heart_are_found(found, attack):
    lines = found[attack]
    assert [line.rung for line in lines] == [
        "a shadow is the target, and knows its pictures by heart", "a shadow is the target", REAL,
    ]  # fmt: skip
    assert lines[0].value > 70
    assert all(line.positive_control == lines[0].value for line in lines)
    assert [line.n for line in lines] == [6, 6, 2]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_network_that_saw_nobody_gives_nobody_away(found, attack):
    assert abs(found[attack][-1].negative_control - 50) < 14


def test_shadows_are_trained_once_for_both(scene, found, monkeypatch):
    monkeypatch.setattr(trained, "_trained", lambda *words: 1 / 0)
    assert MembershipByLiRA(shadows=6).findings(scene) == found[MembershipByLiRA]
    with pytest.raises(ZeroDivisionError):
        MembershipByLiRA(shadows=8).findings(scene)


def test_couples_learn_complementary_halves(scene, found):
    asked = questions(scene)
    by_heart, shadows = shadows_of(scene, asked, 6)
    for some in (by_heart, shadows):
        assert (some.member[::2] == ~some.member[1::2]).all()
        assert (some.member.sum(axis=0) == 3).all()
        assert (some.member.sum(axis=1) == some.member.shape[1] // 2).all()
    assert shadows.pool.shape == (6, len(asked.pool), 10)
    assert asked.strangers.names == scene.truth.strangers.names
    assert not set(asked.strangers.names) & {name for owner in scene.truth.owners for name in owner.names}
    alone = questions(replace(scene, truth=Truth(scene.truth.owners)))
    assert not set(alone.pool.names) & set(alone.strangers.names)
    assert {client: len(own) for client, own in asked.owners.items()} == {0: 20, 1: 20}
    with pytest.raises(ValueError, match="couples"):
        shadows_of(scene, asked, 7)


def test_the_offline_ratio_by_hand():
    without = np.array([[0.0, 5.0], [2.0, 5.0]])
    spread = np.sqrt(0.5 + 1e-9)
    expected = -np.log(1 - norm.cdf([(3 - 1) / spread, (4 - 5) / spread]))
    np.testing.assert_allclose(lira_offline(np.array([3.0, 4.0]), without), expected)
    with pytest.raises(ValueError, match="needs two"):
        lira_offline(np.array([3.0, 4.0]), without[:1])


def test_offline_finds_what_stands_out():
    """Positive: members are more confident than shadows are. Negative: an asked network like any shadow."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 3, 400)
    shadows = hard + rng.normal(size=(8, 400))
    like = hard + rng.normal(size=400)
    learned = like + 2 * (np.arange(400) < 200)
    for asked, least, most in ((learned, 0.85, 1), (like, 0.43, 0.57)):
        scores = lira_offline(asked, shadows)
        assert least < membership_score(scores[:200], scores[200:], draws=2).auc.value <= most


def test_few_false_alarms_are_measured_where_there_are_enough_strangers(scene):
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(3, 1, 500), rng.normal(size=1000)) for _ in range(3)]
    found = MembershipByLiRA()._scored(scene, "r", pairs)
    assert [line.metric for line in found] == ["area under the curve", "members found at 1 % false alarms"]
    assert found[1].value > 60
    assert found[1].chance == 1
    few = [(members, strangers[:999]) for members, strangers in pairs]
    assert len(MembershipByLiRA()._scored(scene, "r", few)) == 1


def test_a_shadow_learns_no_longer_than_is_allowed(scene, monkeypatch):
    steps = []
    monkeypatch.setattr(trained, "MOST_STEPS", 3)
    monkeypatch.setattr(trained, "_step", lambda *words: steps.append(1))
    trained._learn_as_the_run(scene, torch.nn.Linear(1, 1), scene.public, 0)
    assert len(steps) == 3


def test_obstacles(scene, tmp_path):
    part = config(method="none", rounds=1, options__none__share=["classifier"])
    record = read(play(tmp_path / "run", part)).record
    for attack in ATTACKS:
        assert attack().obstacle(scene.record) is None
        assert "does not travel" in attack().obstacle(record)


def test_shadows_depend_on_the_seed_only(scene, monkeypatch):
    monkeypatch.setattr(trained, "KNOWN_STEPS", 1)
    monkeypatch.setattr(trained, "MOST_STEPS", 1)
    said = []
    for seed in (0, 0, 1):
        anew = replace(scene, record=replace(scene.record), seed=seed)
        said.append(shadows_of(anew, questions(anew), 6)[1])
    assert torch.equal(said[0].pool, said[1].pool)
    assert (said[0].member != said[2].member).any()
