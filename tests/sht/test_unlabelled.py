"""Faces without labels: found, cropped and gated by pixels alone, never by an annotation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from veilmark.faces.datasets import Face
from veilmark.faces.finders import Faces
from veilmark.faces.images import write_png
from veilmark.sht import unlabelled
from veilmark.sht.pretrained import load_dhln
from veilmark.sht.unlabelled import UnlabelledConfig, find_boxes, gather

OPEN = UnlabelledConfig(trust=0.0, error=1.0)


class Bright:
    """Finds the box of the bright square; counts how often it is asked and remembers how large pictures were."""

    def __init__(self):
        self.asked = []

    def find(self, image):
        self.asked.append(image.shape[:2])
        rows, columns = np.nonzero(image[..., 0] > 128)
        if not len(rows):
            return Faces(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.float32))
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # The best comes first; the second is no face at all.
        return Faces(np.array([box, [0, 0, 9, 9]], dtype=np.float32), np.array([0.9, 0.1], dtype=np.float32))


@pytest.fixture
def finder(monkeypatch):
    made = Bright()
    monkeypatch.setattr(unlabelled, "create_finder", lambda name: made)
    return made


def picture(path, side=240, square=(60, 80, 180, 200), seed=0):
    image = np.random.default_rng(seed).integers(0, 90, (side, side, 3), dtype=np.uint8)
    if square:
        x0, y0, x1, y1 = square
        image[y0:y1, x0:x1] += 140
    write_png(path, image)
    return Face(path, path.name)


@pytest.fixture
def faces(tmp_path):
    """A face, an empty picture, a small picture with a face, a broken file and a missing one."""
    found = [
        picture(tmp_path / "face.png"),
        picture(tmp_path / "empty.png", square=None),
        picture(tmp_path / "small.png", side=80, square=(20, 20, 60, 60)),
    ]
    (tmp_path / "broken.png").write_text("not a picture")
    return [*found, *(Face(tmp_path / name, name) for name in ("broken.png", "missing.png"))]


def test_boxes_are_in_pixels_of_the_picture(finder, faces, tmp_path):
    boxes = find_boxes(faces, OPEN, tmp_path / "cache")
    np.testing.assert_allclose(boxes[0], [60, 80, 180, 200], atol=2)
    np.testing.assert_allclose(boxes[2], [20, 20, 60, 60], atol=1e-3)
    assert boxes[1] is boxes[3] is boxes[4] is None
    # Large pictures are searched smaller, small ones as they are; files that cannot be read are never searched.
    assert finder.asked == [(128, 128), (128, 128), (80, 80)]


def test_found_boxes_are_kept_on_disk(finder, faces, tmp_path):
    first = find_boxes(faces, OPEN, tmp_path / "cache")
    assert find_boxes(faces, OPEN, tmp_path / "cache") == first
    assert len(finder.asked) == 3
    # Another search is another file, a new picture under an old name is searched again.
    find_boxes(faces, OPEN.model_copy(update={"search": 64}), tmp_path / "cache")
    assert finder.asked[3:] == [(64, 64), (64, 64), (64, 64)]
    picture(faces[1].path, seed=4)
    np.testing.assert_allclose(find_boxes(faces, OPEN, tmp_path / "cache")[1], [60, 80, 180, 200], atol=2)
    assert len(finder.asked) == 7
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"found-haar-128.json", "found-haar-64.json"}


def test_what_is_on_disk_is_plain_json(finder, faces, tmp_path):
    find_boxes(faces, OPEN, tmp_path)
    kept = json.loads((tmp_path / "found-haar-128.json").read_text())
    assert len(kept) == 5
    assert sorted(len(box) for box in kept.values() if box) == [4, 4]


def test_annotations_never_enter(finder, faces, tiny_weights, tmp_path):
    """Points, a person and a region change nothing: not the boxes, not the crops, not the gate."""
    model = load_dhln(tiny_weights)
    told = [
        replace(
            face, points=np.full((68, 2), 5.0) + np.arange(68)[:, None] % 7, person="p", region=np.array([0, 0, 9, 9])
        )
        for face in faces
    ]
    plain = gather(faces, model, OPEN, tmp_path / "one")
    other = gather(told, model, OPEN, tmp_path / "other")
    np.testing.assert_array_equal(other.boxes, plain.boxes)
    assert other.figures == plain.figures
    assert [face.name for face in other.faces] == [face.name for face in plain.faces] == ["face.png", "small.png"]


def test_boxes_are_tight_around_the_points_found(finder, faces, tiny_weights, tmp_path):
    model = load_dhln(tiny_weights)
    gathered = gather(faces, model, OPEN, tmp_path / "cache")
    from veilmark.faces.crop import MARGIN, Crop, points_box
    from veilmark.faces.images import read_image
    from veilmark.sht.inference import predict

    crop = Crop.from_box(np.array([20.0, 20, 60, 60]), MARGIN, model.size)
    said = predict(model, crop.sample(read_image(faces[2].path))[None], mirror=False)
    wanted = points_box(crop.to_image(said.points[0] * model.size))
    np.testing.assert_allclose(gathered.boxes[1], wanted, atol=1e-2)


def test_the_figures_say_what_was_found_and_kept(finder, faces, tiny_weights, tmp_path):
    figures = gather(faces, load_dhln(tiny_weights), OPEN, tmp_path).figures
    assert figures == {"pictures": 5, "found": 40.0, "kept": 40.0}
    assert gather([], load_dhln(tiny_weights), OPEN, tmp_path).figures == {"pictures": 0, "found": 0.0, "kept": 0.0}


@pytest.mark.parametrize(
    ("config", "bias", "kept"),
    [
        ({"trust": 0.5, "error": 1.0}, 5.0, 2),  # trusted
        ({"trust": 0.5, "error": 1.0}, -5.0, 0),  # no face, says the network
        ({"trust": 0.0, "error": 1e-6}, 5.0, 0),  # an error beyond the limit
    ],
)
def test_the_gate(finder, faces, tiny_weights, tmp_path, config, bias, kept):
    model = load_dhln(tiny_weights)
    with torch.no_grad():
        model.trust.bias.fill_(bias)
    gathered = gather(faces, model, UnlabelledConfig(**config), tmp_path)
    assert len(gathered.faces) == len(gathered.boxes) == kept
    assert gathered.boxes.shape == (kept, 4)
    assert gathered.found == 2
