"""Pictures on disk: found, read as 8-bit RGB whatever their kind, and written so that no half file is seen."""

from __future__ import annotations

import glob
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from veilmark.run.errors import DataError

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Suffixes by which pictures are recognised in folders and globs, in lower case."""

LARGEST_IMAGE = 100_000_000
"""Pixels beyond which a picture is refused before it is decoded."""

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
_ORIENTATION = 0x0112
# What Pillow's decoders were seen to raise on damaged files; anything else is a defect and should surface.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)


class ImageError(DataError):
    """A picture that cannot be read or written."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """A picture as it is meant to be looked at.

    JPEG, PNG, WebP and BMP are told apart by content, never by name. EXIF rotation is applied; grayscale,
    palette and CMYK become RGB; 16 bits are scaled to 8; transparency is laid on white. Of an animation the
    first frame is returned. Colour profiles are not applied.

    Args:
        path: The file.

    Returns:
        ``(h, w, 3)`` uint8 RGB.

    Raises:
        ImageError: If the file is missing, empty, a folder, not readable, not a picture of these formats,
            truncated, or of more than 100 megapixels (which is checked on the header, before decoding).
    """
    path = Path(path)
    with _header(path) as image:
        _check_pixels(path, image)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the upright picture, from the header alone.

    Raises:
        ImageError: As :func:`read_image`, for what the header shows.
    """
    with _header(Path(path)) as image:
        width, height = image.size
        # EXIF orientations 5 to 8 swap the axes.
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def pixel_kind(path: str | Path) -> Literal["gray", "rgb", "other"]:
    """What the pixels of a file are, from the header alone: ``other`` is what 8-bit RGB does not hold whole.

    That is 16 bits, transparency, CMYK.

    Raises:
        ImageError: As :func:`read_image`, for what the header shows.
    """
    with _header(Path(path)) as image:
        if image.has_transparency_data:
            return "other"
        kinds: dict[str, Literal["gray", "rgb"]] = {"1": "gray", "L": "gray", "RGB": "rgb", "P": "rgb"}
        return kinds.get(image.mode, "other")


def png_notes(path: str | Path) -> dict[str, str]:
    """The texts that a PNG carries beside its pixels, by keyword; of other formats, none.

    Raises:
        ImageError: As :func:`read_image`.
    """
    path = Path(path)
    with _header(path) as image:
        _check_pixels(path, image)
        # Texts may stand behind the pixels.
        image.load()
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}


def list_images(inputs: Iterable[str | Path]) -> list[Path]:
    """The pictures that a user named.

    Args:
        inputs: Each a file, which is taken whatever its suffix; a folder, which is searched with all its
            subfolders for the suffixes of ``IMAGE_SUFFIXES`` in either case, names that begin with a dot left
            out; or a glob pattern (``**`` crosses folders), whose matches are filtered by suffix too.

    Returns:
        Sorted paths, each file once however often it was named.

    Raises:
        DataError: If nothing was named, a path does not exist, or a folder or pattern holds no picture.
    """
    found: dict[Path, Path] = {}
    nothing_named = True
    for given in inputs:
        nothing_named = False
        for path in _expand(given):
            found.setdefault(path.resolve(), path)
    if nothing_named:
        raise DataError(f"no picture was named; give files, folders or patterns ({_accepted()})")
    return sorted(found.values())


def write_png(path: str | Path, picture: NDArray[np.uint8], notes: Mapping[str, str] | None = None) -> None:
    """Writes a PNG under a temporary name, then renames it: the name never holds half a file.

    Args:
        path: The file; its folder must exist. An older file is replaced.
        picture: ``(h, w, 3)`` uint8 RGB, or ``(h, w, 1)`` gray.
        notes: Texts that travel in the file, by keyword.

    Raises:
        ImageError: If the file cannot be written there.
        ValueError: If ``picture`` has another shape or dtype.
    """
    texts = PngInfo()
    for key, value in (notes or {}).items():
        texts.add_text(key, value)
    _write(Path(path), picture, "PNG", channels=(1, 3), pnginfo=texts)


