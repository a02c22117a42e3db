"""How well a face is painted in another pose: PSNR and SSIM against the real one, beside what needs no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.warp import piecewise_affine
from veilmark.landmarks.align import similarity, yaw_degrees
from veilmark.landmarks.metrics import ImageMetrics, bootstrap_interval, psnr
from veilmark.run.errors import DataError
from veilmark.run.seeds import rng_for
from veilmark.sht.protocol import ReferenceFaces

LEAST_YAW = 20.0
"""Degrees of yaw by which the two faces of a scored pair differ at least."""

Paint = Callable[[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]], NDArray[np.uint8]]
"""``(crops_a, points_a, points_b)`` to painted faces: crops ``(m, size, size, 3)`` uint8, points ``(m, k, 2)`` as
shares of the crop's side."""


@dataclass(frozen=True)
class TransferPairs:
    """Pairs of faces of one person in different poses: A is to be painted as B.

    Attributes:
        first: ``(m,)`` positions of A in the reference faces.
        second: ``(m,)`` positions of B.
        turns: ``(m,)`` yaw of B less yaw of A, in degrees.
        people: Person of each pair.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    turns: NDArray[np.float64]
    people: list[str]

    def __len__(self) -> int:
        return len(self.people)

    @classmethod
    def from_reference(
        cls,
        reference: ReferenceFaces,
        videos: Sequence[str | None] | None,
        *,
        least_yaw: float = LEAST_YAW,
        most_per_person: int = 20,
        seed: int = 0,
        scheme: str = "ibug68",
    ) -> TransferPairs:
        """Ordered pairs (A, B) of one person whose yaws differ by more than ``least_yaw``.

        Both orders of two frames are pairs. Where a person has more than ``most_per_person``, that many are
        drawn, so that no person rules the mean.

        Args:
            reference: The faces, with their true points.
            videos: Video of each face: only frames of one video make a pair, so that light, hair and background
                are alike; a face without one has no partner. None: any two faces of a person make a pair.
            least_yaw: Degrees, from :func:`veilmark.landmarks.align.yaw_degrees` of the true points.
            most_per_person: Most pairs of one person, 1 or more.
            seed: Seed of the draw.
            scheme: Landmark scheme of the points.

        Raises:
            ConfigError: If the scheme has no yaw.
            DataError: If there is no such pair.
            ValueError: If there is not one video per face.
        """
        if videos is not None and len(videos) != len(reference):
            raise ValueError(f"{len(videos)} videos for {len(reference)} faces; expected one per face")
        yaws = yaw_degrees(reference.points, scheme)
        people = np.asarray(reference.people)
        partners = people[:, None] == people
        np.fill_diagonal(partners, False)
        if videos is not None:
            named = np.array([video or "" for video in videos])
            partners &= (named[:, None] == named) & (named != "")
        turns = yaws - yaws[:, None]
        chosen: list[NDArray[np.int64]] = []
        for number, person in enumerate(sorted(set(reference.people))):
            pairs = np.argwhere(partners & (np.abs(turns) > least_yaw) & (people == person)[:, None])
            if len(pairs) > most_per_person:
                drawn = rng_for(seed, number).choice(len(pairs), most_per_person, replace=False)
                pairs = pairs[np.sort(drawn)]
            chosen.append(pairs)
        first, second = np.concatenate(chosen).T
        if len(first) == 0:
            within = "person" if videos is None else "video"
            widest = np.abs(turns[partners]).max() if partners.any() else 0.0
            raise DataError(
                f"no two of the {len(reference)} faces are of one {within} and differ by more than {least_yaw:g} "
                f"degrees of yaw (the most is {widest:.1f}); score another set, or lower the least yaw"
            )
        return cls(first, second, turns[first, second], people[first].tolist())


def copy_face(
    crops: NDArray[np.uint8], points_a: NDArray[np.float64], points_b: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The baseline "copy A": A as it is. See :data:`Paint`."""
    return crops


