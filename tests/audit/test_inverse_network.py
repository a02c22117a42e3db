"""Pictures out of generated ones: the way back is learned where there is one, and only the mean from noise."""

from dataclasses import replace

import pytest
import torch

from tiny_federations import config, play
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.inverse_network import CLIENTS, PicturesFromGenerated, nearest_stranger, released
from veilmark.audit.record import finished_share, read_record
from veilmark.federation.tasks.classify import load_classify


def read(run):
    record = read_record(run.path / "transcript")
    task, owners, _, _ = load_classify(record.config.data, None, record.config.clients, record.config.seed)
    return Scene(record, task.test, Truth(owners))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return read(play(tmp_path_factory.mktemp("inverse") / "run", config(rounds=1, data__test=120)))


@pytest.fixture(scope="module")
def found(scene):
    shown, pieces = [], []
    findings = PicturesFromGenerated(steps=50).findings(
        replace(scene, advance=lambda: pieces.append(1), show=lambda *words: shown.append(words))
    )
    return findings, shown, pieces


def test_the_cipher_is_inverted_and_noise_is_not(found):
    findings, _, _ = found
    assert findings[0].positive_control == findings[0].value > findings[0].negative_control + 1
    assert findings[0].low > findings[0].chance
    assert all(line.negative_control < line.chance for line in findings)


def test_no_generated_picture_of_a_client_travels(found):
    findings, _, _ = found
    assert [line.rung for line in findings][-1] == CLIENTS
    assert REAL not in [line.rung for line in findings]
    # Both clients' 8 pictures.
    assert findings[-1].n == 16


def test_pictures_are_shown_and_work_is_told(found):
    _, shown, pieces = found
    assert [rung for rung, _, _ in shown] == ["G(x) of public pictures", CLIENTS]
    assert all(true.shape == made.shape == (8, 1, 28, 28) for _, true, made in shown)
    # Two networks whole, one on a third of the steps; two clients.
    assert len(pieces) == 50 + 16 + 50 + 2


def test_findings_depend_on_the_seed_only(scene):
    attack = PicturesFromGenerated(steps=3)
    assert attack.findings(scene) == attack.findings(scene)
    assert attack.findings(scene) != attack.findings(replace(scene, seed=1))


def test_what_a_run_ends_with_is_what_is_released(scene):
    sent, ends = scene.record.rounds[-1].broadcast, finished_share(scene.record)
    made = released(scene.record).state_dict()
    assert all(torch.equal(value, ends[name]) for name, value in made.items())
    assert not all(torch.equal(value, sent[name]) for name, value in made.items())
    early = replace(scene.record, config=scene.record.config.model_copy(update={"rounds": 9}))
    assert "the last of 9 rounds is not in the record" in PicturesFromGenerated().obstacle(early)


def test_the_nearest_stranger():
    x = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    assert nearest_stranger(x[:1], x[1:]) == pytest.approx([20 * torch.log10(torch.tensor(2.0)).item()])
    assert nearest_stranger(x[:1], x) == [100.0]


def test_obstacles(scene, tmp_path):
    attack = PicturesFromGenerated()
    assert attack.obstacle(scene.record) is None
    none = read(play(tmp_path / "run", config(method="none", rounds=1)))
    assert "no generator travels" in attack.obstacle(none.record)
    options = scene.record.method.options.model_copy(update={"share": ()})
    kept = replace(scene.record, method=type(scene.record.method)(options))
    assert "no generator travels" in attack.obstacle(kept)
