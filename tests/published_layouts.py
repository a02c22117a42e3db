"""Writers of data sets as they are published, and tiny sets of rendered faces in every layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io

from veilmark.faces.crop import points_box
from veilmark.faces.images import write_image
from veilmark.faces.synthetic import render_face
from veilmark.landmarks.conversion import CONVERSIONS
from veilmark.landmarks.formats import write_pts

# The files


def write_picture(path: Path, image: np.ndarray) -> None:
    """A picture, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)


def write_annotated(picture: Path, image: np.ndarray, points: np.ndarray | None) -> None:
    """300W, and any folder: a picture, and a ``.pts`` file beside it unless ``points`` is None."""
    write_picture(picture, image)
    if points is not None:
        write_pts(picture.with_suffix(".pts"), points)


WFLW_LISTS = Path("WFLW_annotations/list_98pt_rect_attr_train_test")


def wflw_line(picture: str, numbers: np.ndarray, attributes: Sequence[int], rectangle: Sequence[float]) -> str:
    """A face of a list of WFLW: ``(98, 2)`` coordinates, the rectangle, six attributes, the picture."""
    coordinates = " ".join(f"{value:.6f}" for value in numbers.ravel())
    return f"{coordinates} {' '.join(f'{v:g}' for v in rectangle)} {' '.join(map(str, attributes))} {picture}\n"


def write_wflw_list(root: Path, part: str, lines: Sequence[str]) -> None:
    """The list of ``train`` or ``test``."""
    (root / WFLW_LISTS).mkdir(parents=True, exist_ok=True)
    (root / WFLW_LISTS / f"list_98pt_rect_attr_{part}.txt").write_text("".join(lines))


def write_cofw(path: Path, suffix: str, images: Sequence[np.ndarray], phis: np.ndarray, boxes: np.ndarray) -> None:
    """MATLAB 7.3: HDF5 behind a block of 512 bytes, axes reversed, cells as references.

    ``phis`` is ``(n, 87)`` as MATLAB sees them: 29 x, 29 y, 29 occlusion bits.
    """
    with h5py.File(path, "w", userblock_size=512) as file:
        cells = file.create_group("#refs#")
        references = np.empty((1, len(images)), dtype=h5py.ref_dtype)
        for i, image in enumerate(images):
            references[0, i] = cells.create_dataset(f"c{i}", data=image.T).ref
        file.create_dataset(f"Is{suffix}", data=references, dtype=h5py.ref_dtype)
        file.create_dataset(f"phis{suffix}", data=phis.T)
        file.create_dataset(f"bboxes{suffix}", data=boxes.T)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def write_aflw_old(path: Path, variables: dict[str, Any]) -> None:
    """The release in MATLAB 5 to 7: a column of cells, each with a cell of text inside."""
    names = np.empty((len(variables["nameList"]), 1), dtype=object)
    for i, name in enumerate(variables["nameList"]):
        names[i, 0] = np.array([name])
    scipy.io.savemat(path, variables | {"nameList": names})


