"""Membership with shadow federations: members of overfitted networks are found, and none of one that saw nobody."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_federations import config, play
from veilmark.audit import shadows as trained
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.record import read_record
from veilmark.audit.shadow_membership import MembershipByLiRA, MembershipByPredictions
from veilmark.audit.shadows import questions, shadows_of, whole_classifiers
from veilmark.audit.shadows_behind_share import MembershipByLiRABehindShare
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
    by_heart, shadows = shadows_of(scene, asked, 6, whole_classifiers(scene))
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
        shadows_of(scene, asked, 7, whole_classifiers(scene))


def test_a_small_pool_is_learned_two_thirds_at_a_time(scene, monkeypatch):
    """And what a client has less of the pool than clients have is public pictures."""
    monkeypatch.setattr(trained, "MOST_STRANGERS", 8)
    monkeypatch.setattr(trained, "MOST_MEMBERS", 10)

    def played(scene, owners, number, seed):
        seen.append(owners)
        return trained.Federation([], start, [start, start])

    monkeypatch.setattr(trained, "federation_of", played)
    start = scene.record.rounds[0].broadcast
    seen = []
    asked = questions(scene)
    shadows = trained._played(scene, asked, 6, whole_classifiers(scene))
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
    behind = MembershipByLiRABehindShare()
    assert "a whole classifier travels" in behind.obstacle(scene.record)
    assert behind.obstacle(record) is None
    alone = read(play(tmp_path / "alone", config(method="local", rounds=1))).record
    assert "nothing of a classifier travels" in behind.obstacle(alone)


def sharing(part, folder):
    made = config(method="none", rounds=3, data__test=240, data__per_client=20, data__head_widths=[64, 32])
    return read(play(folder / "run", made.model_copy(update={"options": {"none": {"share": [part]}}})))


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    """Extractors travel; the server learns heads."""
    return sharing("extractor", tmp_path_factory.mktemp("behind"))


def test_behind_a_share_members_known_by_heart_are_found_and_none_of_a_share_that_saw_nobody(behind):
    lines = MembershipByLiRABehindShare(federations=6).findings(behind)
    assert [line.rung for line in lines] == [
        "a share of the server's is the target, and knows its pictures by heart",
        "a client of a shadow federation is the target",
        REAL,
    ]
    assert lines[0].value > 65
    assert all(line.positive_control == lines[0].value for line in lines)
    assert abs(lines[-1].negative_control - 50) < 14


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Heads travel; in front of them stands what the server's own clients keep."""
    return sharing("classifier", tmp_path_factory.mktemp("heads"))


def test_a_released_head_gives_away_whom_it_knows_by_heart(heads):
    lines = MembershipByLiRABehindShare(federations=6).findings(heads)
    assert lines[0].value > 65
    assert [line.positive_control for line in lines] == 3 * [lines[0].value]
    assert abs(lines[-1].negative_control - 50) < 14


def test_what_stands_in_front_of_a_head_moved_as_what_clients_keep(heads):
    """Other pictures, but the same start, method and rounds: the run's own extractors went the same way in part."""
    attack = MembershipByLiRABehindShare()
    asked = questions(heads)
    kept = attack._kept(heads, asked)
    start = heads.record.task.network(heads.record.config.seed).state_dict()
    assert kept.keys() == {name for name in start if name.startswith("extractor.")}
    assert kept.keys().isdisjoint(heads.record.start)
    clients = trained.federation_of(heads, heads.truth.owners, 0, heads.record.config.seed).clients

    def moved(end):
        return torch.cat([(end[name] - start[name]).flatten() for name in kept])

    for client in clients:
        assert torch.cosine_similarity(moved(kept), moved(client.state()), dim=0) > 0.1


def test_what_stands_beside_a_message_learns_nothing(heads):
    start = heads.record.task.network(heads.record.config.seed).state_dict()
    beside = {name: value + 1 for name, value in start.items() if name.startswith("extractor.")}
    how = whole_classifiers(heads, beside)
    assert how.seed == heads.record.config.seed
    assert whole_classifiers(heads).seed is None
    knowing = how.knowing(heads.truth.owners[0], 0).state_dict()
    for name, value in how.of(heads.record.start).state_dict().items():
        assert torch.equal(value, beside.get(name, heads.record.start.get(name)))
        assert torch.equal(value, knowing[name]) == (name in beside)


def test_heads_learn_what_no_shadow_learns(behind, monkeypatch):
    learned = []
    attack = MembershipByLiRABehindShare()
    asked, how = attack.asked(behind)
    module = importlib.import_module("veilmark.audit.shadows_behind_share")
    monkeypatch.setattr(module, "with_linear_head", lambda scene, front, own: learned.append({*own.names}))
    _, how = attack.asked(behind)
    how.of(behind.record.start)
    assert len(learned[0]) == len(asked.public) == 120
    assert not learned[0] & ({*asked.public.names} | {*asked.pool.names})


def test_a_generator_is_asked_behind_a_head_of_the_servers(tmp_path, monkeypatch):
    """Positive control on PPIDSG's own networks: a G that learned pictures by heart, and secrets of nobody."""
    for name, few in (("MOST_STEPS", 1), ("BY_HEART", 4), ("KNOWN", 40)):
        monkeypatch.setattr(trained, name, few)
    made = config(method="ppidsg", rounds=1, data__test=240)
    scene = read(play(tmp_path / "run", made))
    monkeypatch.setattr(trained, "_played", lambda *words: 1 / 0)
    attack = MembershipByLiRABehindShare(federations=6)
    asked, how = attack.asked(scene)
    known = trained._by_heart(scene, asked.public, how)
    labels = asked.public.targets[:40]
    areas = []
    for target in known.first:
        others = np.flatnonzero(known.group != known.group[target])
        given = attack.scores(known, others, known.pool[[target]], labels, 0)[0]
        members, strangers = given[known.learned[target]], given[~known.learned[target]]
        areas.append((members[:, None] > strangers).mean())
    assert np.mean(areas) > 0.6


def test_shadows_depend_on_the_seed_only(scene, monkeypatch):
    monkeypatch.setattr(trained, "KNOWN_STEPS", 1)
    monkeypatch.setattr(trained, "MOST_STEPS", 1)
    said = []
    for seed in (0, 0, 1):
        anew = replace(scene, record=replace(scene.record), seed=seed)
        said.append(shadows_of(anew, questions(anew), 6, whole_classifiers(anew))[1])
    assert torch.equal(said[0].pool, said[1].pool)
    assert (said[0].learned != said[2].learned).any()
