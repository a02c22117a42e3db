"""Generated pictures of earlier steps, each with its own label (Shrivastava et al. 2017, section 2.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class History:
    """A pool that hands back, for half of the pictures, an older one in exchange.

    Args:
        capacity: Pictures that it holds; 0 hands back what it is given.
        published: Whether labels stay where they were while pictures change places, as in the published code: a
            defect by which C learns many wrong labels, kept for comparison.

    Attributes:
        pictures: ``(m, c, h, w)`` what it holds; None before the first.
        labels: ``(m,)`` their labels.
    """

    def __init__(self, capacity: int, published: bool = False) -> None:
        self.capacity, self.published = capacity, published
        self.pictures: Tensor | None = None
        self.labels = torch.zeros(0, dtype=torch.int64)

    def exchange(self, pictures: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Takes a batch in and hands as many out, in the same places.

        Args:
            pictures: ``(n, c, h, w)``, detached.
            labels: ``(n,)``.
            rng: Where chance comes from.

        Returns:
            Pictures and their labels.
        """
        if not self.capacity:
            return pictures, labels
        if self.pictures is None:
            self.pictures = pictures[:0].clone()
            self.labels = labels[:0].clone()
        room = min(len(pictures), self.capacity - len(self.pictures))
        self.pictures = torch.cat([self.pictures, pictures[:room]])
        self.labels = torch.cat([self.labels, labels[:room]])
        out, said = pictures.clone(), labels.clone()
        for i in range(room, len(pictures)):
            if rng.random() < 0.5:
                j = int(rng.integers(len(self.pictures)))
                out[i], self.pictures[j] = self.pictures[j].clone(), pictures[i]
                if not self.published:
                    said[i], self.labels[j] = self.labels[j].clone(), labels[i]
        return out, said
