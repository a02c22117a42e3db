"""Landmarks as a task: who owns whom, what is scored, what is refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from published_layouts import TINY_SETS
from veilmark.faces.datasets import LAYOUTS, load_faces
from veilmark.faces.synthetic import render_face, write_dataset
from veilmark.federation.config import FederationConfig, LandmarksFederation, federation_from
from veilmark.federation.tasks import owned_faces
from veilmark.federation.tasks.landmarks import SIZES, LandmarksTask, load_landmarks
from veilmark.federation.tasks.owned_faces import OF_PEOPLE, SMALL, Frame, LandmarksConfig, load_aside, load_newcomers
from veilmark.landmarks.formats import write_pts
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training, adamw

NETWORK = {"size": 32, "trunk_stride": 4, "map_stride": 2, "structure_widths": [16, 16], "detail_widths": [16, 16]}
TINY = {"layout": "synthetic", "people": 2, "frames": 2, "test_people": 2, "network": NETWORK}


def tiny(**changes):
    return LandmarksConfig.model_validate(TINY | changes)


def frames_of(counts):
    """Frames of people 0, 1, 2...: as many as each count says."""
    picture, points = np.zeros((48, 48, 3), dtype=np.uint8), np.zeros((68, 2), dtype=np.float32)
    return [
        Frame(f"{person}_{frame}", f"id{person:03d}", picture, points)
        for person, count in enumerate(counts)
        for frame in range(count)
    ]


def test_what_a_network_is_not_told_is_that_of_the_small_one():
    """One changed key must not bring the rest of another, larger network with it."""
    told = LandmarksConfig.model_validate({"network": {"stages": 1}}).network
    assert told == SMALL.model_copy(update={"stages": 1})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=8, max_size=30),
    st.integers(1, 4),
    st.integers(0, 100),
    st.one_of(st.none(), st.floats(0.05, 10)),
)
def test_people_are_dealt_whole_and_each_to_one_client(counts, clients, seed, alpha):
    config = tiny(people=None, partition="people" if alpha is None else "dirichlet", alpha=alpha)
    frames = frames_of(counts)
    parts = owned_faces.deal(config, frames, clients, seed)
    owners = [{frame.person for frame in part} for part in parts]
    assert all(len(owned) >= 2 for owned in owners)
    assert sum(map(len, owners)) == len(counts) == len(set.union(*owners))
    assert sorted(frame.name for part in parts for frame in part) == sorted(frame.name for frame in frames)
    again = owned_faces.deal(config, frames, clients, seed)
    assert [[frame.name for frame in part] for part in parts] == [[frame.name for frame in part] for part in again]


def test_a_small_alpha_deals_unlike_shares():
    frames = frames_of([6] * 60)
    sizes = {}
    for alpha in (0.1, 100.0):
        parts = owned_faces.deal(tiny(people=None, partition="dirichlet", alpha=alpha), frames, 5, seed=3)
        sizes[alpha] = [len(part) for part in parts]
    assert np.std(sizes[0.1]) > 5 * np.std(sizes[100.0])


def test_a_scheme_that_rendered_faces_do_not_have_is_refused():
    made = tiny()
    other = made.model_copy(update={"network": made.network.model_copy(update={"scheme": "wflw98"})})
    with pytest.raises(ConfigError, match="points of ibug68 cannot be turned into points of wflw98"):
        load_landmarks(other, None, 2, 0)


@pytest.fixture(scope="module")
def loaded():
    return load_landmarks(tiny(labelled=0.5), None, 2, 0)


def test_owners_hold_faces_and_labels_or_faces_only(loaded):
    task, owners, partition, skipped = loaded
    assert not skipped
    labelled = [not bool(owner.targets.isnan().any()) for owner in owners]
    assert sorted(labelled) == [False, True]
    assert bool(owners[labelled.index(False)].targets.isnan().all())
    assert partition["classes"] == ["people", "frames", "with labels"]
    assert sorted(partition["counts"]) == [[2, 4, 0], [2, 4, 4]]
    owned = {name.split(b"/")[0] for owner in owners for name in owner.names}
    assert owned.isdisjoint({person.encode() for person in task.people})
    assert task.test_inputs.shape == (4, 3, 128, 128)


def test_the_middle_of_what_an_owner_keeps_is_the_crop_of_the_contract():
    """Without augmentation a training face has its labels where the scored crop has them."""
    still = {"rotation": 0, "zoom": 0, "shift": 0, "mirror": False, "colour": 0, "cover": 0}
    config = tiny(samples={"no_face": 0, "sizes": [32, 32], "augmentation": still})
    made = owned_faces._rendered(config, 0, 2)
    task = LandmarksTask(config, made)
    learner = task.learner(owned_faces.as_data(made, labelled=True), Training(), 1, 0, 0)
    batch = learner.batch(torch.arange(4), np.random.default_rng(0))
    assert np.allclose(batch.points.numpy() / 32, task.points, atol=1e-5)
    small = torch.nn.functional.interpolate(task.test_inputs.float() / 255, (32, 32), mode="area")
    assert float((batch.target - small).abs().mean()) < 0.03


def test_true_points_have_no_error_and_moved_ones_theirs(loaded):
    task, owners, _, _ = loaded
    n, k = task.points.shape[:2]
    right = np.concatenate([np.tile(task.points.reshape(n, -1), (1, len(SIZES))), np.full((n, 1), 30.0)], axis=1)
    scores = task.score(torch.from_numpy(right), owners[0])
    assert scores["nme_16"] == pytest.approx([0, 0], abs=1e-9)
    assert scores["psnr_16"] == pytest.approx([30, 30])
    wrong = right.copy()
    wrong[:, : 2 * k : 2] += 0.01
    a, b = get_scheme("ibug68").inter_ocular
    eyes = np.linalg.norm(task.points[:, a] - task.points[:, b], axis=1)
    scores = task.score(torch.from_numpy(wrong), owners[0])
    expected = [np.mean(1 / eyes[[p == person for p in task.people]]) for person in sorted(set(task.people))]
    assert scores["nme_16"] == pytest.approx(expected, rel=1e-6)
    assert scores["nme_32"] == pytest.approx([0, 0], abs=1e-9)


def test_clients_without_labels_stand_apart(loaded):
    task = loaded[0]

    def of(nme, labelled):
        return {"labelled": [labelled], **{f"nme_{s}": [nme, nme + 2] for s in SIZES}, "psnr_16": [20.0, 22.0]}

    summary = task.summary({0: of(4.0, 1.0), 1: of(50.0, 0.0), 2: of(6.0, 1.0)}, 3)
    assert (summary["mean"], summary["min"], summary["max"]) == (6.0, 5.0, 7.0)
    assert summary["per_client"] == [5.0, 51.0, 7.0]
    assert summary["unlabelled"]["mean"] == 51.0
    assert summary["people"]["nme_16"] == [5.0, 7.0]
    assert summary["psnr"]["mean"] == 21.0
    assert task.summary({1: of(50.0, 0.0), 2: of(6.0, 1.0)}, 3)["per_client"] == [None, 51.0, 7.0]
    assert [task.in_mean(of(4.0, labelled)) for labelled in (1.0, 0.0)] == [True, False]


def test_one_batch_is_learned(loaded):
    task, owners, _, _ = loaded
    labelled = next(owner for owner in owners if not bool(owner.targets.isnan().any()))
    learner = task.learner(labelled, Training(), 1, 0, 0)
    batch = learner.batch(torch.arange(4), np.random.default_rng(0))
    optimizer = adamw(learner.model, Training(optimizer="adamw", lr=3e-3))
    first = last = None
    for _ in range(60):
        optimizer.zero_grad()
        losses = learner.criterion(learner.model(batch.grid), batch)
        losses.total.backward()
        optimizer.step()
        last = float(losses.parts["points"])
        first = last if first is None else first
    assert last < 0.4 * first


def test_reading_a_folder(tmp_path):
    write_dataset(tmp_path, "train", people=4, frames=2, size=96)
    write_dataset(tmp_path, "report", people=2, frames=2, first_person=280, size=96)
    broken = next((tmp_path / "train").glob("id001*"))
    broken.write_bytes(b"no picture")
    config = tiny(layout="ytf68", people=2)
    task, owners, _, skipped = load_landmarks(config, tmp_path, 2, 0)
    assert list(skipped) == [str(broken)]
    assert sorted(map(len, owners)) == [3, 4]
    assert set(task.people) == {"id280", "id281"}
    with pytest.raises(ConfigError, match="people = 3 for each of 2 clients: the split has 4; take at most 2"):
        load_landmarks(tiny(layout="ytf68", people=3), tmp_path, 2, 0)
    with pytest.raises(ConfigError, match=r"4 people for 3 clients: each needs two.*at most 2 clients"):
        load_landmarks(tiny(layout="ytf68", people=None), tmp_path, 3, 0)
    write_dataset(tmp_path, "again", people=2, frames=2, first_person=3, size=96)
    with pytest.raises(ConfigError, match="id003 is in 'train' and in 'again'"):
        load_landmarks(tiny(layout="ytf68", test="again"), tmp_path, 2, 0)


def test_faces_without_labels_are_cropped_by_a_finder_and_need_no_landmarks(tmp_path, monkeypatch):
    """An owner without labels has pictures, and nothing that an annotation could have told."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    table = write_dataset(data, "train", people=4, frames=2, unlabelled=1, size=96)
    write_dataset(data, "report", people=2, frames=1, first_person=280, size=96)

    def load(**changes):
        config = tiny(layout="ytf68", labelled=0.5, **changes)
        _, owners, partition, skipped = load_landmarks(config, data, 2, 0)
        assert not skipped
        (seeing,) = owned_faces.labelled_clients(config, 2, 0)
        return owners[1 - seeing], owners[seeing], partition["counts"][1 - seeing]

    blind, seeing, counts = load()
    assert counts == [2, 6, 0]
    assert bool(blind.targets.isnan().all())
    assert len(seeing) == 4
    assert not bool(seeing.targets.isnan().any())
    annotated, same, _ = load(boxes="annotated")
    assert len(annotated) == 4
    assert torch.equal(same.inputs, seeing.inputs)
    # The scorer of an audit knows where landmarks are, of the same crops.
    _, owners, _, _ = load_landmarks(tiny(layout="ytf68", labelled=0.5), data, 2, 0, truth=True)
    known = next(owner for owner in owners if len(owner) == 6)
    assert torch.equal(known.inputs, blind.inputs)
    assert int(known.targets.isnan().flatten(1).any(dim=1).sum()) == 2
    assert len(owned_faces.with_landmarks(known)) == 4
    head, *rows = table.read_text().splitlines()
    moved = [[name, *(f"{float(value) + 9:.2f}" for value in values)] for name, *values in (r.split(",") for r in rows)]
    table.write_text("\n".join([head, *(",".join(row) for row in moved)]) + "\n")
    again, other, _ = load()
    assert torch.equal(again.inputs, blind.inputs)
    assert not torch.equal(other.inputs, seeing.inputs)


