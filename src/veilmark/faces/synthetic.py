"""Synthetic faces with exact labels, for tests, demonstrations and pictures that need no one's photograph.

A face is drawn from a 3D head, so its points lie exactly on what is painted. The faces are friendly
cartoons: good for checking that code learns, crops, draws and reads files, and no evidence of accuracy on
photographs.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from veilmark.faces.crop import points_box
from veilmark.faces.face_features import paint_features
from veilmark.faces.face_paint import Camera, Canvas
from veilmark.faces.face_parts import (
    hair_surface,
    jaw_points,
    paint_background,
    paint_body,
    paint_bun,
    paint_ear,
    paint_hair_behind,
    skin_surface,
)
from veilmark.faces.face_shape import Head
from veilmark.faces.face_traits import Expression, Identity, Pose, draw_expression, draw_identity, draw_pose

__all__ = ["Expression", "Identity", "Pose", "SyntheticFace", "draw_identity", "render_face", "write_dataset"]

_SMALLEST = 48


@dataclass(frozen=True)
class SyntheticFace:
    """A picture of a synthetic face and its labels.

    Attributes:
        image: ``(size, size, 3)`` uint8, RGB.
        points: ``(68, 2)`` float32, the ``ibug68`` points in pixels, corner origin.
        yaw: Degrees; above 0, the nose points to the right of the picture.
        box: ``(4,)`` float32, the tight box of the points, ``x0, y0, x1, y1``.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    yaw: float
    box: NDArray[np.float32]


def render_face(
    rng: np.random.Generator,
    size: int = 200,
    *,
    identity: Identity | None = None,
    pose: Pose | None = None,
    expression: Expression | None = None,
    scene: int | None = None,
) -> SyntheticFace:
    """Draws one face. The same generator state and arguments give the same face.

    Args:
        rng: Source of everything that is not given.
        size: Side of the square picture in pixels, at least 48; the face is about 45 % of it.
        identity: Who it is; drawn if left out.
        pose: How the head is turned; drawn (yaw within 45 degrees, pitch and roll within 15) if left out.
        expression: What the face does; drawn if left out.
        scene: Seed of background, light and clothes, to repeat them from picture to picture; drawn if left
            out.

    Raises:
        ValueError: If ``size`` is under 48.
    """
    if size < _SMALLEST:
        raise ValueError(f"size is {size}; a synthetic face needs at least {_SMALLEST} pixels")
    identity = identity or draw_identity(rng)
    pose = pose or draw_pose(rng)
    expression = expression or draw_expression(rng)
    stage = np.random.default_rng(int(rng.integers(2**63)) if scene is None else scene)
    light = np.array((stage.choice([-1, 1]) * stage.uniform(0.25, 0.75), -0.55, 1.0))
    light /= np.linalg.norm(light)
    cloth = stage.uniform(30, 210, 3)

    head = Head(identity, expression)
    scale = size * rng.uniform(0.212, 0.238)
    x, y = size * (0.5 + rng.uniform(-0.06, 0.06, 2))
    camera = Camera(pose, scale, (x, y))
    features = camera.project(head.features())
    points = np.concatenate([jaw_points(camera, head), features])

    canvas = Canvas(size)
    paint_background(canvas, stage)
    paint_hair_behind(canvas, camera, head)
    paint_body(canvas, camera, head, light, cloth)
    paint_bun(canvas, camera, head)
    near = 1 if pose.yaw < 0 else -1
    paint_ear(canvas, camera, head, light, -near)
    surfaces = [skin_surface(camera, head, light, rng), hair_surface(camera, head, light, rng)]
    canvas.meshes(surfaces, smooth=0.02 * scale)
    paint_ear(canvas, camera, head, light, near)
    paint_features(canvas, camera, head, points)
    grain = rng.normal(0, 1.6, (size, size, 1)) + rng.normal(0, 0.8, (size, size, 3))
    image = np.clip(np.round(canvas.picture() + grain), 0, 255).astype(np.uint8)
    points = points.astype(np.float32)
    return SyntheticFace(image, points, pose.yaw, points_box(points))


def write_dataset(
    folder: Path | str,
    split: str,
    *,
    people: int,
    frames: int,
    unlabelled: int = 0,
    first_person: int = 0,
    size: int = 200,
    seed: int = 0,
    whole_pixels: bool = False,
) -> Path:
    """Writes synthetic faces as one split of a folder in the ``ytf68`` layout.

    The pictures are ``<folder>/<split>/id<person>_v0_<a|b><frame>.jpg``; the points of the labelled ones
    are in ``<folder>/<split>.csv``, in pixels, corner origin. A person depends on ``seed`` and
    the person's number alone, so splits whose numbers do not overlap share nobody.

    Args:
        folder: Where to write; made if missing.
        split: Name of the split, such as ``train``.
        people: How many people.
        frames: Labelled frames of each, named ``a``.
        unlabelled: Further frames of each, named ``b``, that are not in the CSV.
        first_person: Number of the first person.
        size: Side of the frames in pixels.
        seed: Seed of everything.
        whole_pixels: Round points to whole pixels, as imprecise labels are; otherwise to 2 decimals.

    Returns:
        The CSV's path.
    """
    root = Path(folder)
    pictures = root / split
    pictures.mkdir(parents=True, exist_ok=True)
    table = root / f"{split}.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["file", *(f"{axis}{i}" for i in range(68) for axis in "xy")])
        for person in range(first_person, first_person + people):
            rng = np.random.default_rng([seed, person])
            identity, scene = draw_identity(rng), int(rng.integers(2**63))
            for frame in range(frames + unlabelled):
                face = render_face(rng, size, identity=identity, scene=scene)
                labelled = frame < frames
                name = f"id{person:03d}_v0_{'a' if labelled else 'b'}{frame}.jpg"
                Image.fromarray(face.image).save(pictures / name, quality=95)
                if labelled:
                    writer.writerow([name, *_rounded(face.points, whole_pixels)])
    return table


def _rounded(points: NDArray[np.float32], whole_pixels: bool) -> Sequence[str]:
    digits = 0 if whole_pixels else 2
    return [f"{value:.{digits}f}" for value in points.ravel().tolist()]
