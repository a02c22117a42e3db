"""Labelled pictures read from the file formats in which they are published; pickles are never opened."""

from __future__ import annotations

import gzip
import math
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmark.faces.datasets.matlab import read_array
from veilmark.faces.images import IMAGE_SUFFIXES, ImageError, list_images, pixel_kind, read_image
from veilmark.run.errors import DataError

_GZIP = b"\x1f\x8b"
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_RECORD = 1 + math.prod(_CIFAR_SHAPE)
# A tar ends with two blocks of zeros; a shorter file can end between two members, which tarfile takes for the end.
_TAR_END = 1024


@dataclass(frozen=True, eq=False)
class Labelled:
    """What a reader found.

    Attributes:
        images: ``(n, c, h, w)`` uint8, RGB or gray.
        labels: ``(n,)`` int64, from 0.
        skipped: Why a picture was left out, by its path.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    skipped: dict[str, str] = field(default_factory=dict)


def check_labels(labels: NDArray[Any], first: int, last: int, where: Path) -> NDArray[np.int64]:
    """The labels as int64, if all are in range.

    Args:
        labels: ``(n,)`` numbers, which must be whole.
        first: The smallest label allowed.
        last: The largest label allowed.
        where: Their file, for the message.

    Raises:
        DataError: If one is out of range; the message names the file, the first such image and its label.
    """
    wrong = np.flatnonzero((labels < first) | (labels > last) | (labels % 1 != 0))
    if wrong.size:
        raise DataError(
            f"{where}: image {wrong[0]} (counted from 0) has label {labels[wrong[0]]}, none of {first} to {last} "
            f"({wrong.size} such labels); is it the published file?"
        )
    return labels.astype(np.int64)


def _read_bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked if they are gzip's, whatever the name says: browsers unpack and keep the name."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read, or is cut off or damaged ({error}); fetch it again") from error


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """A file of MNIST's IDX format (LeCun, Cortes and Burges), of unsigned bytes, plain or gzipped.

    Two zero bytes, the type (8: unsigned byte), the number of axes; the length of each axis as a big-endian
    32-bit number; the values.

    Args:
        path: The file.
        axes: How many axes are expected: 3 for pictures, 1 for labels.

    Returns:
        The values, with ``axes`` axes, none of them empty.

    Raises:
        DataError: If the magic number or the length is another; the message names the file and the numbers.
    """
    content = _read_bytes(path)
    start = 4 + 4 * axes
    expected = 0x0800 + axes
    magic = int.from_bytes(content[:4], "big")
    if len(content) < start or magic != expected:
        raise DataError(
            f"{path} begins with {magic} and has {len(content)} bytes; an IDX file of unsigned bytes with {axes} "
            f"axes begins with {expected}; are images and labels swapped, or is it not the published file?"
        )
    shape = tuple(np.frombuffer(content, ">u4", axes, offset=4).tolist())
    values = math.prod(shape)
    if values == 0 or len(content) != start + values:
        raise DataError(
            f"{path} has {len(content) - start} values, but its header says {' x '.join(map(str, shape))} = {values}; "
            "fetch it again"
        )
    # A copy, for memory that belongs to bytes is read-only.
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def read_idx_pair(images: Path, labels: Path, classes: int) -> Labelled:
    """Gray pictures and their labels from two IDX files.

    Args:
        images: The file of pictures, ``(n, h, w)``.
        labels: The file of labels, ``(n,)``.
        classes: How many classes there are.

    Raises:
        DataError: As :func:`read_idx`; if the counts differ; if a label is out of range.
    """
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(numbers):
        raise DataError(
            f"{images} has {len(pixels)} images, but {labels} has {len(numbers)} labels; are they of one split?"
        )
    return Labelled(pixels[:, None], check_labels(numbers, 0, classes - 1, labels))


def read_cifar10_batches(paths: Sequence[Path]) -> Labelled:
    """Files of the binary version of CIFAR-10 (Krizhevsky 2009), one after the other.

    A record is one byte of label, then 1,024 bytes of red, of green and of blue, row by row.

    Args:
        paths: The batches.

    Raises:
        DataError: If a file is no whole number of records, or a label is not in 0..9.
    """
    batches = []
    labels = []
    for path in paths:
        content = np.frombuffer(_read_bytes(path), np.uint8)
        if content.size == 0 or content.size % _CIFAR_RECORD:
            raise DataError(
                f"{path} has {content.size} bytes, which is no whole number of records of {_CIFAR_RECORD} bytes; "
                "fetch the binary version again"
            )
        records = content.reshape(-1, _CIFAR_RECORD)
        labels.append(check_labels(records[:, 0], 0, 9, path))
        batches.append(records[:, 1:].reshape(-1, *_CIFAR_SHAPE))
    return Labelled(np.concatenate(batches), np.concatenate(labels))


def read_svhn(path: Path) -> Labelled:
    """A file of SVHN's cropped digits (Netzer et al. 2011), in MATLAB's format.

    ``X`` is ``(32, 32, 3, n)``; ``y`` is ``(n, 1)`` with 1 to 9 for these digits and 10 for the digit 0, which
    becomes label 0.

    Args:
        path: ``train_32x32.mat`` or ``test_32x32.mat``.

    Raises:
        DataError: If the file is damaged, shapes or counts are others, or a label is not in 1..10.
    """
    try:
        pixels, numbers = read_array(path, "X"), read_array(path, "y").ravel()
    # What scipy was seen to raise on files cut off, beside what read_array names.
    except (zlib.error, IndexError) as error:
        raise DataError(f"{path} is cut off or damaged ({error}); fetch it again") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: 'X' is {pixels.dtype} of shape {pixels.shape}; expected uint8 (32, 32, 3, n)")
    if len(numbers) != pixels.shape[3]:
        raise DataError(f"{path}: 'X' has {pixels.shape[3]} images, but 'y' has {len(numbers)} labels")
    digits = check_labels(numbers, 1, 10, path) % 10
    return Labelled(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), digits)


def class_names(root: Path) -> list[str]:
    """Sorted names of the folders in ``root``, hidden ones left out; empty if ``root`` is no folder."""
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def read_class_folders(root: Path, classes: Sequence[str], *, colour: bool = False) -> Labelled:
    """Pictures in one folder per class, sorted by class and name.

    Unreadable pictures are skipped. Gray pictures keep one channel; 16 bits, transparency and CMYK become RGB as
    in :func:`veilmark.faces.images.read_image`.

    Args:
        root: The folder of the classes' folders; one may lack, and then has no pictures.
        classes: Names of the classes; a picture's label is the place of its class.
        colour: Whether gray pictures become RGB.

    Raises:
        DataError: If a class folder holds no picture, no picture at all can be read, or one differs from the
            first in size or channels; the message names it.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    skipped: dict[str, str] = {}
    first: Path | None = None
    for label, name in enumerate(classes):
        for path in list_images([root / name]) if (root / name).is_dir() else []:
            try:
                picture = read_image(path)
                gray = not colour and pixel_kind(path) == "gray"
            except ImageError as error:
                skipped[str(path)] = str(error)
                continue
            image = np.ascontiguousarray((picture[:, :, :1] if gray else picture).transpose(2, 0, 1))
            first = first or path
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{path} is {_kind(image)}, but {first} is {_kind(images[0])}; all pictures of a set have one "
                    "size and are all gray or all colour: resize or convert them first"
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise DataError(f"{root}: no picture could be read ({len(skipped)} skipped); put one folder per class there")
    return Labelled(np.stack(images), np.array(labels, dtype=np.int64), skipped)


