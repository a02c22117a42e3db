"""Noise through the generator: pictures that come out are found, and where none do the figures are chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_federations import config, play
from veilmark.audit import noise_through_generator
from veilmark.audit.attack import REAL, Scene, Truth
from veilmark.audit.noise_through_generator import NoiseThroughGenerator, nearest, of_like_classes
from veilmark.audit.record import read_record
from veilmark.federation.tasks.classify import load_classify, without_owner
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = config(rounds=1, data__test=120, data__per_client=60, training__local_steps=1)
    run = play(tmp_path_factory.mktemp("noise") / "run", made).path
    record = read_record(run / "transcript")
    task, owners, _, _ = load_classify(record.config.data, None, record.config.clients, record.config.seed)
    return Scene(record, task.test, Truth(owners, strangers=without_owner(record.config.data, None, owners, 300)))


def test_a_generator_that_learned_nothing_by_heart_hands_out_nothing(scene):
    shown, pieces = [], []
    found = NoiseThroughGenerator().findings(
        replace(scene, advance=lambda: pieces.append(1), show=lambda *words: shown.append(words))
    )
    handed, noise, pictures = found
    assert [line.rung == REAL for line in found] == [False, True, True]
    assert handed.metric == noise.metric != pictures.metric
    assert handed.n == noise.n == pictures.n == 48
    # The control succeeds, beyond chance and beyond noise.
    assert handed.low > max(handed.chance, handed.negative_control) + 5
    assert handed.positive_control == handed.value
    for line in (noise, pictures):
        assert abs(line.value - line.chance) < 1
        assert line.threat_model == "outsider"
    assert [true.shape == made.shape == (8, 1, 28, 28) for _, true, made in shown] == [True] * 3
    assert len({rung for rung, _, _ in shown}) == len(pieces) == 3


def test_a_generator_that_hands_out_clients_pictures_leaks(scene, monkeypatch):
    own = to_unit(scene.truth.owners[1].inputs)

    def knows(record, device):
        return lambda pictures: 0.9 * own[torch.arange(len(pictures)) % 60] + 0.1 * pictures

    monkeypatch.setattr(noise_through_generator, "released", knows)
    _, noise, pictures = NoiseThroughGenerator().findings(scene)
    for line in (noise, pictures):
        assert line.low > line.chance + 2
    assert noise.low > noise.negative_control + 5


def test_noise_itself_is_as_near_to_strangers(scene):
    clients, strangers = of_like_classes(scene.truth.owners, scene.truth.strangers, 0)
    noise = torch.rand(48, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert np.mean(nearest(noise, clients)[0]) == pytest.approx(np.mean(nearest(noise, strangers)[0]), abs=0.2)


def test_the_nearest_picture():
    pictures = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    values, near = nearest(torch.tensor([0.8, -0.5001]).reshape(2, 1, 1, 1), pictures)
    assert near.flatten().tolist() == [1, -1]
    assert values[0] == pytest.approx(20)


def test_strangers_are_of_the_clients_classes():
    """Pictures are as bright as their class is high: what is drawn says which classes it is of."""

    def data(*labels):
        inputs = torch.tensor(labels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        return Data(inputs, torch.tensor(labels), tuple(b"%d" % row for row in range(len(labels))))

    ours, theirs = of_like_classes([data(0, 0, 0, 2), data(2, 3)], data(0, 1, 1, 2, 2, 2, 4), 0)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, to_unit(data(0, 2, 2).inputs))


def test_without_strangers_public_pictures_are_beside_clients(scene):
    alone = replace(scene, truth=Truth(scene.truth.owners))
    assert NoiseThroughGenerator().findings(alone)[1].n == 48


def test_findings_depend_on_the_seed_only(scene):
    attack = NoiseThroughGenerator()
    assert attack.findings(scene) == attack.findings(scene)
    assert attack.findings(scene) != attack.findings(replace(scene, seed=1))


def test_obstacles(scene, tmp_path):
    attack = NoiseThroughGenerator()
    assert attack.obstacle(scene.record) is None
    none = read_record(play(tmp_path / "run", config(method="none", rounds=1)).path / "transcript")
    assert attack.obstacle(none) == "no generator travels"
    early = replace(scene.record, config=scene.record.config.model_copy(update={"rounds": 9}))
    assert "the last of 9 rounds is not in the record" in attack.obstacle(early)
