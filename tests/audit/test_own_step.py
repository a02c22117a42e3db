"""The rung of the method's own client: the plain gradient where nothing is done to it, and what is sent where it is."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from tiny_federations import config, play
from veilmark.audit.attack import REAL, Scene
from veilmark.audit.audits import _truth
from veilmark.audit.feature_inversion import PicturesFromHead
from veilmark.audit.inversion_ladder import InversionOfClassifier
from veilmark.audit.label_inference import LabelCounts
from veilmark.audit.own_step import OWN_STEP, is_plain, own_step
from veilmark.audit.record import network_of, read_record
from veilmark.ppidsg.client_training import to_unit

METHODS = {
    "none": {"method": "none"},
    "C only": {"method": "none", "options__none__share": ["classifier"]},
    "gc": {"method": "gc"},
    "dp": {"method": "dp"},
    "dp, hardly any": {"method": "dp", "options__dp__epsilon": 1e9, "options__dp__clip": 1e3},
    "dpsgd": {"method": "dpsgd", "options__dpsgd__noise": 1.0},
    "etc": {"method": "etc"},
    "ats": {"method": "ats"},
}
PLAIN = ("none", "C only", "gc", "dp, hardly any")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=METHODS)
def scene(request, tmp_path_factory):
    made = config(rounds=1, data__test=60, **METHODS[request.param])
    run = play(tmp_path_factory.mktemp("own") / "run", made)
    record = read_record(run.path / "transcript")
    return request.param, Scene(record, *reversed(_truth(record, run.path, None, None)))


def plain_of(scene, rows):
    network = network_of(scene.record, scene.record.rounds[0].broadcast)
    loss = cross_entropy(network(to_unit(scene.public.inputs[rows])), scene.public.targets[rows])
    named = dict(network.named_parameters())
    sent = map(scene.record.method.sent_of, torch.autograd.grad(loss, list(named.values())))
    return dict(zip(named, sent, strict=True))


@pytest.mark.parametrize("rows", [[3], [0, 7, 9]])
def test_it_is_the_plain_gradient_where_clients_send_that(scene, rows):
    method, scene = scene
    own, plain = own_step(scene, rows), plain_of(scene, rows)
    assert is_plain(own, plain) == (method in PLAIN)
    assert set(own) == set(scene.record.declared.tensors)
    if method == "none":
        for name, value in own.items():
            torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=1e-5)


def test_a_scrambled_picture_gives_the_gradient_of_a_scrambled_picture(scene):
    """The attacker's own secret: neither the plain picture's nor that of another audit."""
    method, scene = scene
    if method != "etc":
        pytest.skip("nothing is scrambled")
    own, again, other = (own_step(some, [3]) for some in (scene, scene, replace(scene, seed=1)))
    assert all(torch.equal(own[name], again[name]) for name in own)
    flat = [torch.cat([some[name].flatten() for name in own]) for some in (own, other)]
    assert float(cosine_similarity(*flat, dim=0)) < 0.999


@pytest.mark.parametrize("attack", [LabelCounts(), PicturesFromHead(), InversionOfClassifier()])
def test_attacks_have_the_rung_where_it_is_another_thing(scene, attack, monkeypatch):
    method, scene = scene
    if attack.obstacle(scene.record):
        pytest.skip("nothing to attack")
    monkeypatch.setattr("veilmark.audit.inversion_ladder.STEPS", 2)
    monkeypatch.setattr("veilmark.audit.inversion_ladder.CONTROL_STEPS", 2)
    monkeypatch.setattr("veilmark.audit.feature_inversion.DECODER_STEPS", 3)
    found = attack.findings(scene)
    rungs = list(dict.fromkeys(line.rung for line in found))
    assert (OWN_STEP in rungs) == (method not in PLAIN)
    assert rungs[0] != OWN_STEP
    assert rungs[-1] == REAL


def test_noise_drowns_what_the_plain_gradient_gives_away(scene):
    method, scene = scene
    if method != "dp":
        pytest.skip("no noise")
    lines = {line.rung: line for line in PicturesFromHead().findings(scene)}
    assert lines["one step on one picture"].value > lines[OWN_STEP].value + 2
