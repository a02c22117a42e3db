import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilmark.landmarks.metrics import (
    ImageMetrics,
    LandmarkMetrics,
    area_under_ced,
    bootstrap_interval,
    ced,
    face_nme,
    failure_rate,
    luma,
    normalisers,
    point_errors,
    psnr,
)
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import DataError

SCHEME = get_scheme("ibug68")


def random_faces(n, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 100, (n, 68, 2))
    return true + rng.normal(0, 3, true.shape), true, rng.uniform(0, 6, (n, 68))


def faces_with_nme(*percents):
    """Faces 100 px between the outer eye corners, every point off by that percentage."""
    true = np.tile(np.linspace(0, 50, 136).reshape(68, 2), (len(percents), 1, 1))
    true[:, 36], true[:, 45] = (0, 0), (60, 80)
    off = np.asarray(percents, dtype=float)[:, None, None] * np.array([0.6, -0.8])
    return true + off, true


KINDS = ["inter_ocular", "inter_pupil", "box", "given_box", "given_diagonal"]

BOXES = np.array([[10, 20, 10 + 30 * i, 20 + 40 * i] for i in range(1, 13)], dtype=float)
"""Boxes that a set would give: sides 30 and 40, 60 and 80, ..."""


def hand_normaliser(face, kind, box=None):
    if kind == "given_box":
        return ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
    if kind == "given_diagonal":
        return np.hypot(box[2] - box[0], box[3] - box[1])
    if kind == "inter_ocular":
        return np.linalg.norm(face[45] - face[36])
    if kind == "inter_pupil":
        return np.linalg.norm(face[42:48].mean(axis=0) - face[36:42].mean(axis=0))
    (x0, y0), (x1, y1) = face.min(axis=0), face.max(axis=0)
    return ((x1 - x0) * (y1 - y0)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_normalisers_and_nme_follow_their_formulas(kind):
    predicted, true, _ = random_faces(5)
    lengths = [hand_normaliser(face, kind, box) for face, box in zip(true, BOXES[:5], strict=True)]
    np.testing.assert_allclose(normalisers(true, SCHEME, kind, BOXES[:5]), lengths)
    expected = [
        100 * np.mean([np.hypot(*(p - t)) for p, t in zip(a, b, strict=True)]) / length
        for a, b, length in zip(predicted, true, lengths, strict=True)
    ]
    np.testing.assert_allclose(face_nme(predicted, true, SCHEME, kind, boxes=BOXES[:5]), expected)


def test_given_lengths_of_a_known_box():
    boxes = [[5, 5, 35, 45]]
    assert normalisers(np.zeros((1, 68, 2)), SCHEME, "given_diagonal", boxes) == 50
    assert normalisers(np.zeros((1, 68, 2)), SCHEME, "given_box", boxes) == pytest.approx(1200**0.5)


@pytest.mark.parametrize("kind", ["given_box", "given_diagonal"])
@pytest.mark.parametrize("boxes", [None, BOXES[:3]])
def test_given_lengths_need_a_box_for_every_face(kind, boxes):
    with pytest.raises(ValueError, match=rf"{kind} needs the set's boxes, \(4, 4\)"):
        normalisers(random_faces(4)[1], SCHEME, kind, boxes)


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 30),  # no width
        (30, 5, 5, 30),  # inverted
        (5, 5, np.nan, 30),
    ],
)
def test_a_given_box_without_an_area_is_named(box):
    boxes = BOXES[:4].copy()
    boxes[1] = box
    with pytest.raises(DataError, match=r"face row 1 .*given_box length"):
        normalisers(random_faces(4)[1], SCHEME, "given_box", boxes)


def test_only_visible_points_count():
    predicted, true, claims = random_faces(3)
    visible = np.zeros((3, 68), dtype=bool)
    visible[0, :10], visible[1, 60:], visible[2] = True, True, True
    nmes = face_nme(predicted, true, SCHEME, visible=visible)
    distances = np.linalg.norm(predicted - true, axis=2)
    means = [distances[i, visible[i]].mean() for i in range(3)]
    np.testing.assert_allclose(nmes, 100 * np.array(means) / normalisers(true, SCHEME, "inter_ocular"))
    assert nmes[2] == face_nme(predicted, true, SCHEME)[2]
    metrics = LandmarkMetrics(SCHEME)
    metrics.update(predicted, true, claims, visible=visible)
    assert metrics.compute()["calibration"] == pytest.approx(claims[visible].sum() / distances[visible].sum())
    # An invisible point may be anywhere.
    wild = predicted.copy()
    wild[~visible] += 1000
    np.testing.assert_array_equal(face_nme(wild, true, SCHEME, visible=visible), nmes)


