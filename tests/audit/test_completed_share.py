"""Membership behind a share: what is missing is learned, then asked; a share that knows pictures gives them away."""

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tiny_federations import config, play
from veilmark.audit import completed_share
from veilmark.audit.attack import REAL, Scene
from veilmark.audit.audits import _truth
from veilmark.audit.completed_share import MembershipByClient, MembershipByServer
from veilmark.audit.record import read_record
from veilmark.ppidsg.client_training import to_unit

REPAIRED = {"options__ppidsg__generator_lr": 1e-3, "options__ppidsg__extractor": "fixed"}
SHARES = {
    "none": {"method": "none"},
    "F only": {"method": "none", "options__none__share": ["extractor"]},
    "C only": {"method": "none", "options__none__share": ["classifier"]},
    "ppidsg": {"method": "ppidsg", **REPAIRED},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def scene_of(path, strangers=None, **changes):
    run = play(path, config(**{"rounds": 2, "data__test": 60, "data__head_widths": [64, 32], **changes}))
    record = read_record(run.path / "transcript")
    truth, public = _truth(record, run.path, None, None)
    if truth.strangers is not None and strangers:
        truth = replace(truth, strangers=completed_share._rows(truth.strangers, range(strangers)))
    return Scene(record, public, truth)


@pytest.mark.parametrize("share", SHARES)
def test_a_share_that_knows_pictures_gives_them_away(tmp_path, share, monkeypatch):
    # To ask a generator about a thousand strangers takes most of a minute, and so does a whole extractor's training.
    few = 100 if share == "ppidsg" else None
    if share == "C only":
        monkeypatch.setattr(completed_share, "STEPS", 20)
    scene = scene_of(tmp_path / "run", few, **SHARES[share])
    found = MembershipByClient().findings(scene)
    areas = [line for line in found if line.metric == "area under the curve"]
    control, real = areas
    assert control.low > 50
    assert control.value > 65
    assert real.rung == REAL
    assert real.positive_control == control.value
    # The attacker's own eight pictures are not asked about.
    assert real.n == 8
    # The start, or an end of noise, knows nobody: 8 members, so anything about a half, but not a half by ties.
    assert 20 < real.negative_control < 80
    assert real.negative_control != 50
    assert real.threat_model == "curious client"
    rates = [line for line in found if line.metric == "members found at 1 % false alarms"]
    assert [(line.rung, line.chance) for line in rates] == ([] if few else [(REAL, 1)])


@pytest.mark.parametrize("share", ["F only", "C only", "ppidsg"])
def test_a_server_learns_what_is_missing_in_public(tmp_path, share, monkeypatch):
    if share == "C only":
        monkeypatch.setattr(completed_share, "STEPS", 20)
    scene = scene_of(tmp_path / "run", 100, **SHARES[share], data__test=120)
    # No secret is read: there is none.
    found = MembershipByServer().findings(replace(scene, truth=replace(scene.truth, first=None)))
    control, real = found
    assert control.low > 50
    assert control.value > 65
    assert (real.rung, real.threat_model) == (REAL, "honest-but-curious server")
    assert real.positive_control == control.value
    # Nobody among the clients is the attacker: all sixteen pictures are asked about.
    assert real.n == 16
    assert 25 < real.negative_control < 75


@pytest.mark.parametrize("classes", [[3], [3, 7], [0, 3, 7]])
def test_a_linear_head_is_that_of_scikit_learn_whatever_classes_it_has_seen(tmp_path, classes):
    scene = scene_of(tmp_path / "run", method="none", data__test=60)
    rows = torch.nonzero(torch.isin(scene.public.targets, torch.tensor(classes))).flatten().numpy()
    own = completed_share._rows(scene.public, rows)
    network = completed_share.with_linear_head(scene, torch.nn.Identity(), own)
    logits = network(to_unit(own.inputs)).detach()
    seen = torch.isin(torch.arange(10), torch.tensor(classes))
    assert (logits[:, ~seen] == completed_share.NEVER).all()
    if len(classes) > 1:
        x = to_unit(own.inputs).flatten(1)
        x = x / x.square().mean().sqrt()
        model = LogisticRegression(C=completed_share.RIDGE, max_iter=1000).fit(x.numpy(), own.targets.numpy())
        expected = torch.from_numpy(model.predict_proba(x.numpy())).float()
        torch.testing.assert_close(logits[:, seen].softmax(dim=1), expected, rtol=1e-3, atol=1e-4)


def test_a_server_asks_a_whole_classifier_as_it_is(tmp_path):
    run = play(tmp_path / "run", config(rounds=1, method="none"))
    assert "nothing to learn" in MembershipByServer().obstacle(read_record(run.path / "transcript"))


def test_where_nothing_is_released_there_is_nothing_to_complete(tmp_path):
    run = play(tmp_path / "run", config(rounds=1, method="local"))
    assert "nothing is released" in MembershipByClient().obstacle(read_record(run.path / "transcript"))


def test_what_is_shared_stays_as_it_was_released(tmp_path):
    scene = scene_of(tmp_path / "run", **SHARES["F only"])
    share = scene.record.rounds[-1].broadcast
    before = {name: value.clone() for name, value in share.items()}
    attack = MembershipByClient()
    completed = attack._begun(scene, share, scene.truth.owners[0], 1)().state_dict()
    assert all(torch.equal(completed[name], value) for name, value in before.items())
    fresh = completed_share._classifier(scene, share, 1)[0].state_dict()
    head = "classifier.layers.1.weight"
    assert not torch.equal(completed[head], fresh[head])
    overfit = attack._overfit(scene, share, scene.public)
    assert any(not torch.equal(overfit[name], before[name]) for name in before)
    assert all(torch.equal(share[name], before[name]) for name in before)


def test_ties_are_half_a_hit(tmp_path):
    scene = scene_of(tmp_path / "run", **SHARES["none"])
    pair = torch.tensor([1.0, 2.0]).numpy(), torch.tensor([1.0, 0.0]).numpy()
    (area,) = MembershipByClient()._scored(scene, REAL, [pair])
    assert area.value == pytest.approx(87.5)
    assert area.n == 2