def _kind(image: NDArray[np.uint8]) -> str:
    channels, height, width = image.shape
    return f"{width} x {height} {'gray' if channels == 1 else 'colour'}"


def read_class_tar(path: Path, classes: Sequence[str]) -> Labelled:
    """Colour pictures in a tar of one folder per class, at any depth, as :func:`read_class_folders`.

    The tar is unpacked into a temporary folder, so that every picture is read in one way.

    Args:
        path: The tar, not compressed.
        classes: Names of the classes, all of which must be there and no others.

    Raises:
        DataError: As :func:`read_class_folders`; if the tar is damaged or cut off, or its folders are others.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _unpack(path, folder)
        check_classes(class_names(folder), classes, path)
        try:
            found = read_class_folders(folder, classes, colour=True)
        except DataError as error:
            # The folder is gone when this is read; the tar is what the user knows.
            raise DataError(str(error).replace(scratch, str(path))) from error
    skipped = {name.replace(scratch, str(path)): why.replace(scratch, str(path)) for name, why in found.skipped.items()}
    return Labelled(found.images, found.labels, skipped)


def check_classes(found: Sequence[str], classes: Sequence[str], where: Path) -> None:
    """Refuses folders that are not those of the published classes.

    Raises:
        DataError: If one lacks or is too many; the message names all of these.
    """
    missing, unknown = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if missing or unknown:
        raise DataError(
            f"{where}: expected the folders {', '.join(sorted(classes))}; missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}"
        )


def _unpack(path: Path, folder: Path) -> None:
    """Writes ``<folder>/<class>/<name>`` for each picture; no other part of a member's name is used."""
    above: PurePosixPath | None = None
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAR_END))
            if any(file.read()):
                raise DataError(f"{path} does not end as a tar does: cut off or compressed; fetch or unpack it again")
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name.lstrip("/"))
                if not member.isfile() or name.suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                if len(name.parts) < 2 or any(part.startswith(".") for part in name.parts[-2:]):
                    continue
                above = above or name.parent.parent
                if name.parent.parent != above:
                    raise DataError(f"{path} has class folders in {above} and in {name.parent.parent}; keep one split")
                content = tar.extractfile(member)
                target = folder / name.parent.name / name.name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content.read() if content else b"")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is no readable tar, or there is no room to unpack it ({error})") from error