def test_a_face_that_cannot_be_seen_at_all_is_named():
    predicted, true, claims = random_faces(3)
    visible = np.ones((3, 68), dtype=bool)
    visible[1] = False
    metrics = LandmarkMetrics(SCHEME)
    with pytest.raises(DataError, match=r"face row 1 .*no visible point"):
        metrics.update(predicted, true, claims, visible=visible)
    assert len(metrics) == 0
    with pytest.raises(ValueError, match="visible has shape"):
        face_nme(predicted, true, SCHEME, visible=visible[:2])


@pytest.mark.parametrize(
    ("threshold", "failed", "area"),
    [
        (10, 25.0, (80 + 60 + 10 + 0) / 4),  # only 25 % fails
        (8, 50.0, (75 + 50 + 0 + 0) / 4),  # 9 % fails, too
        (7, 50.0, 100 * (5 / 7 + 3 / 7) / 4),
        (2, 75.0, 0.0),  # a face at the threshold has not failed, but leaves no area
    ],
)
def test_rates_at_any_threshold(threshold, failed, area):
    assert failure_rate([2, 4, 9, 25], threshold) == failed
    assert area_under_ced([2, 4, 9, 25], threshold) == pytest.approx(area)


@pytest.mark.parametrize("kind", ["inter_ocular", "inter_pupil", "box"])
@pytest.mark.parametrize("value", [7.0, np.nan, np.inf])
def test_a_face_without_length_is_named(kind, value):
    _, true, _ = random_faces(4)
    true[2] = value
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=rf"face row 2 .*{kind}"):
        normalisers(true, SCHEME, kind)


def test_unknown_normaliser_and_shapes_are_refused():
    predicted, true, claims = random_faces(2)
    with pytest.raises(ValueError, match="unknown normaliser 'eyes'"):
        normalisers(true, SCHEME, "eyes")
    with pytest.raises(ValueError, match="ibug68"):
        normalisers(true[:, :67], SCHEME, "box")
    with pytest.raises(ValueError, match="must both"):
        point_errors(predicted[:1], true)
    with pytest.raises(ValueError, match="expected_error"):
        LandmarkMetrics(SCHEME).update(predicted, true, claims[:1])


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("predicted", np.nan, "face row 1, point 3 .*its error is nan"),  # a network that diverged
        ("claims", np.nan, "face row 1, point 3 .*expected error is nan"),
        ("claims", -0.5, "face row 1, point 3 .*-0.5 px"),
    ],
)
def test_unusable_numbers_are_named_and_nothing_is_added(part, value, message):
    predicted, true, claims = random_faces(3)
    {"predicted": predicted, "claims": claims}[part][1, 3] = value
    metrics = LandmarkMetrics(SCHEME)
    with pytest.raises(DataError, match=message):
        metrics.update(predicted, true, claims)
    assert len(metrics) == 0


def test_figures_of_known_faces():
    metrics = LandmarkMetrics(SCHEME)
    predicted, true = faces_with_nme(2, 4, 9, 25)
    metrics.update(predicted, true, np.full((4, 68), 5.0))
    figures = metrics.compute()
    assert list(figures) == ["n", "nme", "nme_median", "fr8", "fr10", "auc10", "calibration"]
    assert figures == pytest.approx(
        {
            "n": 4,
            "nme": 10.0,
            "nme_median": 6.5,
            "fr8": 50.0,
            "fr10": 25.0,
            "auc10": (80 + 60 + 10 + 0) / 4,
            "calibration": 5 / 10,
        }
    )


def test_failure_is_strictly_above_the_threshold():
    metrics = LandmarkMetrics(SCHEME)
    metrics._nmes = [8.0, 10.0, 10.000001]
    figures = metrics.compute()
    assert figures["fr8"] == pytest.approx(200 / 3)
    assert figures["fr10"] == pytest.approx(100 / 3)


