"""A face painted in another pose: which face, which pose, and what is refused."""

import numpy as np
import pytest
import torch

from veilmark import Landmarker
from veilmark.faces.crop import Crop
from veilmark.faces.finders import Faces
from veilmark.faces.images import ImageError, read_image, write_png
from veilmark.faces.synthetic import render_face
from veilmark.run.errors import ConfigError, DataError
from veilmark.sht.dhln import DHLN
from veilmark.sht.fptn import FPTN
from veilmark.sht.inference import predict
from veilmark.sht.samples import to_faces
from veilmark.sht.transfer import check_outputs, paint_transfer, transfer_pictures, write_painted

SIDE = 64


def painter(**options):
    torch.manual_seed(0)
    model = FPTN(**{"size": SIDE, "channels": 16, "blocks": 1, "painter_width": 16, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def shapes(n, seed):
    return np.random.default_rng(seed).uniform(0.2, 0.8, (n, 68, 2))


class Boxes:
    """A finder that always finds the same boxes."""

    def __init__(self, *boxes):
        self.boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)

    def find(self, image):
        return Faces(self.boxes, np.ones(len(self.boxes), dtype=np.float32))


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, path in enumerate(paths):
        write_png(path, render_face(np.random.default_rng(number), 96).image)
    return paths


def test_painting_is_the_network_s_answer_batch_by_batch():
    model, source = painter(), shapes(5, 0)
    # A pose near its own: a spline between random shapes is ill-conditioned.
    target = source + np.random.default_rng(1).normal(0, 0.01, source.shape)
    faces = np.random.default_rng(2).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    painted = paint_transfer(model, faces, source, target, batch=2)
    with torch.no_grad():
        points = [torch.from_numpy(p * SIDE).float() for p in (source, target)]
        expected = model(to_faces(faces), *points).face.clamp(0, 1) * 255
    assert painted.dtype == np.uint8
    difference = np.abs(painted - expected.permute(0, 2, 3, 1).numpy())
    assert float(difference.max()) < 1
    assert paint_transfer(model, faces[:0], source[:0], target[:0]).shape == (0, SIDE, SIDE, 3)


def test_the_face_of_a_in_the_pose_of_b(tiny_weights, pictures):
    tool, model = Landmarker(tiny_weights, "none", device="cpu", refine=False), painter()
    painted = transfer_pictures(tool, model, *pictures)
    crops, said = [], []
    for path in pictures:
        image = read_image(path)
        crop = Crop.from_box(tool.finder.find(image).boxes[0], size=SIDE)
        crops.append(crop.sample(image))
        said.append(predict(tool.model, crops[-1][None], hallucinate=True))
    wanted = paint_transfer(model, said[0].faces, said[0].points, said[1].points)[0]
    # Points go through the picture's pixels and back: a grey level of rounding.
    assert np.abs(painted.face.astype(int) - wanted).max() <= 2
    for column, picture in enumerate((crops[0], said[0].faces[0], painted.face, crops[1])):
        np.testing.assert_array_equal(painted.strip[:, column * SIDE : (column + 1) * SIDE], picture)
    assert painted.trust == pytest.approx((said[0].trust[0], said[1].trust[0]), abs=1e-5)
    turned = transfer_pictures(tool, model, *reversed(pictures))
    assert not np.array_equal(turned.face, painted.face)


def test_the_most_trusted_face_is_taken(tiny_weights, pictures, monkeypatch):
    first, second = (10, 10, 50, 50), (40, 40, 90, 90)
    tool = Landmarker(tiny_weights, Boxes(first, second), device="cpu", refine=False)
    with torch.no_grad():
        tool.model.trust.weight.normal_(generator=torch.Generator().manual_seed(0))
    trust = tool.detect([read_image(pictures[0])])[0].landmarks.trust
    assert trust[0] > trust[1]
    assert transfer_pictures(tool, painter(), *pictures).trust[0] == pytest.approx(float(trust[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "options", "words"),
    [
        ({}, {"scheme": "wflw98"}, "scheme is ibug68, the transfer network's wflw98"),
        ({}, {"size": 128}, "size is 64, the transfer network's 128"),
        ({"detail": False}, {}, "hallucinate no faces"),
    ],
)
def test_networks_that_do_not_fit_are_refused(pictures, weights, options, words):
    dhln = DHLN(**{"size": SIDE, "structure_widths": (16, 32, 32), "detail_widths": (16, 32), **weights})
    tool = Landmarker(dhln, "none", device="cpu")
    with pytest.raises(ConfigError, match=words):
        transfer_pictures(tool, painter(**options), *pictures)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([], r"a\.png: no face found; .*--finder none"),
        ([(10, 10, 14, 14)], r"a\.png: face box .* is under 8 px"),
    ],
)
def test_a_picture_without_a_usable_face_is_named(tiny_weights, pictures, boxes, words):
    tool = Landmarker(tiny_weights, Boxes(*boxes), device="cpu")
    with pytest.raises(DataError, match=words):
        transfer_pictures(tool, painter(), *pictures)


def test_what_is_written(tiny_weights, pictures, tmp_path):
    tool = Landmarker(tiny_weights, "none", device="cpu")
    painted = transfer_pictures(tool, painter(), *pictures)
    assert write_painted(painted, tmp_path / "c.png", sheet=False) == [tmp_path / "c.png"]
    assert not (tmp_path / "c-sheet.png").exists()
    assert write_painted(painted, tmp_path / "c.png", sheet=True) == [tmp_path / "c.png", tmp_path / "c-sheet.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "c.png"), painted.face)
    assert read_image(tmp_path / "c-sheet.png").shape == (SIDE, 4 * SIDE, 3)
    with pytest.raises(ImageError, match="cannot be written"):
        write_painted(painted, tmp_path / "nowhere" / "c.png", sheet=False)


@pytest.mark.parametrize(
    ("out", "sheet", "words"),
    [
        ("c.jpg", False, r"c\.jpg: expected a name that ends in \.png"),
        ("nowhere/c.png", False, "nowhere does not exist; make it first"),
        ("folder.png", False, r"folder\.png is a folder"),
        ("a.png", False, r"a\.png is one of the input pictures"),
        ("../here/b.png", False, r"b\.png is one of the input pictures"),  # by another path
        ("link.png", False, "is one of the input pictures"),
        ("x.png", True, r"x-sheet\.png is one of the input pictures"),  # the strip would
    ],
)
def test_an_output_that_must_not_be_written_is_refused(tmp_path, out, sheet, words):
    here = tmp_path / "here"
    (here / "folder.png").mkdir(parents=True)
    for name in ("a.png", "b.png", "x-sheet.png"):
        (here / name).write_bytes(b"kept")
    (here / "link.png").symlink_to(here / "b.png")
    with pytest.raises(DataError, match=words):
        check_outputs(here / out, sheet, [here / "a.png", here / "b.png", here / "x-sheet.png"])


def test_a_new_name_and_an_old_painting_are_fine(tmp_path):
    (tmp_path / "c.png").write_bytes(b"an older painting")
    check_outputs(tmp_path / "c.png", True, [tmp_path / "missing.png", tmp_path / "b.png"])
