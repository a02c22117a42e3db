"""How good are points and pictures: NME, failure rate, AUC, calibration; PSNR and SSIM.

Accumulators keep one value per face or picture and sum with :func:`math.fsum`, which rounds once: any split
into batches, shards or clients, merged in any order, gives the same figures. All rates are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.metrics import structural_similarity

from veilmark.landmarks.nme import (
    Normaliser,
    face_nme,
    normalisers,
    point_errors,
    refuse_first,
    visible_sums,
    which_visible,
)
from veilmark.landmarks.scheme import Scheme
from veilmark.run.errors import DataError

PSNR_CAP = 100.0
"""Decibels of an (almost) identical picture, so that one of them leaves the mean finite."""

SSIM_WINDOW = 11
"""Side in pixels of SSIM's Gaussian window at sigma 1.5; smaller pictures have no SSIM."""


def ced(nmes: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """Cumulative error distribution of ``(n,)`` NMEs: percent of faces up to each of ``(m,)`` thresholds."""
    ordered = np.sort(np.asarray(nmes, dtype=np.float64))
    return 100 * np.searchsorted(ordered, thresholds, side="right") / len(ordered)


def failure_rate(nmes: Sequence[float], threshold: float) -> float:
    """Percent of faces whose NME lies above ``threshold`` percent.

    Args:
        nmes: NME of each face in percent, at least one.
        threshold: In percent; a face at it has not failed.
    """
    return 100 * sum(nme > threshold for nme in nmes) / len(nmes)


def area_under_ced(nmes: Sequence[float], threshold: float) -> float:
    """The exact area under the CED from 0 to ``threshold`` percent, in percent of the whole.

    Args:
        nmes: NME of each face in percent, at least one.
        threshold: In percent, above 0.
    """
    # The CED is a step function: a face with NME e adds 1/n from e on, an area of (threshold - e)/n.
    return 100 * math.fsum(max(0.0, 1 - nme / threshold) for nme in nmes) / len(nmes)


class LandmarkMetrics:
    """Accumulates faces of one scheme, then states NME (over one kind of length), AUC and calibration."""

    def __init__(self, scheme: Scheme, kind: Normaliser = "inter_ocular") -> None:
        self.scheme, self.kind = scheme, kind
        self._nmes: list[float] = []
        self._claimed: list[float] = []
        self._observed: list[float] = []

    def __len__(self) -> int:
        return len(self._nmes)

    @property
    def nmes(self) -> NDArray[np.float64]:
        """NME of each face so far, ``(n,)`` percent, in the order of the updates."""
        return np.array(self._nmes, dtype=np.float64)

    def update(
        self,
        predicted: ArrayLike,
        true: ArrayLike,
        expected_error: ArrayLike | None = None,
        *,
        boxes: ArrayLike | None = None,
        visible: ArrayLike | None = None,
    ) -> None:
        """Adds faces; nothing is added if an error is raised.

        Args:
            predicted: ``(n, k, 2)`` in pixels.
            true: ``(n, k, 2)`` in the same pixels.
            expected_error: ``(n, k)`` claimed distances; faces without are left out of the calibration.
            boxes: ``(n, 4)`` the set's own boxes in the same pixels, for the kinds of length that need them.
            visible: ``(n, k)`` bool, the points that count, in the NME and in the calibration; all by default.

        Raises:
            DataError: If a coordinate, claim or normaliser is unusable; the message names the face's row.
            ValueError: If shapes disagree.
        """
        errors = point_errors(predicted, true)
        nmes = face_nme(predicted, true, self.scheme, self.kind, boxes=boxes, visible=visible)
        if expected_error is not None:
            claims = np.asarray(expected_error, dtype=np.float64)
            if claims.shape != errors.shape:
                raise ValueError(f"expected_error has shape {claims.shape}, expected {errors.shape}")
            remedy = "claims must be finite distances of 0 px or more"
            refuse_first(~(np.isfinite(claims) & (claims >= 0)), claims, "its expected error", remedy)
            chosen = which_visible(visible, errors.shape)
            self._claimed.extend(visible_sums(claims, chosen).tolist())
            self._observed.extend(visible_sums(errors, chosen).tolist())
        self._nmes.extend(nmes.tolist())

    def merge(self, other: LandmarkMetrics) -> None:
        """Adds the faces of another accumulator.

        Raises:
            ValueError: If it has another scheme or normaliser.
        """
        if (other.scheme.name, other.kind) != (self.scheme.name, self.kind):
            raise ValueError(f"cannot merge {other.kind} of {other.scheme.name} into {self.kind}")
        self._nmes.extend(other._nmes)
        self._claimed.extend(other._claimed)
        self._observed.extend(other._observed)

    def compute(self) -> dict[str, float | None]:
        """The figures over all faces so far.

        Returns:
            ``n`` faces; ``nme`` and ``nme_median`` in percent; ``fr8``, ``fr10``: percent of faces with NME
            above 8 and 10 %; ``auc10``, the exact area under the CED from 0 to 10 %, in percent of the whole;
            ``calibration``, mean claimed over mean observed error (below 1 is overconfident), None if no face
            has a claim or no claimed face has an error.

        Raises:
            DataError: If no face was added.
        """
        n = len(self._nmes)
        if n == 0:
            raise DataError("no face to score: the predictions and the true points have no file in common")
        observed = math.fsum(self._observed)
        return {
            "n": n,
            "nme": math.fsum(self._nmes) / n,
            "nme_median": float(np.median(self._nmes)),
            "fr8": failure_rate(self._nmes, 8),
            "fr10": failure_rate(self._nmes, 10),
            "auc10": area_under_ced(self._nmes, 10),
            "calibration": math.fsum(self._claimed) / observed if observed > 0 else None,
        }


def bootstrap_interval(
    values: ArrayLike, groups: ArrayLike, rng: np.random.Generator, resamples: int = 1000, level: float = 95
) -> tuple[float, float]:
    """Percentile bootstrap interval ``(low, high)`` of the mean that resamples groups (people), not values.

    Frames of one person err alike, so resampling frames would give too narrow an interval. Each resample
    draws as many groups as there are, with replacement, and takes the mean of all their values.

    Args:
        values: ``(n,)``, one per frame, in any unit.
        groups: Person of each value, n sortable labels.
        rng: Source of the draws.
        resamples: Number of resamples.
        level: Coverage in percent, between 0 and 100.

    Raises:
        DataError: If there are fewer than two groups, from which no spread can be told.
        ValueError: If there is not one group per value.
    """
    flat, labels = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if flat.ndim != 1 or labels.shape != flat.shape:
        raise ValueError(f"groups {labels.shape} for values {flat.shape}; expected one per value")
    names, member = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"an interval over people needs at least two of them, found {len(names)}")
    sums, counts = np.bincount(member, weights=flat), np.bincount(member)
    draws = rng.integers(len(names), size=(resamples, len(names)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [50 - level / 2, 50 + level / 2])
    return float(low), float(high)


def luma(image: ArrayLike) -> NDArray[np.float64]:
    """BT.601 luma, not rounded, ``(..., 3)`` RGB to ``(...)``: full range, as in JPEG files.

    Papers that use MATLAB's range of 16 to 235 report about 1.3 dB more.
    """
    rgb = np.asarray(image, dtype=np.float64)
    return 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]