def test_auc_is_the_area_under_the_ced():
    predicted, true, _ = random_faces(40)
    metrics = LandmarkMetrics(SCHEME)
    metrics.update(predicted, true)
    grid = (np.arange(200_000) + 0.5) / 20_000
    assert metrics.compute()["auc10"] == pytest.approx(ced(metrics.nmes, grid).mean(), abs=1e-3)


def test_ced_counts_faces_at_the_threshold():
    np.testing.assert_allclose(ced([3, 1, 2, 2], [0, 1, 1.9, 2, 5]), [0, 25, 25, 75, 100])


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        ([None, None], None),  # no method claims anything
        ([2.0, 2.0], 4 / 6),  # mean claim 2 px, mean error (2 + 4) / 2 px
        ([None, 2.0], 2 / 4),  # the face without a claim is left out on both sides
    ],
)
def test_calibration_covers_the_faces_with_a_claim(claimed, expected):
    metrics = LandmarkMetrics(SCHEME)
    for percent, claim in zip((2, 4), claimed, strict=True):
        metrics.update(*faces_with_nme(percent), None if claim is None else np.full((1, 68), claim))
    assert metrics.compute()["calibration"] == (None if expected is None else pytest.approx(expected))


def test_perfect_predictions():
    metrics = LandmarkMetrics(SCHEME)
    metrics.update(*faces_with_nme(0, 0), np.ones((2, 68)))
    assert metrics.compute() == {
        "n": 2,
        "nme": 0,
        "nme_median": 0,
        "fr8": 0,
        "fr10": 0,
        "auc10": 100,
        "calibration": None,
    }


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=5),
    order=st.randoms(use_true_random=False),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
)
def test_any_split_merged_in_any_order_gives_equal_figures(cuts, order, kind, seed):
    predicted, true, claims = random_faces(12, seed)
    visible = np.random.default_rng(seed).random((12, 68)) < 0.9
    whole = LandmarkMetrics(SCHEME, kind)
    whole.update(predicted, true, claims, boxes=BOXES, visible=visible)
    shards = []
    for start, stop in itertools.pairwise([0, *sorted(cuts), 12]):
        shard = LandmarkMetrics(SCHEME, kind)
        part = slice(start, stop)
        shard.update(predicted[part], true[part], claims[part], boxes=BOXES[part], visible=visible[part])
        shards.append(shard)
    order.shuffle(shards)
    merged = LandmarkMetrics(SCHEME, kind)
    for shard in shards:
        merged.merge(shard)
    assert merged.compute() == whole.compute()


def test_merging_keeps_protocols_apart():
    with pytest.raises(ValueError, match="cannot merge box"):
        LandmarkMetrics(SCHEME).merge(LandmarkMetrics(SCHEME, "box"))


@pytest.mark.parametrize("empty", [LandmarkMetrics(SCHEME), ImageMetrics()])
def test_nothing_to_score_is_an_error(empty):
    with pytest.raises(DataError, match="to score"):
        empty.compute()


def test_bootstrap_resamples_people_not_frames():
    rng = np.random.default_rng(0)
    person = rng.normal(5, 1, 30)
    values, groups = np.repeat(person, 40), np.repeat([f"id{i:03}" for i in range(30)], 40)
    low, high = bootstrap_interval(values, groups, np.random.default_rng(1))
    # With as many frames for everyone the mean is that of 30 draws: a standard error of sd / sqrt(30).
    half_width = 1.96 * person.std() / 30**0.5
    assert low == pytest.approx(person.mean() - half_width, abs=0.1)
    assert high == pytest.approx(person.mean() + half_width, abs=0.1)
    frames = bootstrap_interval(values, np.arange(len(values)), np.random.default_rng(1))
    assert frames[1] - frames[0] < (high - low) / 3
    assert bootstrap_interval(values, groups, np.random.default_rng(1)) == (low, high)
    narrow = bootstrap_interval(values, groups, np.random.default_rng(1), level=50)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_weighs_people_by_their_frames():
    # Two people: each resample is one of them twice, or both; the mean of both is over four frames.
    values, groups = [0.0, 0.0, 0.0, 8.0], ["a", "a", "a", "b"]
    seen = {bootstrap_interval(values, groups, np.random.default_rng(i), resamples=1)[0] for i in range(40)}
    assert seen == {0.0, 2.0, 8.0}


