"""Labelled sets of small pictures, by the layout in which they are published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from veilmark.faces.datasets.source import Source
from veilmark.federation.image_readers import (
    Labelled,
    check_classes,
    class_names,
    read_cifar10_batches,
    read_class_folders,
    read_class_tar,
    read_idx_pair,
    read_svhn,
)
from veilmark.run.errors import ConfigError, DataError

Split = Literal["train", "test"]

SMALLEST_SIDE = 28
"""Side in pixels below which PPIDSG enlarges pictures (arXiv 2312.10380)."""

DIGITS = tuple("0123456789")
"""Classes of MNIST, SVHN and scikit-learn's digits."""

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Classes of Fashion-MNIST, in the order of their labels (Xiao, Rasul and Vollgraf 2017)."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Classes of CIFAR-10, in the order of their labels, which is that of the alphabet."""

SOURCES: dict[str, Source] = {
    "mnist": Source("MNIST", "http://yann.lecun.com/exdb/mnist/", "CC BY-SA 3.0"),
    "fashion-mnist": Source("Fashion-MNIST", "https://github.com/zalandoresearch/fashion-mnist", "MIT licence"),
    "cifar10": Source(
        "CIFAR-10 (the binary version)",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "no licence is stated; its authors ask to be cited",
    ),
    "svhn": Source(
        "SVHN (format 2, cropped digits)",
        "http://ufldl.stanford.edu/housenumbers/",
        "non-commercial use only",
    ),
}
"""Where the published sets come from."""

_CIFAR_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_PICKLES = ("cifar-10-batches-py", "data_batch_1", "test_batch", "cifar-10-python.tar.gz")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures of one size with a class each, in memory as they were published: nothing augments them.

    Attributes:
        name: The layout's name.
        images: ``(n, c, h, w)`` uint8; c is 1 (gray) or 3 (RGB).
        labels: ``(n,)`` int64 in 0 .. ``len(classes) - 1``.
        classes: Names of the classes, in the order of their labels.
        skipped: Pictures that could not be read, with the reason; by path.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.integer]) -> ImageSet:
        """Some of the pictures, copied, in the order of ``indices``; ``skipped`` stays with the whole set.

        Args:
            indices: ``(m,)`` whole numbers in 0 .. n - 1.
        """
        return ImageSet(self.name, self.images[indices], self.labels[indices], self.classes)


def _idx(name: str, classes: tuple[str, ...], data: Path, split: Split) -> ImageSet:
    prefix = {"train": "train", "test": "t10k"}[split]

    def place(what: str) -> Path:
        # Archives are also passed on with a dot in place of the hyphen.
        names = [f"{prefix}-{what.replace('-', mark, 1)}" for mark in ("-", ".")]
        return SOURCES[name].need_one([data / f"{stem}{suffix}" for stem in names for suffix in ("", ".gz")])

    found = read_idx_pair(place("images-idx3-ubyte"), place("labels-idx1-ubyte"), len(classes))
    return _made(name, found, classes)


def _mnist(data: Path, split: Split) -> ImageSet:
    return _idx("mnist", DIGITS, data, split)


def _fashion_mnist(data: Path, split: Split) -> ImageSet:
    return _idx("fashion-mnist", FASHION, data, split)


def _cifar10(data: Path, split: Split) -> ImageSet:
    source, batches = SOURCES["cifar10"], _CIFAR_FILES[split]
    places = [data / batches[0], data / "cifar-10-batches-bin" / batches[0], data / f"{split}.tar", data / split]
    pickled = next((data / name for name in _CIFAR_PICKLES if (data / name).exists()), None)
    if pickled and not any(place.exists() for place in places):
        raise DataError(
            f"{pickled} is the Python version of CIFAR-10: pickles, which can run any code when they are opened and "
            f"are never read; fetch the binary version (cifar-10-binary.tar.gz); {source}"
        )
    place = source.need_one(places)
    if place.suffix == ".bin":
        found = read_cifar10_batches([source.need(place.with_name(name)) for name in batches])
    elif place.suffix == ".tar":
        found = read_class_tar(place, CIFAR10)
    else:
        check_classes(class_names(place), CIFAR10, place)
        found = read_class_folders(place, CIFAR10, colour=True)
    if found.images.shape[1:] != (3, 32, 32):
        height, width = found.images.shape[2:]
        raise DataError(f"{place}: its pictures are {width} x {height} pixels; those of CIFAR-10 are 32 x 32")
    return _made("cifar10", found, CIFAR10)


