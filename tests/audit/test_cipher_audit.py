"""Audits of the cipher: a chosen picture opens the key, strangers' pairs do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_federations import config, play
from veilmark.audit import cipher_audit
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.cipher_audit import CipherJigsaw, CipherKnownPlaintext, pixels_right, scrambled_with
from veilmark.audit.record import read_record
from veilmark.federation.client_side import SecretFolder
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of
from veilmark.federation.tasks.classify import load_classify
from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret


def played(folder, **options):
    run = play(folder / "run", config(rounds=1, data__test=200, **options)).path
    record = read_record(run / "transcript")
    task, owners, _, _ = load_classify(record.config.data, None, record.config.clients, record.config.seed)
    same = PPIDSGOptions(scope=record.method.options.scope)
    known = [SecretFolder(run.with_name("run.secrets")).of_client(number) for number in (0, 1)]
    tables = [cipher_of(same, some.federation, some.own).table(1, task.side, task.side) for some in known]
    key, keys = (None, tables) if same.scope == "client" else (tables[0], ())
    return Scene(record, task.test, Truth(owners, key, keys=keys))


@pytest.fixture(scope="module", params=["ppidsg", "etc"])
def scene(request, tmp_path_factory):
    return played(tmp_path_factory.mktemp(request.param), method=request.param)


@pytest.fixture(scope="module")
def etc(tmp_path_factory):
    return played(tmp_path_factory.mktemp("etc"), method="etc")


@pytest.fixture(scope="module", params=["ppidsg", "etc"])
def of_clients(request, tmp_path_factory):
    """Each client has a key of its own."""
    scope = {f"options__{request.param}__scope": "client"}
    return played(tmp_path_factory.mktemp(request.param), method=request.param, **scope)


def test_more_leaked_pairs_open_more_of_the_key(scene):
    pieces = []
    found = CipherKnownPlaintext().findings(replace(scene, advance=lambda: pieces.append(1)))
    assert [line.rung for line in found] == ["64 leaked pairs", "16 leaked pairs", "4 leaked pairs", "1 leaked pair"]
    assert found[0].value > 99
    assert found[0].value > found[-1].value > found[-1].chance + 10
    assert found[0].positive_control == 100
    assert abs(found[0].negative_control - found[0].chance) < 8
    assert len(pieces) == 6


@pytest.mark.parametrize("attack", [CipherKnownPlaintext(), CipherJigsaw()])
def test_keys_of_clients_are_opened_one_by_one(of_clients, attack):
    assert attack.obstacle(of_clients.record) is None
    found = attack.findings(of_clients)
    assert all("of one client's key" in line.rung for line in found)
    assert all(line.n == 2 for line in found)
    assert found[0].positive_control == 100
    assert found[-1].value > found[-1].chance + 10
    assert abs(found[0].negative_control - found[0].chance) < 8
    # Each client by itself: figures are the means.
    alone = [attack.findings(replace(of_clients, truth=Truth((), keys=[key]))) for key in of_clients.truth.keys]
    for line, *parts in zip(found, *alone, strict=True):
        for figure in ("value", "chance", "positive_control", "negative_control"):
            assert getattr(line, figure) == pytest.approx(np.mean([getattr(part, figure) for part in parts]))


def test_pairs_of_one_client_do_not_open_anothers_key(of_clients):
    pictures = to_unit(of_clients.public.inputs)
    own, other = of_clients.truth.keys
    guess = CipherKnownPlaintext().run(pictures[:64], scrambled_with(own, pictures[:64]), 4)
    rights = [np.mean(pixels_right(guess, key, pictures[64:])) for key in (own, other)]
    by_chance = CipherKnownPlaintext().findings(of_clients)[0].chance
    assert rights[0] > 99
    assert rights[1] < by_chance + 5


def test_keys_of_the_first_clients_are_attacked(of_clients, monkeypatch):
    monkeypatch.setattr(cipher_audit, "CLIENTS", 1)
    first = replace(of_clients, truth=Truth((), of_clients.truth.keys[0]))
    assert CipherKnownPlaintext().findings(of_clients) == CipherKnownPlaintext().findings(first)


def test_few_public_pictures_make_short_ladders(etc):
    public = replace(etc.public, inputs=etc.public.inputs[:20], targets=etc.public.targets[:20])
    few = replace(etc, public=public)
    assert [line.rung for line in CipherKnownPlaintext().findings(few)] == ["4 leaked pairs", "1 leaked pair"]
    assert CipherJigsaw().findings(few)[-1].rung == "3 scrambled pictures: jigsaw"


def test_a_jigsaw_gets_more_than_chance_and_solves_waves(scene):
    found = CipherJigsaw().findings(scene)
    assert found[-1].value > found[-1].chance + 15
    assert found[-1].n == 3
    assert found[0].positive_control == 100
    assert found[0].negative_control < found[0].chance + 5
    assert found[0].chance < 10


def test_no_pair_travels_so_nothing_is_as_it_was(etc):
    assert not [line for attack in (CipherKnownPlaintext(), CipherJigsaw()) for line in attack.findings(etc)
                if line.rung == REAL]  # fmt: skip


def test_findings_depend_on_the_seed_only(etc):
    for attack in (CipherKnownPlaintext(), CipherJigsaw()):
        assert attack.findings(etc) == attack.findings(etc)


def test_flat_blocks_may_lie_any_way_up():
    key = Cipher(Secret(bytes(SECRET_BYTES)), 4).table(1, 8, 8)
    other = Cipher(Secret(bytes([1]) * SECRET_BYTES), 4).table(1, 8, 8)
    gray, textured = torch.zeros(1, 1, 8, 8), torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    assert pixels_right(other, key, torch.cat([gray, textured]))[0] == 100
    assert pixels_right(other, key, textured)[0] < 50
    assert pixels_right(key, key, textured) == [100.0]


def test_the_scorer_scrambles_as_the_cipher_does(etc):
    x, cipher = to_unit(etc.public.inputs[:3]), Cipher(Secret(bytes(SECRET_BYTES)), 4)
    assert np.array_equal(scrambled_with(cipher.table(1, 28, 28), x), cipher.scramble(x))


def test_obstacles(etc, tmp_path, monkeypatch):
    for attack in (CipherKnownPlaintext(), CipherJigsaw()):
        assert attack.obstacle(etc.record) is None
        none = read_record(play(tmp_path / attack.name, config(method="none", rounds=1)).path / "transcript")
        assert "nothing is scrambled" in attack.obstacle(none)
        images = replace(etc.record, method=type(etc.record.method)(type(etc.record.method.options)(scope="image")))
        assert "each picture has a key of its own" in attack.obstacle(images)
        with pytest.raises(ValueError, match="run's key"):
            attack.findings(replace(etc, truth=Truth(etc.truth.owners)))
    monkeypatch.setattr(cipher_audit, "_MOST_STATES", 100)
    assert "49 blocks in 16 ways" in CipherJigsaw().obstacle(etc.record)