def test_bootstrap_refuses_what_has_no_interval():
    with pytest.raises(DataError, match="at least two"):
        bootstrap_interval([1.0, 2.0], ["a", "a"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="one per value"):
        bootstrap_interval([1.0, 2.0], ["a"], np.random.default_rng(0))


def pictures(n=2, seed=0, noise=20):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 256, (n, 14, 17, 3)).astype(np.uint8)
    return np.clip(true + rng.normal(0, noise, true.shape), 0, 255).astype(np.uint8), true


def direct_ssim(a, b):
    """Wang et al. 2004, window by window, for one channel."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    scores = []
    for y, x in itertools.product(range(a.shape[0] - 10), range(a.shape[1] - 10)):
        p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
        mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
        var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
        cov = (weights * (p - mean_p) * (q - mean_q)).sum()
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        scores.append(
            (2 * mean_p * mean_q + c1) * (2 * cov + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
        )
    return np.mean(scores)


def test_image_figures_follow_their_formulas():
    images, true = pictures()
    metrics = ImageMetrics()
    metrics.update(images, true)
    a, b = images.astype(float), true.astype(float)
    grey_a, grey_b = (np.tensordot(c, [0.299, 0.587, 0.114], axes=1) for c in (a, b))

    def decibels(x, y):
        return np.mean([20 * np.log10(255 / np.sqrt(((p - q) ** 2).mean())) for p, q in zip(x, y, strict=True)])

    channels = [direct_ssim(a[i, ..., c], b[i, ..., c]) for i in range(2) for c in range(3)]
    assert metrics.compute() == pytest.approx(
        {
            "psnr_rgb": decibels(a, b),
            "ssim_rgb": np.mean(channels),
            "psnr_y": decibels(grey_a, grey_b),
            "ssim_y": np.mean([direct_ssim(grey_a[i], grey_b[i]) for i in range(2)]),
            "n": 2,
        }
    )


@pytest.mark.parametrize(
    ("image", "true", "expected"),
    [
        ([[10.0]], [[10.0]], 100.0),  # identical: infinite, capped
        ([[0.0]], [[255.0]], 0.0),  # as wrong as can be
        ([[0.0]], [[25.5]], 20.0),
        ([[0.0]], [[1e-9]], 100.0),  # nearly identical: capped too
    ],
)
def test_psnr(image, true, expected):
    assert psnr(image, true) == pytest.approx(expected)


def test_unsigned_pictures_do_not_wrap():
    assert psnr(np.uint8([[0]]), np.uint8([[255]])) == pytest.approx(0)


def test_luma_is_full_range():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    np.testing.assert_allclose(luma(colours), [0, 255, 76.245, 149.685, 29.07])


def test_identical_pictures():
    _, true = pictures()
    metrics = ImageMetrics()
    metrics.update(true, true)
    assert metrics.compute() == pytest.approx({"psnr_rgb": 100, "ssim_rgb": 1, "psnr_y": 100, "ssim_y": 1, "n": 2})


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_any_split_of_pictures_gives_equal_figures(cut):
    images, true = pictures(5)
    whole, first, second = ImageMetrics(), ImageMetrics(), ImageMetrics()
    whole.update(images, true)
    first.update(images[:cut], true[:cut])
    second.update(images[cut:].astype(np.float32), true[cut:])
    second.merge(first)
    assert second.compute() == whole.compute()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 14, 17, 4)), "expected"),  # alpha
        (np.zeros((2, 10, 17, 3)), "11 px"),  # smaller than SSIM's window
        (np.full((2, 14, 17, 3), 256.0), "256"),
        (np.full((2, 14, 17, 3), -1.0), "-1"),  # networks often give [-1, 1]
        (np.full((2, 14, 17, 3), np.nan), "nan"),
        (np.zeros((1, 14, 17, 3)), "same"),
    ],
)
def test_unusable_pictures_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        ImageMetrics().update(images, np.zeros((2, 14, 17, 3)))
