"""Finders on scikit-image's photograph and on made-up detectors; no data and no weights of ours."""

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.faces import finders
from veilmark.faces.crop import SMALLEST_BOX, Crop, check_box
from veilmark.faces.finders import FINDERS, BoxMap, HaarFinder, WholePicture, YuNetFinder, create_finder
from veilmark.run.errors import ConfigError, WeightsError

# Brows to chin and jaw to jaw of the astronaut, read off the picture.
ASTRONAUT_BOX = np.array([185.0, 86.0, 261.0, 176.0])


def iou(one, other):
    shared = np.maximum(0, np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])).prod()
    return shared / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared)


@pytest.fixture(scope="module")
def haar():
    cv2.setNumThreads(1)
    return HaarFinder()


@pytest.fixture(scope="module")
def astronaut():
    return skimage.data.astronaut()


def shrink(image, factor):
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    "factor",
    [
        0.25,  # a face of 23 px
        0.2,  # of 18 px
    ],
)
def test_haar_finds_the_photographs_one_face_at_every_size(haar, astronaut, factor):
    faces = haar.find(shrink(astronaut, factor))
    assert iou(faces.boxes[0] / factor, ASTRONAUT_BOX) > 0.65


@pytest.mark.parametrize("side", [60, 24])
def test_haar_finds_a_face_that_fills_the_picture(haar, astronaut, side):
    x0, y0, x1, y1 = ASTRONAUT_BOX.astype(int)
    tight = astronaut[y0 - 5 : y1 + 5, x0 - 5 : x1 + 5]
    faces = haar.find(shrink(tight, side / tight.shape[0]))
    assert len(faces) == 1


def test_haar_reduces_large_pictures_and_returns_boxes_in_their_own_pixels(haar, astronaut, monkeypatch):
    monkeypatch.setattr(finders, "LARGEST_SEARCH", 120)
    large = astronaut[20:260, 100:340]
    assert finders._search_picture(large, finders._search_scale(large))[0].shape == (180, 180, 3)
    assert iou(haar.find(large).boxes[0] + [100, 20, 100, 20], ASTRONAUT_BOX) > 0.65


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),  # smaller than the cascade's window, even enlarged
        (3, 200),  # a strip
        (64, 64),  # a plain wall
    ],
)
def test_haar_finds_nothing_where_there_is_nothing(haar, shape):
    faces = haar.find(np.full((*shape, 3), 128, dtype=np.uint8))
    assert faces.boxes.shape == (0, 4)
    assert faces.scores.shape == (0,)
    assert faces.boxes.dtype == faces.scores.dtype == np.float32


def test_haar_takes_rgb_not_bgr(haar, monkeypatch):
    seen = []

    class Recorder:
        def detectMultiScale3(self, gray, **_):
            seen.append(int(gray.mean()))
            return (), (), ()

    monkeypatch.setattr(haar, "_cascade", Recorder())
    haar.find(np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8))
    assert seen == [76]  # red is 0.299 of the luma; blue would be 29


def test_kept_boxes_are_sorted_apart_large_enough_and_inside():
    boxes = np.array(
        [
            [10, 10, 30, 30],  # kept, second
            [12, 12, 31, 31],  # the same face, with a lower score
            [15, 15, 25, 25],  # a small one inside a large one: which is the face is for others to tell
            [60, 60, 80, 80],  # kept, first
            [40, 10, 47.9, 17.9],  # under 8 px
            [-30, 10, 29, 40],  # centred left of the picture
            [90, 90, 110, 110],  # centred on the far corner, which is outside
        ],
        dtype=np.float32,
    )
    scores = np.array([5, 4, 3, 9, 8, 7, 6], dtype=np.float32)
    faces = finders._keep_best(boxes, scores, 100, 100)
    assert faces.boxes.tolist() == [[60, 60, 80, 80], [10, 10, 30, 30], [15, 15, 25, 25]]
    assert faces.scores.tolist() == [9, 5, 3]
    assert SMALLEST_BOX == 8


