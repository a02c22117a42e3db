"""Training faces: cached surroundings become augmented, degraded crops, drawn from (seed, epoch, face)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from veilmark.faces.augment import Augmentation, cover, draw_crop, recolour
from veilmark.faces.cache import CachedFace, FaceCache
from veilmark.faces.crop import MARGIN, REFERENCE_SIZE, Crop
from veilmark.faces.degrade import degrade, draw_size
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.seeds import rng_for
from veilmark.sht.layers import SMALLEST_FACE, enlarge
from veilmark.sht.losses import Batch


class SampleConfig(BaseModel):
    """How training faces are drawn.

    Attributes:
        augmentation: Strength of the augmentation.
        sizes: Smallest and largest face in pixels, 8 and more; none is larger than the network's grid.
        label_jitter: Standard deviation, in pixels of a 128-px crop, of a fixed error that is added to every label:
            for experiments with imprecise labels.
        no_face: Share of crops that show no face, from which trust is learned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    augmentation: Augmentation = Augmentation()
    sizes: tuple[int, int] = (16, 128)
    label_jitter: float = Field(0.0, ge=0, le=16)
    no_face: float = Field(0.04, ge=0, le=0.5)

    @field_validator("sizes")
    @classmethod
    def _sizes(cls, sizes: tuple[int, int]) -> tuple[int, int]:
        if not SMALLEST_FACE <= sizes[0] <= sizes[1]:
            raise ValueError(f"the smallest face comes first, and has {SMALLEST_FACE} pixels at least")
        return sizes


def _shuffled(face: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The face's own texture in the wrong order: 4 x 4 tiles permuted."""
    side = face.shape[0] // 4
    tiles = face.reshape(4, side, 4, side, 3).swapaxes(1, 2).reshape(16, side, side, 3)
    mixed = tiles[rng.permutation(16)].reshape(4, 4, side, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(mixed.reshape(face.shape))


def draw_no_face(cached: CachedFace, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A crop that is not a face in its box: background, a part of a face, a face far too small, or its tiles mixed.

    Args:
        cached: A face and its surroundings.
        size: Side of the crop, divisible by 4.
        rng: Source of all randomness.
    """
    x0, y0, x1, y1 = (float(v) for v in cached.box)
    side = MARGIN * max(x1 - x0, y1 - y0)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    kind = rng.random()
    angle = float(rng.uniform(-math.pi, math.pi))
    if kind < 0.2:
        return _shuffled(Crop.from_square(cx, cy, side, size=size).sample(cached.image), rng)
    if kind < 0.4:
        return Crop.from_square(cx, cy, side * float(rng.uniform(0.15, 0.4)), angle=angle, size=size).sample(
            cached.image
        )
    if kind < 0.55:
        return Crop.from_square(cx, cy, side * float(rng.uniform(2.2, 3.5)), size=size).sample(cached.image)
    direction = float(rng.uniform(-math.pi, math.pi))
    away = side * float(rng.uniform(0.6, 1.1))
    part = side * float(rng.uniform(0.3, 1.0))
    return Crop.from_square(
        cx + away * math.cos(direction), cy + away * math.sin(direction), part, angle=angle, size=size
    ).sample(cached.image)


class TrainingFaces:
    """Batches of augmented, degraded faces; every draw depends on (seed, epoch, face) alone.

    Args:
        cache: Prepared faces; those without landmarks teach hallucination alone.
        config: How faces are drawn.
        scheme: Landmark scheme, for mirroring.
        size: Side of the network's grid in pixels.
        seed: The run's seed.
    """

    def __init__(self, cache: FaceCache, config: SampleConfig, scheme: str, size: int, seed: int) -> None:
        self.cache, self.config, self.size, self.seed = cache, config, size, seed
        self.scheme = get_scheme(scheme)

    def __len__(self) -> int:
        return len(self.cache)

    def step(self, epoch: int, number: int, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The share of process ``rank`` of ``world`` in batch ``number`` of an epoch, ``size`` faces in all."""
        return self.batch(epoch, self.order(epoch)[number * size + rank : (number + 1) * size : world])

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The faces in the order of that epoch."""
        return rng_for(self.seed, 1, epoch).permutation(len(self.cache))

    def labels(self, index: int, points: NDArray[np.floating], box: NDArray[np.floating]) -> NDArray[np.floating]:
        """The labels that are learned from, ``(k, 2)`` in pixels of the cached picture: jittered where asked."""
        if not self.config.label_jitter:
            return points
        x0, y0, x1, y1 = (float(v) for v in box)
        pixel = MARGIN * max(x1 - x0, y1 - y0) / REFERENCE_SIZE
        error = rng_for(self.seed, 3, index).standard_normal(points.shape)
        return points + self.config.label_jitter * pixel * error

    def batch(self, epoch: int, indices: NDArray[np.int64]) -> Batch:
        """The batch of these faces in that epoch."""
        n, k = len(indices), len(self.scheme)
        points = np.zeros((n, k, 2), dtype=np.float32)
        visible = np.ones((n, k), dtype=bool)
        is_face, labelled = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
        targets, grids = [], []
        augmentation = self.config.augmentation
        for row, index in enumerate(indices):
            rng = rng_for(self.seed, 2, epoch, int(index))
            cached = self.cache[int(index)]
            size = min(self.size, draw_size(rng, self.config.sizes))
            if rng.random() < self.config.no_face:
                is_face[row] = False
                target = draw_no_face(cached, self.size, rng)
            else:
                crop, mirrored = draw_crop(cached.box, self.size, augmentation, rng)
                target = crop.sample(cached.image)
                order = self.scheme.mirror_index if mirrored else slice(None)
                if cached.points is None:
                    labelled[row] = False
                else:
                    points[row] = crop.to_crop(self.labels(int(index), cached.points, cached.box))[order]
                if cached.face.visible is not None:
                    visible[row] = cached.face.visible[order]
            target = recolour(target, augmentation.colour, rng)
            if rng.random() < augmentation.cover:
                target = cover(target, rng)
            small = degrade(target, size, rng)
            targets.append(torch.from_numpy(target))
            grids.append(enlarge(to_faces(small), self.size))
        target_faces = torch.stack(targets).permute(0, 3, 1, 2).float().div_(255)
        faces = torch.from_numpy(is_face)
        return Batch(
            torch.cat(grids),
            target_faces,
            torch.from_numpy(points),
            torch.from_numpy(labelled & is_face),
            faces,
            None if visible.all() else torch.from_numpy(visible),
        )


def to_faces(crops: NDArray[np.uint8]) -> torch.Tensor:
    """Crops ``(s, s, 3)`` or ``(n, s, s, 3)`` uint8 as the network takes them: ``(n, 3, s, s)`` in [0, 1]."""
    stacked = crops if crops.ndim == 4 else crops[None]
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))).float().div_(255)
