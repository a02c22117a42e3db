"""Candidates held against an update of G: the picture behind it is told from strangers, in noise nothing is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny_federations import config, play
from veilmark.audit import candidates
from veilmark.audit.attack import REAL, Scene
from veilmark.audit.audits import _truth
from veilmark.audit.candidates import CandidatesOfGenerator, _below, _gradient
from veilmark.audit.played_client import played_gradient
from veilmark.audit.record import read_record
from veilmark.ppidsg.networks import Generator


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    made = config(method="ppidsg", rounds=1, data__test=60, data__head_widths=[64, 32])
    run = play(tmp_path_factory.mktemp("candidates") / "run", made)
    return Scene(
        read_record(run.path / "transcript"),
        *reversed(_truth(read_record(run.path / "transcript"), run.path, None, None)),
    )


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"CASES": 3, "AGAINST": 6, "GUESSES": 1, "ASKED": 3, "STRANGERS": 12}.items():
        monkeypatch.setattr(candidates, name, value)


def test_with_everything_known_the_picture_is_told_and_in_noise_it_is_not(scene, quick):
    found = CandidatesOfGenerator().findings(scene)
    assert [line.n for line in found] == [3, 3, 3, 3, 6]
    assert found[0].value == 100
    assert {line.positive_control for line in found} == {100}
    assert found[-1].rung == REAL
    assert all(0 <= line.low <= line.value <= line.high <= 100 for line in found)
    # Three areas of seven candidates each: by chance all of them lie at one end once in 170 times.
    assert 0 < found[0].negative_control < 100
    assert {line.threat_model for line in found} == {"honest-but-curious server"}


def test_an_update_that_is_a_candidates_gradient_looks_like_it_alone(scene):
    gradient = played_gradient(scene, 0)
    record = scene.record
    first = record.rounds[0]
    client, update = next(iter(first.updates.items()))
    for sign in (1, -1):
        slope = _gradient(scene, gradient, scene.public, [2])
        names = list(Generator(record.task.channels).state_dict())
        sent = {name: first.broadcast[name] - sign * some for name, some in zip(names, slope, strict=True)}
        changed = replace(first, updates={client: replace(update, tensors=sent)})
        told = CandidatesOfGenerator().run(
            scene, [replace(record, rounds=(changed, *record.rounds[1:]))], [gradient],
            replace(scene.public, inputs=scene.public.inputs[:5], targets=scene.public.targets[:5], names=scene.public.names[:5]),
        )  # fmt: skip
        assert told.shape == (1, 5)
        assert told[0, 2] == pytest.approx(1, abs=1e-4)
        assert told[0].argmax() == 2
        assert (np.delete(told[0], 2) < 0.9).all()


def test_areas_count_ties_as_half():
    others = np.array([[0.0, 3.0], [1.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    assert _below(np.array([1.0, 4.0]), others).tolist() == [0.5, 1.0]


@pytest.mark.parametrize("changes", [{"method": "none"}, {"method": "ppidsg", "options__ppidsg__share": []}])
def test_without_a_generator_there_is_nothing_to_hold_candidates_against(tmp_path, changes):
    run = play(tmp_path / "run", config(rounds=1, **changes))
    assert CandidatesOfGenerator().obstacle(read_record(run.path / "transcript")) == "no generator travels"


def test_of_one_scene_the_figures_are_the_same_each_time(scene, quick):
    torch.manual_seed(1)
    once = CandidatesOfGenerator().findings(scene)
    torch.manual_seed(2)
    assert CandidatesOfGenerator().findings(scene) == once


def test_pictures_are_asked_about_that_were_in_a_step(tmp_path, quick):
    made = config(method="ppidsg", rounds=1, data__test=60, data__head_widths=[64, 32], training__local_steps=1)
    made = made.model_copy(update={"training": made.training.model_copy(update={"batch": 1})})
    run = play(tmp_path / "run", made)
    record = read_record(run.path / "transcript")
    found = CandidatesOfGenerator().findings(Scene(record, *reversed(_truth(record, run.path, None, None))))
    # One picture behind each of two messages.
    assert found[-1].n == 2
