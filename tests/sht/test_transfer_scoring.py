"""Scoring of pose transfer: which pairs are scored, and that the baselines and figures are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from veilmark.faces.crop import Crop
from veilmark.faces.synthetic import Expression, Pose, draw_identity, render_face
from veilmark.faces.warp import Move
from veilmark.landmarks.metrics import PSNR_CAP
from veilmark.run.errors import ConfigError, DataError
from veilmark.sht.protocol import ReferenceFaces
from veilmark.sht.transfer_scoring import (
    BASELINES,
    TransferPairs,
    align_face,
    hull_mask,
    score_painter,
    score_transfer,
    warp_face,
)

SIZE = 64
# Person, video, yaw.
FRAMES = [
    ("ann", "v0", -30),  # 0
    ("ann", "v0", 0),  # 1: 30 degrees from 0, 10 from 2
    ("ann", "v0", 10),  # 2
    ("ann", "v1", 35),  # 3: far from all of v0, but in another video
    ("bob", "v0", -20),  # 4
    ("bob", "v0", 20),  # 5
    ("cem", "v0", 0),  # 6: alone
]
VIDEOS = [f"{person}/{video}" for person, video, _ in FRAMES]


def reference() -> ReferenceFaces:
    crops, points = [], []
    for number, (person, video, yaw) in enumerate(FRAMES):
        who, rng = draw_identity(np.random.default_rng(ord(person[0]))), np.random.default_rng(number)
        face = render_face(
            rng, 96, identity=who, pose=Pose(yaw), expression=Expression(), scene=ord(person[0]) + ord(video[1])
        )
        crop = Crop.from_box(face.box, size=SIZE)
        crops.append(crop.sample(face.image))
        points.append(crop.to_crop(face.points) / SIZE)
    names, people = [f"{i}" for i in range(len(FRAMES))], [person for person, _, _ in FRAMES]
    return ReferenceFaces(np.stack(crops), np.stack(points), np.full(len(FRAMES), 60.0), names, people)


FACES = reference()
PAIRS = TransferPairs.from_reference(FACES, VIDEOS)


def listed(pairs: TransferPairs) -> list[tuple[int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@pytest.mark.parametrize(
    ("videos", "least_yaw", "expected"),
    [
        (VIDEOS, 20, [(0, 1), (0, 2), (1, 0), (2, 0), (4, 5), (5, 4)]),  # within a video, both orders
        (VIDEOS, 35, [(0, 2), (2, 0), (4, 5), (5, 4)]),  # 30 degrees are too few now
        ([None, *VIDEOS[1:]], 20, [(4, 5), (5, 4)]),  # a frame of no known video has no partner
        ([None, None, *VIDEOS[2:]], 20, [(4, 5), (5, 4)]),  # two of no known video are not of the same one
        (  # any two frames of a person
            None,
            20,
            [(0, 1), (0, 2), (0, 3), (1, 0), (1, 3), (2, 0), (2, 3), (3, 0), (3, 1), (3, 2), (4, 5), (5, 4)],
        ),
    ],
)
def test_pairs_are_turned_faces_of_one_person(
    videos: list[str | None] | None, least_yaw: float, expected: list[tuple[int, int]]
) -> None:
    pairs = TransferPairs.from_reference(FACES, videos, least_yaw=least_yaw)
    assert listed(pairs) == expected
    assert pairs.people == [FRAMES[a][0] for a, _ in expected]
    np.testing.assert_allclose(pairs.turns, [FRAMES[b][2] - FRAMES[a][2] for a, b in expected], atol=8)


def test_equal_video_names_of_two_people_are_two_videos() -> None:
    # As `ytf68` names them: v0 is a video of the person, not of the set.
    assert listed(TransferPairs.from_reference(FACES, [video for _, video, _ in FRAMES])) == listed(PAIRS)


def test_no_person_rules_the_mean() -> None:
    everything = listed(TransferPairs.from_reference(FACES, None))
    draws = [TransferPairs.from_reference(FACES, None, most_per_person=3, seed=seed) for seed in (0, 0, 1)]
    for capped in draws:
        assert capped.people == ["ann"] * 3 + ["bob"] * 2
        assert set(listed(capped)) <= set(everything)
    assert listed(draws[0]) == listed(draws[1])
    assert listed(draws[0]) != listed(draws[2])


@pytest.mark.parametrize(("videos", "word"), [(VIDEOS, "one video"), (None, "one person")])
def test_a_set_without_turned_pairs_is_refused(videos: list[str] | None, word: str) -> None:
    with pytest.raises(DataError, match=rf"7 faces.*{word}.*80 degrees"):
        TransferPairs.from_reference(FACES, videos, least_yaw=80)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="6 videos for 7 faces"):
        TransferPairs.from_reference(FACES, VIDEOS[1:])
    with pytest.raises(ConfigError, match="wflw98"):
        TransferPairs.from_reference(FACES, VIDEOS, scheme="wflw98")


def test_a_painter_that_knows_b_is_perfect_and_copy_a_is_not() -> None:
    answers = iter(listed(PAIRS))

    def oracle(crops: NDArray[np.uint8], a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.uint8]:
        return np.stack([FACES.crops[second] for (_, second), _ in zip(answers, crops, strict=False)])

    rows = score_transfer(oracle, PAIRS, FACES)
    assert [row["method"] for row in rows] == ["FPTN", "copy A", "copy A aligned", "piecewise-affine warp"]
    best, copied = rows[0], rows[1]
    assert (best["psnr"], best["ssim"], best["psnr_hull"]) == (PSNR_CAP, pytest.approx(1), PSNR_CAP)
    assert best["psnr_interval95"] == (PSNR_CAP, PSNR_CAP)
    assert copied["psnr"] < 30
    for row in rows:
        assert (row["pairs"], row["people"]) == (6, 2)
        for figure in ("psnr", "ssim", "psnr_hull"):
            low, high = row[f"{figure}_interval95"]
            assert low <= row[figure] <= high


def test_the_hull_column_looks_at_the_face_alone() -> None:
    def spoil(outside: bool) -> dict:
        answers = iter(listed(PAIRS))

        def paint(crops: NDArray[np.uint8], a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.uint8]:
            painted = []
            for _ in crops:
                second = next(answers)[1]
                face, mask = FACES.crops[second].copy(), hull_mask(FACES.points[second], SIZE)
                face[~mask if outside else mask] ^= 128
                painted.append(face)
            return np.stack(painted)

        return score_painter("spoilt", paint, PAIRS, FACES)

    assert spoil(outside=True)["psnr_hull"] == PSNR_CAP
    assert spoil(outside=False)["psnr_hull"] == pytest.approx(20 * math.log10(255 / 128), abs=1e-6)


def test_batches_change_nothing() -> None:
    rows = [score_painter("warp", warp_face, PAIRS, FACES, batch=batch) for batch in (1, 4, 32)]
    assert rows[0] == rows[1] == rows[2]


def test_the_painter_is_told_what_the_caller_says_and_judged_by_the_truth() -> None:
    seen = []

    def watch(crops: NDArray[np.uint8], a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.uint8]:
        seen.append((a, b))
        return crops

    predicted = FACES.points + 0.05
    rows = [score_painter("copy A", watch, PAIRS, FACES, points) for points in (None, predicted)]
    for (a, b), points in zip(seen, (FACES.points, predicted), strict=True):
        np.testing.assert_array_equal(a, points[PAIRS.first])
        np.testing.assert_array_equal(b, points[PAIRS.second])
    assert rows[0] == rows[1]


def test_one_person_has_no_interval() -> None:
    alone = TransferPairs(np.array([4]), np.array([5]), np.array([40.0]), ["bob"])
    assert set(score_painter("copy A", BASELINES["copy A"], alone, FACES)) == {
        "method",
        "pairs",
        "people",
        "psnr",
        "ssim",
        "psnr_hull",
    }


@pytest.mark.parametrize(
    "painted",
    [
        np.zeros((6, SIZE, SIZE, 3), np.float32),  # faces in 0..1, or not rounded
        np.zeros((6, SIZE // 2, SIZE // 2, 3), np.uint8),  # of another size
        np.zeros((5, SIZE, SIZE, 3), np.uint8),  # one too few
    ],
)
def test_a_painter_that_paints_something_else_is_named(painted: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="mine painted"):
        score_painter("mine", lambda crops, a, b: painted, PAIRS, FACES)


def inner_error(painted: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
    part = slice(SIZE // 4, -SIZE // 4)
    return float(np.abs(painted[0, part, part].astype(int) - true[part, part]).mean())


@pytest.mark.parametrize("paint", [align_face, warp_face])
def test_a_face_that_was_only_turned_in_the_picture_is_found_again(paint) -> None:
    nothing = np.zeros((0, 2))
    cos, sin = 1.1 * math.cos(0.15), 1.1 * math.sin(0.15)
    move = Move(SIZE, np.array([[cos, -sin], [sin, cos]]), np.array([0.04, -0.03]), 0, nothing, np.zeros(0), nothing)
    face, points = FACES.crops[5], FACES.points[5]
    turned, there = move.warp(face), move.to_copy(points * SIZE) / SIZE
    painted = paint(face[None], points[None], there[None])
    copied = inner_error(face[None], turned)
    assert inner_error(painted, turned) < 0.25 * copied


def test_a_quarter_turn_is_exact() -> None:
    # Half a pixel of disagreement about where pixels lie would be a whole one here.
    face, points = FACES.crops[5], FACES.points[5]
    turned = np.stack([points[:, 1], 1 - points[:, 0]], axis=1)
    painted = align_face(face[None], points[None], turned[None])[0]
    assert np.abs(painted.astype(int) - np.rot90(face)).max() <= 1


@pytest.mark.parametrize("paint", BASELINES.values())
def test_a_face_in_its_own_pose_is_left_alone(paint) -> None:
    painted = paint(FACES.crops, FACES.points, FACES.points)
    assert np.abs(painted.astype(int) - FACES.crops).max() <= 1


def test_the_hull_is_that_of_the_points() -> None:
    square = np.array([[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.75, 0.75], [0.25, 0.75]])
    mask = hull_mask(square, 64)
    assert mask[17:47, 17:47].all()
    assert not mask[:15].any()
    assert not mask[:, 49:].any()
    assert 32 * 32 <= mask.sum() <= 34 * 34
