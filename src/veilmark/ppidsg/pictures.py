"""Picture files scrambled and unscrambled: ``veilmark scramble`` and ``veilmark unscramble``.

What unscrambling needs beside the secret travels in the PNG as text: block, steps and true size.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from veilmark.faces.images import ImageError, list_images, pixel_kind, png_notes, read_image, write_png
from veilmark.ppidsg.cipher import STEPS, Cipher
from veilmark.ppidsg.secret import Secret
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.progress import progress_bar

NOTE = "veilmark-cipher"
"""Keyword of the PNG's text."""


class Note(BaseModel):
    """What a scrambled PNG says about itself; nothing in it is secret.

    Attributes:
        version: Of this format.
        block: Side of a block in pixels.
        steps: The steps taken.
        size: Height and width of the picture before its edges were repeated.
        check: Tells which secret it was (:meth:`veilmark.ppidsg.secret.Secret.check`).
        image: The picture's own random name, in hexadecimal, where every picture is scrambled differently.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Literal[1] = 1
    block: int
    steps: tuple[str, ...]
    size: tuple[int, int]
    check: str
    image: str | None = None

    @property
    def names(self) -> list[bytes] | None:
        """The picture's name as :meth:`veilmark.ppidsg.cipher.Cipher.scramble` takes it."""
        return None if self.image is None else [bytes.fromhex(self.image)]


@dataclass
class Written:
    """What became of the pictures.

    Attributes:
        files: Files written.
        skipped: Why a picture was left out, by its path.
    """

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def scramble_files(
    inputs: Sequence[str | Path],
    secret: Secret,
    out: Path,
    *,
    block: int = 4,
    steps: Sequence[str] = STEPS,
    per_image: bool = False,
) -> Written:
    """Scrambles pictures into PNG files.

    Args:
        inputs: Files, folders, patterns.
        secret: What the subkeys are expanded from.
        out: A ``.png`` for one picture, a folder for any number.
        block: Side of a block in pixels.
        steps: The steps taken.
        per_image: Whether every picture gets subkeys of its own, by a random name that travels in the file.

    Raises:
        ConfigError: If block, steps or ``out`` do not fit; nothing has been written then.
        DataError: If an input does not exist.
    """
    cipher = Cipher(secret, block, steps)

    def work(path: Path) -> tuple[NDArray[np.uint8], dict[str, str]]:
        picture = _read(path)
        height, width = picture.shape[:2]
        name = secrets.token_hex(16) if per_image else None
        note = Note(block=block, steps=cipher.steps, size=(height, width), check=secret.check(), image=name)
        scrambled = cipher.scramble(_to_batch(picture), note.names)
        return _from_batch(scrambled), {NOTE: note.model_dump_json(exclude_none=True)}

    return _each(inputs, out, work, "scrambling")


def unscramble_files(inputs: Sequence[str | Path], secret: Secret, out: Path) -> Written:
    """Gives back the pictures that :func:`scramble_files` wrote, value by value.

    Args:
        inputs: Files, folders, patterns.
        secret: The secret that they were scrambled with.
        out: A ``.png`` for one picture, a folder for any number.

    Raises:
        ConfigError: If ``out`` does not fit; nothing has been written then.
        DataError: If an input does not exist.
    """

    def work(path: Path) -> tuple[NDArray[np.uint8], dict[str, str]]:
        text = png_notes(path).get(NOTE)
        if text is None:
            raise ImageError(f"{path}: not written by veilmark scramble, or its PNG texts were stripped on the way")
        try:
            note = Note.model_validate(json.loads(text))
            cipher = Cipher(secret, note.block, note.steps)
            names = note.names
        except (ValidationError, ValueError, ConfigError):
            raise ImageError(f"{path}: its note {text[:80]!r} is damaged, or from another version") from None
        if note.check != secret.check():
            raise ImageError(
                f"{path}: scrambled with another secret (check {note.check}; --key has {secret.check()}); give that one"
            )
        try:
            return _from_batch(cipher.unscramble(_to_batch(_read(path)), note.size, names)), {}
        except ValueError as error:
            raise ImageError(f"{path}: resized or cropped since it was scrambled ({error})") from None

    return _each(inputs, out, work, "unscrambling")


def _each(
    inputs: Sequence[str | Path],
    out: Path,
    work: Callable[[Path], tuple[NDArray[np.uint8], dict[str, str]]],
    what: str,
) -> Written:
    """Works on every picture; one that cannot be read is skipped."""
    paths = list_images(inputs)
    targets = _targets(paths, out)
    written = Written()
    with progress_bar("pictures") as bar:
        task = bar.add_task(what, total=len(paths), note="")
        for path, target in zip(paths, targets, strict=True):
            try:
                picture, notes = work(path)
            except ImageError as error:
                written.skipped[str(path)] = str(error)
            else:
                write_png(target, picture, notes)
                written.files.append(target)
            bar.advance(task)
    return written


def _targets(paths: Sequence[Path], out: Path) -> list[Path]:
    """Where every picture goes; checked before any work, so that none is lost half way."""
    if out.suffix and not out.is_dir():
        if out.suffix.lower() != ".png":
            raise ConfigError(f"--out {out}: scrambled pictures survive in PNG only; name a .png file or a folder")
        if len(paths) != 1:
            raise ConfigError(f"--out {out} is one file, but there are {len(paths)} pictures; name a folder")
        targets = [out]
    else:
        targets = [out / f"{path.stem}.png" for path in paths]
    taken: dict[Path, Path] = {}
    own = {path.resolve() for path in paths}
    for path, target in zip(paths, targets, strict=True):
        if target in taken:
            raise ConfigError(f"{taken[target]} and {path} would both become {target}; give them in two commands")
        if target.resolve() in own:
            raise ConfigError(f"{target} is one of the pictures themselves; choose another --out")
        taken[target] = path
    try:
        targets[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{targets[0].parent}: cannot be made ({error.strerror}); choose another --out") from None
    return targets


def _read(path: Path) -> NDArray[np.uint8]:
    kind = pixel_kind(path)
    if kind == "other":
        raise ImageError(
            f"{path}: has transparency, 16 bits or CMYK, which would not come back; convert it to 8-bit RGB or gray"
        )
    picture = read_image(path)
    return picture[:, :, :1] if kind == "gray" else picture


def _to_batch(picture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


def _from_batch(batch: torch.Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(batch[0].permute(1, 2, 0).numpy())
