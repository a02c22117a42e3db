"""Video in and out: frames as RGB pictures, upright, and overlays back to a file that plays anywhere."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilmark.run.errors import DataError

VIDEO_SUFFIXES: tuple[str, ...] = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Suffixes by which a video is told from a picture, in lower case."""


class VideoError(DataError):
    """A video that cannot be read or written."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        index: Position in the video, from 0.
        seconds: When it is shown, from the start of the file.
        image: ``(h, w, 3)`` uint8 RGB, upright.
    """

    index: int
    seconds: float
    image: NDArray[np.uint8]


def is_video(path: str | Path) -> bool:
    """Whether the file's suffix is one of ``VIDEO_SUFFIXES``, in either case."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_frames(path: str | Path) -> Iterator[Frame]:
    """The frames of the first video stream, in the order shown, turned as the file says.

    Args:
        path: The video.

    Yields:
        Every frame that can be decoded, also of a video that breaks off: the error comes after them.

    Raises:
        VideoError: If the file is missing, no video, or damaged, or if PyAV is not installed.
    """
    path = Path(path)
    av = _pyav()
    index = 0
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        damage: Exception | None = None
        packets = container.demux(stream)
        ended = False
        while not ended:
            try:
                packet = next(packets)
                decoded = packet.decode()
                ended = packet.size == 0
            except StopIteration:
                break
            except av.FFmpegError as error:
                # What the decoder's threads still hold comes from before the break.
                damage, decoded, ended = error, _held_back(stream), True
            for picture in decoded:
                seconds = index / rate if picture.time is None else float(picture.time)
                yield Frame(index, seconds, _upright(picture))
                index += 1
    if damage is not None:
        raise VideoError(
            f"{path}: damaged after {index} frames ({damage.__class__.__name__}); encode or fetch the video again"
        ) from damage
    if index == 0:
        raise VideoError(f"{path}: holds no frame that can be decoded; encode or fetch the video again")


def frame_count(path: str | Path) -> int | None:
    """How many frames a progress bar should expect, without decoding.

    Args:
        path: The video.

    Returns:
        The count that the file states, else an estimate from its length and rate, else None.

    Raises:
        VideoError: If the file is missing or no video, or if PyAV is not installed.
    """
    av = _pyav()
    with _opened(Path(path)) as (container, stream):
        if stream.frames > 0:
            return int(stream.frames)
        if container.duration and stream.average_rate:
            return max(1, round(container.duration / av.time_base * float(stream.average_rate)))
        return None


class VideoWriter:
    """Writes H.264 (libx264, yuv420p) and renames the finished file to its name; on an error none is left.

    Example:
        >>> with VideoWriter("overlay.mp4", fps=25) as writer:  # doctest: +SKIP
        ...     writer.write(image)

    Args:
        path: The file; its folder must exist and its suffix name a container (``.mp4``, ``.mov``, ``.mkv``).
        fps: Frames per second, above 0.

    Raises:
        VideoError: If PyAV is not installed, ``fps`` is not above 0, or the file cannot be written.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self._path = Path(path)
        if not 0 < fps < float("inf"):
            raise VideoError(f"{self._path}: cannot write a video of {fps} frames per second; give a number above 0")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._av = _pyav()
        self._temporary = self._path.with_name(f".{secrets.token_hex(4)}-{self._path.name}")
        self._container: Any = None
        self._stream: Any = None
        self._size: tuple[int, int] | None = None
        self._written = 0

    def __enter__(self) -> VideoWriter:
        try:
            self._container = self._av.open(str(self._temporary), mode="w")
            self._stream = self._container.add_stream("libx264", rate=self._rate)
        except (OSError, ValueError, self._av.FFmpegError) as error:
            self._discard()
            raise self._failed(error) from error
        self._stream.pix_fmt = "yuv420p"
        return self

    def write(self, image: NDArray[np.uint8]) -> None:
        """Appends a frame.

        Args:
            image: ``(h, w, 3)`` uint8 RGB. The first frame sets the size; an odd width or height is padded by
                one repeated pixel at the right or the bottom, for yuv420p knows even sizes only.

        Raises:
            VideoError: If the size differs from the first frame's, or the encoder fails.
            ValueError: If ``image`` has another shape or dtype.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"expected a picture (h, w, 3) of uint8, got {image.shape} of {image.dtype}")
        height, width = image.shape[:2]
        if self._size is None:
            self._size = (height, width)
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
        if self._size != (height, width):
            raise VideoError(
                f"{self._path}: frame {self._written} is {width} x {height}, the first was "
                f"{self._size[1]} x {self._size[0]}; a video has one size"
            )
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame.pts, frame.time_base = self._written, 1 / self._rate
        try:
            self._container.mux(self._stream.encode(frame))
        except (OSError, ValueError, self._av.FFmpegError) as error:
            raise self._failed(error) from error
        self._written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                return
            if not self._written:
                raise VideoError(f"{self._path}: no frame was given, so no video is written")
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._temporary, self._path)
        except (OSError, ValueError, self._av.FFmpegError) as failure:
            raise self._failed(failure) from failure
        finally:
            self._discard()

    def _failed(self, error: Exception) -> VideoError:
        reason = " ".join(str(error).split())
        return VideoError(
            f"{self._path}: cannot be written ({reason}); use a .mp4 name in a folder that exists and has room"
        )

    def _discard(self) -> None:
        if self._container is not None:
            self._container.close()
        self._temporary.unlink(missing_ok=True)


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise VideoError("video needs PyAV; install it with: pip install 'veilmark[video]'") from error
    return av


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, closed afterwards."""
    av = _pyav()
    if path.is_dir():
        raise VideoError(f"{path}: a folder, where one video was expected; name a file inside it")
    if not path.exists():
        raise VideoError(f"{path}: no such file; check the path")
    try:
        container = av.open(str(path))
    except PermissionError as error:
        raise VideoError(f"{path}: no permission to read it; change its mode or its owner") from error
    except (OSError, ValueError, av.FFmpegError) as error:
        raise VideoError(f"{path}: not a video, or damaged at its start; encode or fetch it again") from error
    with container:
        if not container.streams.video:
            raise VideoError(f"{path}: holds no video stream, only sound or data; name another file")
        yield container, container.streams.video[0]


def _held_back(stream: Any) -> list[Any]:
    av = _pyav()
    try:
        return list(stream.codec_context.decode(None))
    except av.FFmpegError:
        return []


def _upright(picture: Any) -> NDArray[np.uint8]:
    image = picture.to_ndarray(format="rgb24")
    # The file states degrees counterclockwise; phones use quarter turns only.
    turned = np.rot90(image, k=round(picture.rotation / 90))
    return np.ascontiguousarray(turned, dtype=np.uint8)
