"""Membership with shadow federations: members of overfitted networks are found, and none of one that saw nobody."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_federations import config, play
from veilmark.audit import shadows as trained
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.record import read_record
from veilmark.audit.shadow_membership import MembershipByLiRA, MembershipByPredictions
from veilmark.audit.shadows import questions, shadows_of
from veilmark.federation.tasks.classify import load_classify, without_owner
from veilmark.run.local_training import batches

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
    return {attack: attack(federations=6).findings(scene) for attack in ATTACKS}


@pytest.mark.parametrize("attack", ATTACKS)
def test_members_known_by_heart_are_found(found, attack):
    lines = found[attack]
    assert [line.rung for line in lines] == [
        "a network of the server's is the target, and knows its pictures by heart",
        "a client of a shadow federation is the target",
        REAL,
    ]
    assert lines[0].value > 70
    assert all(line.positive_control == lines[0].value for line in lines)
    # Members: 30 of each of 8 networks, 20 of each of 6 clients, 20 of each of 2.
    assert [line.n for line in lines] == [240, 120, 40]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_network_that_saw_nobody_gives_nobody_away(found, attack):
    assert abs(found[attack][-1].negative_control - 50) < 14


def test_shadows_are_trained_once_for_both(scene, found, monkeypatch):
    monkeypatch.setattr(trained, "_by_heart", lambda *words: 1 / 0)
    assert MembershipByLiRA(federations=6).findings(scene) == found[MembershipByLiRA]
    with pytest.raises(ZeroDivisionError):
        MembershipByLiRA(federations=9).findings(scene)


def test_shadows_divide_the_pool(scene, found):
    asked = questions(scene)
    by_heart, shadows = shadows_of(scene, asked, 6)
    assert (by_heart.learned[::2] == ~by_heart.learned[1::2]).all()
    assert (by_heart.unseen == ~by_heart.learned).all()
    size = len(asked.pool)
    assert shadows.learned.shape == shadows.unseen.shape == (12, size)
    assert shadows.pool.shape == (12, size, 10)
    assert shadows.group.tolist() == 6 * [0] + 6 * [1]
    assert shadows.first.tolist() == [0, 2, 4, 6, 8, 10]
    for group in (0, 1):
        # One picture in three at a time, once by one client; and unseen where its federation has not learned it.
        assert (shadows.learned[shadows.group == group].sum(axis=0) == 1).all()
        assert (shadows.unseen[shadows.group == group].sum(axis=0) == 4).all()
    assert not (shadows.learned & shadows.unseen).any()
    with pytest.raises(ValueError, match="in threes"):
        shadows_of(scene, asked, 7)


def test_a_small_pool_is_learned_two_thirds_at_a_time(scene, monkeypatch):
    """And what a client has less of the pool than clients have is public pictures."""
    monkeypatch.setattr(trained, "MOST_STRANGERS", 8)
    monkeypatch.setattr(trained, "MOST_MEMBERS", 10)
    monkeypatch.setattr(trained, "federation_of", lambda scene, owners, number: seen.append(owners) or [start, start])
    start = scene.record.rounds[0].broadcast
    seen = []
    asked = questions(scene)
    shadows = trained._played(scene, asked, 6)
    assert (shadows.learned.sum(axis=0) == 4).all()
    assert (shadows.unseen.sum(axis=0) == 4).all()
    pool, public = {*asked.pool.names}, {*asked.public.names}
    for owners in seen:
        assert [len(owner) for owner in owners] == [20, 20]
        assert [len(pool & {*owner.names}) for owner in owners] == [6, 6]
        assert all({*owner.names} <= pool | public for owner in owners)


def test_whose_a_picture_is_decides_what_it_may_be_used_for(scene):
    """Members and strangers are asked about, public pictures are not."""
    owned = [{*owner.names} for owner in scene.truth.owners]
    for truth in (scene.truth, Truth(scene.truth.owners)):
        asked = questions(replace(scene, truth=truth))
        names = np.array(asked.pool.names, dtype=object)
        assert len({*names}) == len(names) == 40 + (80 if truth.strangers else 60)
        assert {client: len(rows) for client, rows in asked.owners.items()} == {0: 20, 1: 20}
        assert all({*names[rows]} <= owned[client] for client, rows in asked.owners.items())
        assert not {*names[asked.strangers]} & (owned[0] | owned[1])
        assert not {*asked.public.names} & {*names}


def test_a_shadow_of_the_very_pictures_is_the_run(scene):
    """Played with the clients' own pictures and seed, a shadow's clients send what the run's clients sent."""
    sent = [update.tensors for update in scene.record.rounds[-1].updates.values()]
    apart = []
    for seed in (scene.record.config.seed, 77):
        made = trained.federation_of(scene, scene.truth.owners, 0, seed).sent
        pairs = [(one[name], value) for one, all_of in zip(made, sent, strict=True) for name, value in all_of.items()]
        apart.append(sum(float((one - value).abs().sum()) for one, value in pairs))
    # Where clients learn side by side, sums are taken in another order.
    assert apart[0] < 0.01 * apart[1]


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
    """Twenty pictures in batches of eight are three steps a round."""
    config = scene.record.config
    longer = replace(scene.record, config=config.model_copy(update={"rounds": 9}))
    played = []
    monkeypatch.setattr(trained, "MOST_STEPS", 7)
    steps = len(batches(20, config.training, 0, 0, 0))
    trained.federation_of(replace(scene, record=longer, advance=lambda: played.append(1)), scene.truth.owners, 0)
    assert len(played) == max(1, 7 // steps) < 9


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
    assert (said[0].learned != said[2].learned).any()