@settings(max_examples=50, deadline=None)
@given(
    x=st.floats(-500, 500),
    y=st.floats(-500, 500),
    side=st.floats(4, 400),
    grow=st.floats(0.5, 3),
    shift=st.floats(-9, 9),
)
def test_box_map_moves_and_scales_with_the_square(x, y, side, grow, shift):
    mapping = BoxMap(x=0.1, y=-0.2, width=0.9, height=0.7)
    square = np.array([x, y, x + side, y + side])
    expected = [x + 0.15 * side, y - 0.05 * side, x + 1.05 * side, y + 0.65 * side]
    np.testing.assert_allclose(mapping.apply(square)[0], expected, atol=1e-3)
    np.testing.assert_allclose(
        mapping.apply(square * grow + shift)[0], mapping.apply(square)[0] * grow + shift, atol=2e-3
    )


@settings(max_examples=25, deadline=None)
@given(width=st.integers(11, 400), height=st.integers(11, 400))
def test_whole_picture_is_the_crop(width, height):
    faces = WholePicture().find(np.zeros((height, width, 3), dtype=np.uint8))
    crop = Crop.from_box(faces.boxes[0], size=128)
    centre = np.array([width / 2, height / 2])
    half = max(width, height) / 2
    np.testing.assert_allclose(crop.to_image(np.array([[0, 0], [128, 128]])), [centre - half, centre + half], atol=1e-3)
    check_box(faces.boxes[0], width, height)


class FakeYuNet:
    """Answers with one box of the picture it was given, and notes that picture."""

    def __init__(self, row):
        self.row, self.size, self.seen = row, None, None

    def setInputSize(self, size):
        self.size = tuple(size)

    def detect(self, image):
        self.seen = image
        return 1, self.row


def yunet(monkeypatch, tmp_path, row):
    fake = FakeYuNet(row)
    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *_, **__: fake)
    (tmp_path / "yunet.onnx").write_bytes(b"any")
    return create_finder("yunet", weights=tmp_path / "yunet.onnx"), fake


def test_yunet_maps_its_box_back_to_the_picture(monkeypatch, tmp_path):
    # A 100 x 80 picture is searched at 4x with a border of 80: the box below is (20, 10, 60, 60) of the picture.
    row = np.array([[160, 120, 160, 200, *range(10), 0.9]], dtype=np.float32)
    finder, fake = yunet(monkeypatch, tmp_path, row)
    faces = finder.find(np.full((80, 100, 3), (255, 0, 0), dtype=np.uint8))
    assert fake.size == (100 * 4 + 160, 80 * 4 + 160)
    assert fake.seen.shape == (80 * 4 + 160, 100 * 4 + 160, 3)
    assert fake.seen[0, 0].tolist() == [0, 0, 255]  # YuNet takes BGR
    np.testing.assert_allclose(faces.boxes, finders.YUNET_MAP.apply(np.array([20, 10, 60, 60])), atol=1e-4)
    assert faces.scores.tolist() == pytest.approx([0.9])


def test_yunet_without_a_face(monkeypatch, tmp_path):
    finder, _ = yunet(monkeypatch, tmp_path, None)
    assert len(finder.find(np.zeros((40, 40, 3), dtype=np.uint8))) == 0


def test_yunet_map_lowers_the_top_and_keeps_the_chin():
    x0, y0, x1, y1 = finders.YUNET_MAP.apply(np.array([0.0, 0.0, 100.0, 100.0]))[0]
    assert (x0, x1) == (0, 100)
    assert 15 < y0 < 30
    assert 97 < y1 < 103


def test_yunet_needs_weights_that_it_can_run(tmp_path):
    with pytest.raises(ConfigError, match=r"--finder-weights.*opencv_zoo.*face_detection_yunet"):
        create_finder("yunet")
    with pytest.raises(WeightsError, match=r"gone\.onnx: no such file; --finder-weights.*opencv_zoo"):
        create_finder("yunet", weights=tmp_path / "gone.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"not a network" * 50)
    with pytest.raises(WeightsError, match=r"junk\.onnx.*--finder-weights.*opencv_zoo"):
        create_finder("yunet", weights=tmp_path / "junk.onnx")


def test_names_and_their_errors(tmp_path):
    assert isinstance(create_finder("haar"), HaarFinder)
    assert isinstance(create_finder("none"), WholePicture)
    assert FINDERS["yunet"] is YuNetFinder
    with pytest.raises(ConfigError, match=r"'mtcnn'; allowed: haar, yunet, none"):
        create_finder("mtcnn")
    with pytest.raises(ConfigError, match=r"haar takes no weights"):
        create_finder("haar", weights=tmp_path / "a.onnx")
