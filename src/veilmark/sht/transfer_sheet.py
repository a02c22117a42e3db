"""A sheet of transfers over the course of a training: the same pairs, again and again."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from veilmark.faces.degrade import shrink
from veilmark.faces.images import write_png
from veilmark.faces.warp import warp_copy
from veilmark.landmarks.metrics import psnr
from veilmark.run.seeds import rng_for
from veilmark.sht.inference import predict
from veilmark.sht.joint import SHT
from veilmark.sht.protocol import ReferenceFaces
from veilmark.sht.transfer import paint_transfer

SHOWN = 6
"""Pairs on a sheet."""


class TransferSheet:
    """Faces of people that no training saw, each painted in another pose of the same person.

    A row shows A as it is given, A hallucinated, A in the pose of B, and the real B. Where no person has two
    faces, B is a warped copy of A.

    Args:
        faces: The faces.
        size: Size in pixels at which A and B are given.
        folder: Where the sheets go.
    """

    def __init__(self, faces: ReferenceFaces, size: int, folder: Path) -> None:
        self.folder, side = folder, faces.crops.shape[1]
        pairs = _widest_pairs(faces)
        if pairs:
            first, second = (np.array(column) for column in zip(*pairs, strict=True))
            self.truth = faces.crops[second]
        else:
            first = np.arange(min(SHOWN, len(faces)))
            warped = [warp_copy(faces.crops[i], faces.points[i] * side, rng_for(0, int(i)))[0] for i in first]
            self.truth = np.stack(warped)
        self.look = faces.crops[first]
        self.small = [np.stack([shrink(face, size) for face in some]) for some in (self.look, self.truth)]

    def draw(self, network: SHT, step: int) -> dict[str, float]:
        """Writes the sheet of a step, ``transfers/<step>.png``.

        Args:
            network: Both networks.
            step: The step, for the name.

        Returns:
            ``transfer_psnr``: mean PSNR of the painted faces against the real B, in dB; ``copy_psnr``: that of A.
        """
        a, b = (predict(network.dhln, small, mirror=False, hallucinate=True) for small in self.small)
        if a.faces is None:
            raise ValueError("a transfer needs hallucinated faces; this network has no detail stream")
        painted = paint_transfer(network.fptn, a.faces, a.points, b.points)
        side = self.look.shape[1]
        given = np.stack([cv2.resize(face, (side, side), interpolation=cv2.INTER_NEAREST) for face in self.small[0]])
        rows = [np.hstack(row) for row in zip(given, a.faces, painted, self.truth, strict=True)]
        half = -(-len(rows) // 2)
        left, right = rows[:half], rows[half:]
        while len(right) < len(left):
            right.append(np.zeros_like(left[0]))
        self.folder.mkdir(exist_ok=True)
        write_png(self.folder / f"{step:06d}.png", np.hstack([np.vstack(left), np.vstack(right)]).astype(np.uint8))
        return {
            "transfer_psnr": float(np.mean([psnr(p, t) for p, t in zip(painted, self.truth, strict=True)])),
            "copy_psnr": float(np.mean([psnr(p, t) for p, t in zip(self.look, self.truth, strict=True)])),
        }


def _widest_pairs(faces: ReferenceFaces) -> list[tuple[int, int]]:
    """For each of the first people with two faces or more, the two whose landmarks differ the most."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, person in enumerate(faces.people):
        rows[person].append(row)
    pairs: list[tuple[int, int]] = []
    for members in rows.values():
        if len(members) > 1 and len(pairs) < SHOWN:
            shapes = faces.points[members]
            apart = np.linalg.norm(shapes[:, None] - shapes, axis=3).mean(axis=2)
            a, b = np.unravel_index(int(apart.argmax()), apart.shape)
            pairs.append((members[int(a)], members[int(b)]))
    return pairs
