"""Samples of the joint steps: labelled faces as before, and pairs that show one person twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from veilmark.faces.augment import draw_crop, recolour
from veilmark.faces.cache import CachedFace, FaceCache
from veilmark.faces.degrade import degrade, draw_size
from veilmark.faces.warp import warp_copy
from veilmark.run.seeds import rng_for
from veilmark.sht.joint import JointBatch
from veilmark.sht.layers import enlarge
from veilmark.sht.losses import Batch
from veilmark.sht.pairs import PairKind, choose_pairs
from veilmark.sht.samples import TrainingFaces, to_faces


class PairConfig(BaseModel):
    """Which faces make a pair.

    Attributes:
        kind: ``video``: two frames of one person in one video. ``person``: of one person. ``warp``: a face and a
            warped copy of it, for sets that do not name people.
        per_step: Pairs of a step, beside the labelled batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: PairKind = "video"
    per_step: int = Field(4, ge=1)


class JointSamples:
    """Joint batches; every draw depends on (seed, epoch, place in it) alone.

    Args:
        labelled: Labelled training faces.
        caches: Prepared faces that make the pairs; labels, where they have any, are not looked at.
        config: Which of them make a pair.
    """

    def __init__(self, labelled: TrainingFaces, caches: Sequence[FaceCache], config: PairConfig) -> None:
        self.labelled, self.config = labelled, config
        self.places = [(cache, number) for cache in caches for number in range(len(cache))]
        self.faces = [cache[number].face for cache, number in self.places]
        self._drawn: tuple[int, list[tuple[int, int]]] | None = None

    def __len__(self) -> int:
        return len(self.labelled)

    def pairs(self, epoch: int) -> list[tuple[int, int]]:
        """The pairs of an epoch, as numbers of faces, in their order."""
        # A local name: another thread may be an epoch ahead.
        drawn = self._drawn
        if drawn is None or drawn[0] != epoch:
            rng = rng_for(self.labelled.seed, 4, epoch)
            chosen = choose_pairs(self.faces, self.config.kind, rng)
            self._drawn = drawn = (epoch, [chosen[i] for i in rng.permutation(len(chosen))])
        return drawn[1]

    def step(self, epoch: int, number: int, size: int, rank: int = 0, world: int = 1) -> JointBatch:
        """The share of process ``rank`` of ``world`` in batch ``number``: ``size`` labelled faces in all."""
        labelled = self.labelled.step(epoch, number, size, rank, world)
        pairs = self.pairs(epoch)
        count = self.config.per_step
        places = [(number * count + j) for j in range(rank, count, world)]
        drawn = [self._draw(epoch, place, pairs[place % len(pairs)]) for place in places]
        ordered = [of_pair[side] for side in (0, 1) for of_pair in drawn]
        n, k = len(ordered), len(self.labelled.scheme)
        targets = torch.from_numpy(np.stack([target for target, _ in ordered])).permute(0, 3, 1, 2).float().div_(255)
        grids = torch.cat([enlarge(to_faces(small), self.labelled.size) for _, small in ordered])
        nothing, shown = torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
        return JointBatch(labelled, Batch(grids, targets, torch.zeros(n, k, 2), nothing, shown))

    def _cached(self, number: int) -> CachedFace:
        cache, row = self.places[number]
        return cache[row]

    def _draw(
        self, epoch: int, place: int, pair: tuple[int, int]
    ) -> tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """A and B, each as it is and degraded: other crops, but the same light and the same mirror."""
        seed, config = self.labelled.seed, self.labelled.config
        rng = rng_for(seed, 5, epoch, place)
        still = config.augmentation.model_copy(update={"mirror": False})
        size = self.labelled.size
        mirrored = bool(config.augmentation.mirror and rng.random() < 0.5)
        faces = []
        for number in pair:
            crop, _ = draw_crop(self._cached(number).box, size, still, rng)
            faces.append(crop.sample(self._cached(number).image))
        if self.config.kind == "warp":
            faces[1], _, _ = warp_copy(faces[0], None, rng)
        drawn = []
        for face in faces:
            lit = recolour(face, config.augmentation.colour, rng_for(seed, 6, epoch, place))
            whole = np.ascontiguousarray(lit[:, ::-1]) if mirrored else lit
            drawn.append((whole, degrade(whole, min(size, draw_size(rng, config.sizes)), rng)))
        return drawn[0], drawn[1]