def align_face(
    crops: NDArray[np.uint8], points_a: NDArray[np.float64], points_b: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The baseline "copy A aligned": A moved, turned and scaled until its points are closest to B's."""
    size = crops.shape[1]
    aligned = []
    for crop, a, b in zip(crops, points_a, points_b, strict=True):
        # In OpenCV's coordinates, which count from pixel centres.
        scale, rotation, translation = similarity(a * size - 0.5, b * size - 0.5)
        matrix = np.column_stack([scale * rotation, translation])
        aligned.append(
            cv2.warpAffine(crop, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        )
    return np.asarray(aligned, dtype=np.uint8)


def warp_face(
    crops: NDArray[np.uint8], points_a: NDArray[np.float64], points_b: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The baseline "piecewise-affine warp": A's triangles moved onto B's landmarks."""
    size = crops.shape[1]
    warped = [piecewise_affine(*face) for face in zip(crops, points_a * size, points_b * size, strict=True)]
    return np.asarray(warped, dtype=np.uint8)


BASELINES: dict[str, Paint] = {
    "copy A": copy_face,
    "copy A aligned": align_face,
    "piecewise-affine warp": warp_face,
}
"""What needs no network, by the name of its row."""


def hull_mask(points: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """The pixels of a crop inside the convex hull of its landmarks.

    Args:
        points: ``(k, 2)`` as shares of the crop's side, corner origin.
        size: Side of the crop in pixels.

    Returns:
        ``(size, size)``, true inside and on the outline.
    """
    # OpenCV counts from pixel centres; 4 bits keep a sixteenth of a pixel.
    hull = cv2.convexHull(np.round((points * size - 0.5) * 16).astype(np.int32))
    mask = np.zeros((size, size), dtype=np.uint8)
    cv2.fillConvexPoly(mask, hull, (1,), shift=4)
    return mask.astype(bool)


def score_painter(
    method: str,
    paint: Paint,
    pairs: TransferPairs,
    reference: ReferenceFaces,
    points: NDArray[np.floating] | None = None,
    given: NDArray[np.uint8] | None = None,
    *,
    batch: int = 32,
) -> dict[str, Any]:
    """One row of figures: every pair painted, and compared with the real B.

    Args:
        method: Name of the row.
        paint: What paints A in the pose of B.
        pairs: The pairs.
        reference: The faces that the pairs refer to.
        points: ``(n, k, 2)`` what the painter is told of each reference face's landmarks, as shares of the crop's
            side, e.g. a detector's; the true ones if left out. Pairs and hulls always follow the true ones.
        given: ``(n, size, size, 3)`` uint8, what the painter is given of each reference face's look, e.g. faces
            hallucinated from small ones; the reference itself if left out. The truth is always the reference.
        batch: Pairs that are painted at once.

    Returns:
        ``method``, ``pairs``, ``people``; ``psnr`` in dB (RGB, whole crop, no border crop, mean of the pairs'),
        ``ssim`` (RGB), ``psnr_hull`` in dB inside the convex hull of B's true landmarks; beside each, where
        there are two people or more, ``<name>_interval95``, a bootstrap over people.

    Raises:
        ValueError: If the painter returns something other than uint8 faces of the crops' shape.
    """
    told = reference.points if points is None else np.asarray(points, dtype=np.float64)
    size = reference.crops.shape[1]
    values: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_hull": []}
    for start in range(0, len(pairs), batch):
        first, second = pairs.first[start : start + batch], pairs.second[start : start + batch]
        crops = (reference.crops if given is None else given)[first]
        painted = paint(crops, told[first], told[second])
        if painted.shape != crops.shape or painted.dtype != np.uint8:
            raise ValueError(f"{method} painted {painted.dtype} {painted.shape}; expected uint8 {crops.shape}")
        for face, index in zip(painted, second, strict=True):
            true = reference.crops[index]
            one = ImageMetrics()
            one.update(face[None], true[None])
            figures = one.compute()
            values["psnr"].append(figures["psnr_rgb"])
            values["ssim"].append(figures["ssim_rgb"])
            inside = hull_mask(reference.points[index], size)
            values["psnr_hull"].append(psnr(face[inside], true[inside]))
    people = len(set(pairs.people))
    row: dict[str, Any] = {"method": method, "pairs": len(pairs), "people": people}
    for number, (name, each) in enumerate(values.items()):
        row[name] = float(np.mean(each))
        if people > 1:
            row[f"{name}_interval95"] = bootstrap_interval(each, pairs.people, rng_for(0, number))
    return row


def score_transfer(
    paint: Paint,
    pairs: TransferPairs,
    reference: ReferenceFaces,
    points: NDArray[np.floating] | None = None,
    given: NDArray[np.uint8] | None = None,
) -> list[dict[str, Any]]:
    """The table of pose transfer: a row ``FPTN`` for the network, then one per baseline.

    Args:
        paint: The network.
        pairs: The pairs.
        reference: The faces that the pairs refer to.
        points: See :func:`score_painter`; network and baselines are told the same.
        given: See :func:`score_painter`; network and baselines are given the same.
    """
    methods = {"FPTN": paint} | BASELINES
    return [score_painter(method, painter, pairs, reference, points, given) for method, painter in methods.items()]