def write_aflw_new(path: Path, variables: dict[str, Any]) -> None:
    """The release in MATLAB 7.3: HDF5 with reversed axes, text as 16-bit codes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        cells = file.create_group("#refs#")
        references = np.empty((1, len(variables["nameList"])), dtype=h5py.ref_dtype)
        for i, name in enumerate(variables["nameList"]):
            codes = np.array([[ord(letter)] for letter in name], dtype=np.uint16)
            references[0, i] = cells.create_dataset(f"n{i}", data=codes).ref
        file.create_dataset("nameList", data=references, dtype=h5py.ref_dtype)
        for key, value in variables.items():
            if key != "nameList":
                file.create_dataset(key, data=value.T)


class CelebaRow(NamedTuple):
    """A picture of CelebA: its name, part (0, 1, 2), person, ten numbers of five points, the given box."""

    name: str
    part: int
    person: int
    five: str
    box: str = "95  71  226  313"


def write_celeba_lists(root: Path, rows: Sequence[CelebaRow]) -> None:
    """``Eval/`` and ``Anno/``; the same five points for both kinds of picture."""
    for part in ("Anno", "Eval"):
        (root / part).mkdir()
    (root / "Eval/list_eval_partition.txt").write_text("".join(f"{row.name} {row.part}\n" for row in rows))
    (root / "Anno/identity_CelebA.txt").write_text("".join(f"{row.name} {row.person}\n" for row in rows))
    named = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    columns = " ".join(f"{name}_{axis}" for name in named for axis in "xy")
    points = "".join(f"{row.name}  {row.five}\n" for row in rows)
    for kind in ("landmarks", "landmarks_align"):
        (root / f"Anno/list_{kind}_celeba.txt").write_text(f"{len(rows)}\n{columns}\n{points}")
    boxes = "".join(f"{row.name}    {row.box}\n" for row in rows)
    (root / "Anno/list_bbox_celeba.txt").write_text(f"{len(rows)}\nimage_id x_1 y_1 width height\n{boxes}")


def write_helen(root: Path, faces: dict[str, tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Helen: name to folder, picture and ``(194, 2)`` numbers; folders that begin with ``train`` train."""
    (root / "annotation").mkdir()
    for number, (name, (folder, image, numbers)) in enumerate(faces.items(), 1):
        write_picture(root / folder / f"{name}.jpg", image)
        rows = "\r\n".join(f"{x:.2f} , {y:.2f}" for x, y in numbers)
        # Annotations are numbered; the first line names the picture.
        (root / "annotation" / f"{number}.txt").write_text(f"{name}\r\n{rows}\r\n")
    for file, part in (("trainnames.txt", "train"), ("testnames.txt", "test")):
        listed = [name for name, (folder, _, _) in faces.items() if folder.startswith(part)]
        (root / file).write_text("\r\n".join(listed) + "\r\n")


# The points of other schemes, each the mean of some of the 68: plausible faces, not the true places.

_LEFT_EYE, _RIGHT_EYE = tuple(range(36, 42)), tuple(range(42, 48))


