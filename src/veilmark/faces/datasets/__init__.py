"""Data sets by published layout: a plain dict from name to loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from veilmark.faces.datasets import aflw, celeba, cofw, folder, helen, w300, wflw, ytf68
from veilmark.faces.datasets.base import Face, FaceSet
from veilmark.run.errors import ConfigError

LAYOUTS: dict[str, Callable[[Path, str], FaceSet]] = {
    "ytf68": ytf68.load,
    "300w": w300.load,
    "wflw": wflw.load,
    "cofw": cofw.load,
    "aflw": aflw.load,
    "celeba": celeba.load,
    "helen": helen.load,
    "folder": folder.load,
}


def load_faces(layout: str, root: Path, split: str) -> FaceSet:
    """The faces of one split of a data set.

    Args:
        layout: Name of a published layout, a key of ``LAYOUTS``.
        root: Folder of the data set.
        split: Name of the split, as the layout defines it.

    Raises:
        ConfigError: If there is no such layout; the message lists the names.
        DataError: If a file is missing or broken; the message names it.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; known: {', '.join(sorted(LAYOUTS))}")
    return LAYOUTS[layout](Path(root), split)


__all__ = ["LAYOUTS", "Face", "FaceSet", "load_faces"]