def write_image(path: str | Path, rgb: NDArray[np.uint8]) -> None:
    """Writes a picture in the format that the suffix names, as :func:`write_png` does.

    JPEG is written at quality 95 with full-resolution colour, WebP without loss.

    Args:
        path: The file, with one of ``IMAGE_SUFFIXES``.
        rgb: ``(h, w, 3)`` uint8 RGB.

    Raises:
        ImageError: If the suffix is none of these, or the file cannot be written there.
        ValueError: If ``rgb`` has another shape or dtype.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ImageError(f"{path}: cannot write a picture with suffix {path.suffix!r}; use {_accepted()}")
    _write(path, rgb, _FORMATS[path.suffix.lower()])


def _accepted() -> str:
    return ", ".join(IMAGE_SUFFIXES)


def _check_file(path: Path) -> None:
    try:
        if not path.exists():
            raise ImageError(f"{path}: no such file; check the path")
        if path.is_dir():
            raise ImageError(f"{path}: a folder, where one picture was expected; name a file inside it")
        if not path.is_file():
            raise ImageError(f"{path}: not a regular file; save the picture to a file first")
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: empty (0 bytes); make or fetch the file again")
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to look into its folder; change the folder's mode") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{str(path)!r}: not a usable path ({error}); check the path") from error


def _open(path: Path, file: object) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(file, formats=sorted(set(_FORMATS.values())))  # type: ignore[arg-type]
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture that Veilmark reads; convert it to JPEG, PNG, WebP or BMP") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "by its header, it") from error


@contextmanager
def _header(path: Path) -> Iterator[Image.Image]:
    """An open picture, of which only the header has been read; damage that comes to light becomes an ImageError."""
    _check_file(path)
    try:
        with path.open("rb") as file, _open(path, file) as image:
            yield image
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to read it; change its mode or its owner") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: truncated or damaged ({reason}); make or fetch the file again") from error


def _check_pixels(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > LARGEST_IMAGE:
        raise _too_large(path, f"{width} x {height}")


def _too_large(path: Path, what: str) -> ImageError:
    return ImageError(f"{path}: {what} has more than 100 megapixels; crop or reduce it first")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255; 65535 / 257 = 255 exactly.
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    # A copy, for Pillow hands out read-only memory.
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _expand(given: str | Path) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        inside = [
            entry
            for entry in path.rglob("*")
            if not any(part.startswith(".") for part in entry.relative_to(path).parts)
        ]
        pictures = _pictures(inside)
        if not pictures:
            raise DataError(f"{path}: no picture in this folder or its subfolders; accepted: {_accepted()}")
        return pictures
    # Before the glob, so that a file named a[1].jpg can be named as it is.
    if path.exists():
        return [path]
    if not glob.has_magic(str(given)):
        raise DataError(f"{path}: no such file or folder; check the path")
    pictures = _pictures(Path(match) for match in glob.iglob(str(given), recursive=True))
    if not pictures:
        raise DataError(f"{given}: no picture matches this pattern; accepted: {_accepted()}")
    return pictures


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _write(path: Path, picture: NDArray[np.uint8], kind: str, channels: tuple[int, ...] = (3,), **more: Any) -> None:
    if picture.ndim != 3 or picture.shape[2] not in channels or picture.dtype != np.uint8 or picture.size == 0:
        wanted = " or ".join(map(str, channels))
        raise ValueError(f"expected a picture (h, w, {wanted}) of uint8, got {picture.shape} of {picture.dtype}")
    choices: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    options = choices.get(kind, {}) | more
    # In the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            pixels = np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
            Image.fromarray(pixels).save(file, format=kind, **options)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{path}: cannot be written ({reason}); check that the folder exists and has room") from error
    finally:
        temporary.unlink(missing_ok=True)