def _svhn(data: Path, split: Split) -> ImageSet:
    return _made("svhn", read_svhn(SOURCES["svhn"].need(data / f"{split}_32x32.mat")), DIGITS)


def _folder(data: Path, split: Split) -> ImageSet:
    # The classes are those of train/ for both splits, so that a label means the same in both.
    classes = class_names(data / "train")
    if len(classes) < 2:
        raise DataError(
            f"{data / 'train'} has {len(classes)} class folders; layout folder reads train/CLASS/*.png and "
            "test/CLASS/*.png (or other pictures) with 2 classes or more"
        )
    given = class_names(data / split)
    if not given:
        raise DataError(f"{data / split} has no class folders; put pictures there, in one folder per class")
    unknown = sorted(set(given) - set(classes))
    if unknown:
        raise DataError(f"{data / split / unknown[0]} is no class of {data / 'train'}, which has {', '.join(classes)}")
    return _made("folder", read_class_folders(data / split, classes), tuple(classes))


def _digits(_: Path, split: Split) -> ImageSet:
    """UCI's hand-written digits (Alpaydin and Kaynak 1998), as scikit-learn ships them: the last fifth is test."""
    # Where it is needed: scikit-learn takes 80 MB that a client may not have to spare.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    chosen = []
    for label in range(len(DIGITS)):
        members = np.flatnonzero(labels == label)
        cut = len(members) - len(members) // 5
        chosen.append(members[:cut] if split == "train" else members[cut:])
    rows = np.sort(np.concatenate(chosen))
    return ImageSet("digits", images[rows], labels[rows], DIGITS)


def _made(name: str, found: Labelled, classes: tuple[str, ...]) -> ImageSet:
    return ImageSet(name, found.images, found.labels, classes, found.skipped)


LAYOUTS: dict[str, Callable[[Path, Split], ImageSet]] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "svhn": _svhn,
    "folder": _folder,
    "digits": _digits,
}
"""Readers by layout."""

BUNDLED = ("digits",)
"""Layouts that come with Veilmark's dependencies and are read from no folder."""


def load_image_set(layout: str, data: Path | None, split: Split) -> ImageSet:
    """One split of a set.

    Args:
        layout: A key of ``LAYOUTS``.
        data: Folder of the set; None for those of ``BUNDLED``.
        split: ``train`` or ``test``.

    Raises:
        ConfigError: If there is no such layout or split (the message lists the names), a folder is needed and
            not given, or given and not read.
        DataError: If a file is missing, damaged or inconsistent; the message names it, and for a published set
            that is not there its home page and terms.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"image sets have no split {split!r}; known: train, test")
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown image set {layout!r}; known: {', '.join(sorted(LAYOUTS))}")
    if data is None and layout not in BUNDLED:
        raise ConfigError(
            f"image set {layout!r} is read from a folder, and none is given; give it with --data, or use digits"
        )
    if data is not None and layout in BUNDLED:
        raise ConfigError(f"{layout} is bundled and reads no folder, but {data} is given; name that folder's layout")
    return LAYOUTS[layout](Path(data or "."), split)


def resized(images: NDArray[np.uint8], side: int = SMALLEST_SIDE) -> NDArray[np.uint8]:
    """Small pictures enlarged, as PPIDSG's networks need them; others as they are.

    OpenCV's bilinear interpolation in its bit-exact form: the same values on every machine.

    Args:
        images: ``(n, c, h, w)`` uint8.
        side: Pixels that the shorter side has at least; the longer one keeps its proportion.

    Returns:
        ``(n, c, h', w')`` uint8; ``images`` itself if they are large enough.
    """
    count, channels, height, width = images.shape
    shorter = min(height, width)
    if shorter >= side:
        return images
    size = (round(width * side / shorter), round(height * side / shorter))
    out = np.empty((count, channels, size[1], size[0]), dtype=np.uint8)
    for plane, target in zip(images.reshape(-1, height, width), out.reshape(-1, size[1], size[0]), strict=True):
        cv2.resize(plane, size, dst=target, interpolation=cv2.INTER_LINEAR_EXACT)
    return out