def test_a_client_in_whose_pictures_no_face_is_found_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path, "train", people=4, frames=2, size=96)
    write_dataset(tmp_path, "report", people=2, frames=1, first_person=280, size=96)
    monkeypatch.setattr(owned_faces, "find_boxes", lambda faces, *_: [None] * len(faces))
    with pytest.raises(ConfigError, match=r"sees a face of 0 of its 2 people; .*data\.boxes=annotated"):
        load_landmarks(tiny(layout="ytf68", labelled=0.5), tmp_path, 2, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layout": "faces"}, "no layout of that name; known: synthetic, ytf68"),
        ({"partition": "dirichlet"}, "dirichlet needs alpha"),
        ({"alpha": 0.5}, "people has none"),
        ({"people": 1}, "greater than or equal to 2"),
        ({"samples": {"sizes": [4, 8]}}, "has 8 pixels at least"),
        ({"samples": {"sizes": [32, 16]}}, "the smallest face comes first"),
        ({"network": {"size": 0}}, "greater than or equal to 16"),
        ({"network": {"structure_widths": []}}, "at least 1 item"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(changes, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        load_landmarks(tiny(**changes), None, 2, 0)


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - set(OF_PEOPLE)))
def test_a_layout_without_people_is_refused(layout):
    with pytest.raises(ValueError, match=r"no landmarks of named people, .*take one of: synthetic, ytf68, folder"):
        tiny(layout=layout)


@pytest.mark.parametrize("layout", ["300w", "cofw", "helen", "wflw"])
def test_where_nobody_is_named_each_face_stands_for_itself(tmp_path, layout):
    """Which is why owners of people cannot be made of them."""
    TINY_SETS[layout].write(tmp_path)
    found = load_faces(layout, tmp_path, TINY_SETS[layout].test)
    people = [face.person for face in (*found.labelled, *found.unlabelled)]
    assert len(set(people)) == len(people) > 1
    assert layout not in OF_PEOPLE


def test_in_a_folder_people_have_folders(tmp_path):
    for person in ("anna", "ben", "cleo", "dora", "."):
        (tmp_path / "train" / person).mkdir(parents=True, exist_ok=True)
    face = render_face(np.random.default_rng(0), 96)
    for name in ("anna/0", "ben/0", "cleo/0", "dora/0", "alone"):
        Image.fromarray(face.image).save(tmp_path / f"train/{name}.png")
        write_pts(tmp_path / f"train/{name}.pts", face.points)
    (tmp_path / "report/emma").mkdir(parents=True)
    for suffix in (".png", ".pts"):
        shutil.copy(tmp_path / f"train/anna/0{suffix}", tmp_path / f"report/emma/0{suffix}")
    config = tiny(layout="folder")
    with pytest.raises(ConfigError, match=r"train/alone\.png lies in no person's folder"):
        load_landmarks(config, tmp_path, 2, 0)
    (tmp_path / "train/alone.png").unlink()
    _, owners, _, _ = load_landmarks(config, tmp_path, 2, 0)
    assert sorted(map(len, owners)) == [2, 2]


def test_a_sheet_shows_nobody_who_is_real():
    made = owned_faces._rendered(tiny(), 0, 2)
    drawn = LandmarksTask(tiny(), made)
    assert torch.equal(drawn.shown(3), drawn.test_inputs[:3])
    real = LandmarksTask(tiny(layout="ytf68"), made)
    assert real.shown(3).shape == (3, 3, 128, 128)
    assert not any(torch.equal(face, scored) for face in real.shown(3) for scored in real.test_inputs)


def test_too_few_people_are_refused_before_a_picture_is_read(tmp_path, monkeypatch):
    write_dataset(tmp_path, "train", people=4, frames=1, size=96)
    write_dataset(tmp_path, "report", people=2, frames=1, first_person=280, size=96)
    monkeypatch.setattr(owned_faces, "read_image", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(ConfigError, match="take at most 2"):
        load_landmarks(tiny(layout="ytf68", people=3), tmp_path, 2, 0)


def test_who_is_lost_with_a_broken_picture_is_dealt_to_nobody(tmp_path):
    write_dataset(tmp_path, "train", people=5, frames=1, size=96)
    write_dataset(tmp_path, "report", people=2, frames=1, first_person=280, size=96)
    broken = next((tmp_path / "train").glob("id001*.jpg"))
    broken.write_bytes(b"no picture")
    _, owners, _, skipped = load_landmarks(tiny(layout="ytf68"), tmp_path, 2, 0)
    assert sorted(map(len, owners)) == [2, 2]
    assert list(skipped) == [str(broken)]


@pytest.mark.parametrize(("first", "split"), [(3, "train"), (281, "report")])
def test_newcomers_and_public_people_are_others(tmp_path, first, split):
    write_dataset(tmp_path, "train", people=4, frames=2, size=96)
    write_dataset(tmp_path, "report", people=2, frames=2, first_person=280, size=96)
    write_dataset(tmp_path, "aside", people=2, frames=2, first_person=first, size=96)
    config = tiny(layout="ytf68", aside="aside")
    for load in (lambda: load_aside(config, tmp_path), lambda: load_newcomers(config, tmp_path, 1, 2, 0)):
        with pytest.raises(ConfigError, match=f"aside: id{first:03d} is in '{split}' too"):
            load()


def test_the_config_follows_the_task():
    assert type(federation_from({}, "here")) is FederationConfig
    made = federation_from({"task": "landmarks", "method": "none", "data": TINY}, "here")
    assert isinstance(made, LandmarksFederation)
    assert made.data.network.size == 32
    assert federation_from(json.loads(made.model_dump_json()), "again") == made
    with pytest.raises(ConfigError, match=r"unknown key 'data\.eyes'; allowed here: alpha, aside, boxes, frames"):
        federation_from({"task": "landmarks", "data": {"eyes": 2}}, "here")
    with pytest.raises(ConfigError, match=r"method etc does not learn the task landmarks; these do: none.*keyed"):
        federation_from({"task": "landmarks", "method": "etc", "data": {"eyes": 2}}, "here")
    with pytest.raises(ConfigError, match="method keyed does not learn the task classify"):
        federation_from({"method": "keyed"}, "here")
    with pytest.raises(ConfigError, match="method ppidsg does not learn the task landmarks"):
        federation_from({"task": "landmarks"}, "here").made_method()
    with pytest.raises(ConfigError, match=r"task = \['landmarks'\]: Input should be"):
        federation_from({"task": ["landmarks"], "method": "etc"}, "here")