def psnr(image: ArrayLike, true: ArrayLike) -> float:
    """Peak signal-to-noise ratio in dB of one picture, data range 255, no border crop, at most 100 dB."""
    difference = np.asarray(image, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    error = float(np.mean(difference * difference))
    return PSNR_CAP if error == 0 else min(PSNR_CAP, 10 * math.log10(255**2 / error))


def _ssim(image: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    axis = -1 if image.ndim == 3 else None
    return float(structural_similarity(image, true, channel_axis=axis, **options))  # type: ignore[no-untyped-call]


def _pictures(images: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(images, dtype=np.float64, order="C")
    if array.ndim != 4 or array.shape[-1] != 3 or min(array.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"{name} are {array.shape}; expected (n, h, w, 3), sides from {SSIM_WINDOW} px")
    if array.size and not (array.min() >= 0 and array.max() <= 255):
        raise ValueError(f"{name} hold values in [{array.min():g}, {array.max():g}]; expected [0, 255]")
    return array


class ImageMetrics:
    """Accumulates pictures, then states the means of their PSNRs and SSIMs, on RGB and on luma.

    SSIM has a Gaussian window (sigma 1.5, 11 px), averaged where it fits inside; RGB is the channels' mean.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {"psnr_rgb": [], "ssim_rgb": [], "psnr_y": [], "ssim_y": []}

    def __len__(self) -> int:
        return len(self._values["psnr_rgb"])

    def update(self, images: ArrayLike, true: ArrayLike) -> None:
        """Adds pictures.

        Args:
            images: ``(n, h, w, 3)`` RGB, uint8 or float in [0, 255].
            true: What they should be, of the same shape.

        Raises:
            ValueError: If shapes disagree, a side is under 11 px, or a value lies outside [0, 255].
        """
        a, b = _pictures(images, "images"), _pictures(true, "true images")
        if a.shape != b.shape:
            raise ValueError(f"images have shape {a.shape}, true images {b.shape}; expected the same")
        for image, target in zip(a, b, strict=True):
            for space, ours, theirs in (("rgb", image, target), ("y", luma(image), luma(target))):
                self._values[f"psnr_{space}"].append(psnr(ours, theirs))
                self._values[f"ssim_{space}"].append(_ssim(ours, theirs))

    def merge(self, other: ImageMetrics) -> None:
        """Adds the pictures of another accumulator."""
        for name, values in other._values.items():
            self._values[name].extend(values)

    def compute(self) -> dict[str, float]:
        """``psnr_rgb``, ``psnr_y`` in dB, ``ssim_rgb``, ``ssim_y`` in [-1, 1], over ``n`` pictures.

        Raises:
            DataError: If no picture was added.
        """
        n = len(self)
        if n == 0:
            raise DataError("no picture to score: PSNR and SSIM need at least one")
        return {name: math.fsum(values) / n for name, values in self._values.items()} | {"n": n}


__all__ = [
    "ImageMetrics",
    "LandmarkMetrics",
    "Normaliser",
    "area_under_ced",
    "bootstrap_interval",
    "ced",
    "face_nme",
    "failure_rate",
    "luma",
    "normalisers",
    "point_errors",
    "psnr",
]
