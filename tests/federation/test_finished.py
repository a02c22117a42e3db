"""When a federation is over: clients take their detectors home, newcomers join."""

import json

import numpy as np
import pytest
import torch
from test_landmarks_methods import LEARNING, PERSONAL, TINY, config, play

from veilmark import Landmarker
from veilmark.federation.config import FederationConfig
from veilmark.federation.finished import export_client, open_finished
from veilmark.federation.tasks.owned_faces import load_newcomers
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunError
from veilmark.sht.pretrained import load_detector


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("method", LEARNING)
def test_an_exported_detector_answers_as_its_client_does(tmp_path, method):
    run = play(tmp_path / "run", config(method=method, rounds=1))
    folder = export_client(run.path, 1, tmp_path / "weights", None)
    finished = open_finished(run.path, None)
    inputs = finished.side.task.test_inputs
    known = finished.client(1).predict(finished.share, inputs)
    network = load_detector(folder)
    said = Landmarker(network, mirror=False, device="cpu").model
    learner = finished.side.task.learner_of(said, finished.side.owners[1], 0, 1)
    torch.testing.assert_close(learner.predict(inputs), known, atol=1e-5, rtol=1e-4)
    assert not torch.equal(network.mean_shape, torch.full_like(network.mean_shape, 0.5))
    assert network.hallucinates


def test_an_exported_detector_finds_landmarks_by_the_front_door(tmp_path):
    run = play(tmp_path / "run", config(method="keyed", rounds=1))
    folder = export_client(run.path, 0, tmp_path / "weights", None)
    picture = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    found = Landmarker(folder, "none", device="cpu").detect([picture], [np.array([[5, 5, 50, 50]])])
    assert found[0].landmarks.points.shape == (1, 68, 2)


@pytest.mark.parametrize("method", ["none", "local", *PERSONAL])
def test_a_newcomer_trains_what_does_not_travel(tmp_path, method):
    run = play(tmp_path / "run", config(method=method, rounds=1))
    finished = open_finished(run.path, None)
    owned = load_newcomers(finished.config.data, None, 2, 3, 0)
    client = finished.join(owned[1], 1)
    network = weights(client.network_with(finished.share))
    assert finished.share.keys() <= network.keys()
    assert all(torch.equal(network[name], value) for name, value in finished.share.items())
    assert len(owned[1]) == 3
    fresh = weights(
        finished.side.method.client(finished.side.view(0, finished.side.secrets.of_client(0))).network_with({})
    )
    moved = [name for name in network if name not in finished.share and not torch.equal(network[name], fresh[name])]
    assert bool(moved) == (method != "none")


def test_a_newcomer_is_given_the_common_secret_and_no_owners(tmp_path):
    run = play(tmp_path / "run", config(method="keyed", rounds=1))
    finished = open_finished(run.path, None)
    for file in finished.side.secrets.path.glob("client-*.key"):
        file.unlink()
    owned = load_newcomers(finished.config.data, None, 1, 3, 0)
    assert finished.join(owned[0], 0).network_with(finished.share)


def test_newcomers_are_nobody_whom_a_client_or_the_score_has():
    made = config().data
    owned = load_newcomers(made, None, 2, 3, 0)
    people = [{name.decode().split("/")[0] for name in some.names} for some in owned]
    assert not people[0] & people[1]
    assert all(int(person.removeprefix("person")) >= 2_000_000 for some in people for person in some)


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
    run = play(tmp_path / "run", config("data.labelled=0.5", method="keyed", rounds=1))
    finished = open_finished(run.path, None)
    without = next(i for i, owner in enumerate(finished.side.owners) if bool(owner.targets.isnan().all()))
    out = tmp_path / "weights"
    with pytest.raises(ConfigError, match=f"client {without} has no labels"):
        export_client(run.path, without, out, None)
    with pytest.raises(ConfigError, match="client 7: the run has clients 0 to 1"):
        export_client(run.path, 7, out, None)
    assert not out.exists()
    out.mkdir()
    (out / "something").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        export_client(run.path, 0, out, None)
    with pytest.raises(RunError, match="no run folder"):
        open_finished(tmp_path / "nothing", None)
    with pytest.raises(ConfigError, match="has no federation"):
        open_finished(run.path, None, tmp_path / "nothing").join(finished.side.owners[0], 0)
    (run.path / "checkpoints/server-0001.safetensors").unlink()
    with pytest.raises(RunError, match="not finished"):
        open_finished(run.path, None)


def test_who_has_no_labels_takes_home_a_detector_that_was_sent(tmp_path):
    shared = 'options.keyed.share=["generator", "detector"]'
    run = play(tmp_path / "run", config("data.labelled=0.5", shared, method="keyed", rounds=1))
    owners = open_finished(run.path, None).side.owners
    without = next(i for i, owner in enumerate(owners) if bool(owner.targets.isnan().all()))
    assert list(export_client(run.path, without, tmp_path / "weights", None).iterdir())


def test_a_run_is_opened_with_its_own_data_only(tmp_path):
    run = play(tmp_path / "run", config(method="none", rounds=1))
    summary = json.loads((run.path / "summary.json").read_text())
    assert len(set(summary["owners"])) == 2
    (run.path / "summary.json").write_text(json.dumps(summary | {"owners": [summary["owners"][0], "0" * 16]}))
    with pytest.raises(ConfigError, match=r"not what .*run was played with \(client 1 had other examples\)"):
        open_finished(run.path, None)


def test_a_classifier_is_no_detector(tmp_path):
    made = FederationConfig.model_validate(
        {
            "clients": 2,
            "rounds": 1,
            "record": [],
            "data": {"layout": "digits", "per_client": 8, "test": 8, "head_widths": [8, 8]},
        }
    )
    run = play(tmp_path / "run", made)
    with pytest.raises(ConfigError, match="learned the task classify"):
        export_client(run.path, 0, tmp_path / "weights", None)
    finished = open_finished(run.path, None)
    with pytest.raises(ConfigError, match="cannot join"):
        finished.join(finished.side.owners[0], 0)
    assert json.loads((run.path / "summary.json").read_text())["task"] != TINY["task"]