def _of_98() -> list[tuple[int, ...]]:
    means: list[tuple[int, ...]] = [()] * 98
    for place, index in enumerate(CONVERSIONS["wflw98", "ibug68"]):
        means[index] = (place,)
    for middle in range(1, 32, 2):
        means[middle] = (middle // 2, middle // 2 + 1)
    # The lower edge of a brow lies a third of the way to the eye.
    means[38:42] = [(21, 21, 39), (20, 20, 38), (19, 19, 37), (18, 18, 36)]
    means[47:51] = [(25, 25, 45), (24, 24, 44), (23, 23, 43), (22, 22, 42)]
    for lid, corner in ((62, 37), (66, 40), (70, 43), (74, 46)):
        means[lid] = (corner, corner + 1)
    means[96:98] = [_LEFT_EYE, _RIGHT_EYE]
    return means


MEANS: dict[str, list[tuple[int, ...]]] = {
    "wflw98": _of_98(),
    "cofw29": [
        *((17,), (26,), (21,), (22,), (19,), (19, 19, 37), (24,), (24, 24, 44)),
        *((36,), (45,), (39,), (42,), (37, 38), (40, 41), (43, 44), (46, 47), _LEFT_EYE, _RIGHT_EYE),
        *((31,), (35,), (30,), (33,), (48,), (54,), (51,), (62,), (66,), (57,), (8,)),
    ],
    "aflw19": [
        *((17,), (19,), (21,), (22,), (24,), (26,)),
        *((36,), _LEFT_EYE, (39,), (42,), _RIGHT_EYE, (45,), (31,), (30,), (35,), (48,), (62, 66), (54,), (8,)),
    ],
    "celeba": [_LEFT_EYE, _RIGHT_EYE, (30,), (48,), (54,)],
}
"""For each other annotation, which of the 68 points each of its points is the mean of."""


def points_of(annotation: str, points: np.ndarray) -> np.ndarray:
    """The points of another annotation from ``(68, 2)`` points, ``(k, 2)``."""
    return np.array([points[list(of)].mean(axis=0) for of in MEANS[annotation]])


# Tiny sets of rendered faces

TRAIN, TEST = 6, 3
"""Faces of every tiny set that train, and that test."""

INVISIBLE = (12, 15)
"""Points of the first face of the tiny AFLW that cannot be seen."""


@dataclass(frozen=True)
class TinySet:
    """How a layout is written, and what a training on it is told.

    Attributes:
        write: Writes a tiny set into an empty folder.
        test: The split that papers report.
        rows: Rows of the table that papers print for that split; none for a set without landmarks.
    """

    write: Callable[[Path], None]
    test: str
    rows: tuple[str, ...] = ()


def _faces() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures and their 68 points: the first train, the others test."""
    drawn = [render_face(np.random.default_rng(seed), 96) for seed in range(TRAIN + TEST)]
    return [(face.image, face.points.astype(np.float64)) for face in drawn]


def _write_w300(root: Path) -> None:
    train = [f"{part}/{n}.jpg" for part in ("afw", "helen/trainset", "lfpw/trainset") for n in range(TRAIN // 3)]
    test = ["helen/testset/a.jpg", "lfpw/testset/b.png", "ibug/c.jpg"]
    for name, (image, points) in zip([*train, *test], _faces(), strict=True):
        write_annotated(root / name, image, points)


def _write_wflw(root: Path) -> None:
    lines = []
    for number, (image, points) in enumerate(_faces()):
        name = f"{number % 2}--Parade/{number}.jpg"
        write_picture(root / "WFLW_images" / name, image)
        attributes = [int(number == TRAIN), 0, 0, 0, 0, 0]
        lines.append(wflw_line(name, points_of("wflw98", points) - 0.5, attributes, points_box(points)))
    write_wflw_list(root, "train", lines[:TRAIN])
    write_wflw_list(root, "test", lines[TRAIN:])


def _write_cofw(root: Path) -> None:
    faces = _faces()
    phis, boxes = [], []
    for _, points in faces:
        x0, y0, x1, y1 = points_box(points)
        phis.append(np.concatenate([(points_of("cofw29", points) + 0.5).T.ravel(), np.zeros(29)]))
        boxes.append([x0 + 0.5, y0 + 0.5, x1 - x0, y1 - y0])
    for part, suffix, rows in (("train", "Tr", slice(TRAIN)), ("test", "T", slice(TRAIN, None))):
        images = [image for image, _ in faces[rows]]
        write_cofw(root / f"COFW_{part}_color.mat", suffix, images, np.array(phis[rows]), np.array(boxes[rows]))


def _write_aflw(root: Path) -> None:
    """The release states how many faces train; a tiny one needs ``aflw.TRAIN_FACES`` to be ``TRAIN``."""
    faces = _faces()
    names = [f"{(0, 2, 3)[number % 3]}/image{number:05d}.jpg" for number in range(len(faces))]
    for name, (image, _) in zip(names, faces, strict=True):
        write_picture(root / "flickr" / name, image)
    boxes = np.array([points_box(points) for _, points in faces], dtype=np.float64)
    visible = np.ones((len(faces), 19))
    visible[0, list(INVISIBLE)] = 0
    visible[TRAIN, 0] = 0
    variables = {
        "data": np.array([(points_of("aflw19", points) + 0.5).T.ravel() for _, points in faces]),
        "bbox": boxes[:, [0, 2, 1, 3]] + 0.5,
        "mask_new": visible,
        "ra": np.arange(1, len(faces) + 1, dtype=np.float64)[None],
        "nameList": names,
    }
    write_aflw_old(root / "AFLWinfo_release.mat", variables)


def _write_celeba(root: Path) -> None:
    rows = []
    for number, (image, points) in enumerate(_faces()):
        name = f"{number + 1:06d}.jpg"
        write_picture(root / "Img/img_celeba" / name, image)
        five = " ".join(f"{value:.0f}" for value in (points_of("celeba", points) - 0.5).ravel())
        # One picture validates: people are whole in their part.
        part = 1 if number == TRAIN - 1 else 2 if number >= TRAIN else 0
        rows.append(CelebaRow(name, part, 10 * part + number % 2, five))
    write_celeba_lists(root, rows)


def _write_helen(root: Path) -> None:
    faces = {
        f"{number}_1": ("test" if number >= TRAIN else f"train_{number % 4 + 1}", image, np.resize(points, (194, 2)))
        for number, (image, points) in enumerate(_faces())
    }
    write_helen(root, faces)


TINY_SETS: dict[str, TinySet] = {
    "wflw": TinySet(_write_wflw, "test", ("test", "pose")),
    "cofw": TinySet(_write_cofw, "test", ("test",)),
    "aflw": TinySet(_write_aflw, "full", ("full", "frontal")),
    "300w": TinySet(_write_w300, "full", ("full", "common", "challenge")),
    "celeba": TinySet(_write_celeba, "test"),
    "helen": TinySet(_write_helen, "test"),
}
"""Layout to its tiny set."""
