import numpy as np
import pytest
import torch

from veilmark import Landmarker
from veilmark.faces.crop import BoxError, Crop
from veilmark.faces.finders import Faces
from veilmark.faces.images import write_png
from veilmark.run.devices import choose_device
from veilmark.run.errors import ConfigError
from veilmark.sht.inference import predict


class Boxes:
    """A finder that always finds the same boxes."""

    def __init__(self, *boxes):
        self.boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)

    def find(self, image):
        return Faces(self.boxes, np.ones(len(self.boxes), dtype=np.float32))


def picture(width=120, height=90):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def landmarker(weights, finder, **options):
    return Landmarker(weights, finder, device="cpu", **options)


def test_points_are_in_pixels_of_the_picture(tiny_weights, tmp_path):
    tool = landmarker(tiny_weights, Boxes((30, 20, 80, 70)), refine=False)
    write_png(tmp_path / "a.png", picture())
    result = tool(tmp_path / "a.png")
    crop = Crop.from_box((30, 20, 80, 70), size=64)
    looked = predict(tool.model, crop.sample(picture())[None])
    np.testing.assert_allclose(result.points[0], crop.to_image(looked.points[0] * 64), atol=1e-3)
    # The claim is a length: crop pixels become picture pixels by the side of the square alone.
    np.testing.assert_allclose(result.expected_error[0], looked.expected_error[0] * 65, rtol=1e-4)
    np.testing.assert_allclose(result.boxes, [[30, 20, 80, 70]])
    np.testing.assert_array_equal(tool(picture()).points, result.points)


def test_no_face_is_an_empty_result(tiny_weights):
    detection = landmarker(tiny_weights, Boxes()).detect([picture()])[0]
    assert len(detection.landmarks) == 0
    assert detection.faces is None


def test_pictures_and_faces_are_kept_apart_in_a_batch(tiny_weights):
    tool = landmarker(tiny_weights, Boxes((30, 20, 80, 70), (5, 5, 45, 40)), batch=3)
    images = [picture(), picture(100, 100)[::-1].copy(), picture(90, 120)]
    together = tool.detect(images)
    for image, detection in zip(images, together, strict=True):
        alone = tool.detect([image])[0].landmarks
        np.testing.assert_allclose(detection.landmarks.points, alone.points, atol=1e-2)
        assert list(detection.landmarks.trust) == sorted(detection.landmarks.trust, reverse=True)


def test_refining_looks_again_around_the_first_points(tiny_weights):
    once = landmarker(tiny_weights, Boxes((30, 20, 80, 70)), refine=False)(picture())
    twice = landmarker(tiny_weights, Boxes((30, 20, 80, 70)), refine=True)(picture())
    low, high = once.points[0].min(axis=0), once.points[0].max(axis=0)
    np.testing.assert_allclose(twice.boxes[0], [*low, *high], atol=1e-3)


def test_a_face_that_two_boxes_lead_to_is_reported_once(tiny_weights):
    twins = Boxes((30, 20, 80, 70), (31, 20, 81, 70))
    assert len(landmarker(tiny_weights, twins, refine=False)(picture())) == 1
    apart = Boxes((30, 20, 80, 70), (5, 5, 25, 25))
    assert len(landmarker(tiny_weights, apart, refine=False)(picture())) == 2


def test_mirroring_makes_the_answer_the_same_for_the_mirrored_picture(tiny_weights):
    tool = landmarker(tiny_weights, "none", refine=False)
    square = picture(64, 64)
    plain, mirrored = tool(square), tool(square[:, ::-1].copy())
    back = plain.definition.mirror_points(mirrored.points, 64)
    np.testing.assert_allclose(back, plain.points, atol=1e-2)


def test_hallucinated_faces_come_only_when_asked_for(tiny_weights):
    tool = landmarker(tiny_weights, Boxes((30, 20, 80, 70)))
    assert tool.detect([picture()])[0].faces is None
    faces = tool.detect([picture()], hallucinate=True)[0].faces
    assert faces.shape == (1, 64, 64, 3)
    assert faces.dtype == np.uint8


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((10, 10, 16, 15), "under 8 px"),  # too small
        ((200, 10, 260, 70), r"\(200\.0, 10\.0, 260\.0, 70\.0\) lies outside the 120 x 90 picture"),
        ((50, 50, 20, 70), "empty"),
    ],
)
def test_a_box_that_cannot_be_used_is_named(tiny_weights, box, words):
    with pytest.raises(BoxError, match=words):
        landmarker(tiny_weights, "none").detect([picture()], [np.array([box])])


@pytest.mark.parametrize(("device", "words"), [("gpu", "unknown device 'gpu'"), ("meta", "not available here")])
def test_a_device_that_is_not_there_is_refused(device, words):
    with pytest.raises(ConfigError, match=words):
        choose_device(device)
    assert choose_device("auto").type in ("cpu", "cuda")


def test_predict_takes_no_faces_too(tiny_weights):
    tool = landmarker(tiny_weights, "none")
    assert predict(tool.model, np.zeros((0, 64, 64, 3), dtype=np.uint8)).points.shape == (0, 68, 2)
    assert not torch.is_grad_enabled() or not tool.model.training
