"""Videos in and out, frame by frame, through PyAV (an optional extra)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from veilmark.run.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
"""Endings of the files that are taken for videos."""

FALLBACK_RATE = Fraction(25)
"""Frames per second of a video that does not say."""


class VideoError(DataError):
    """A video that cannot be read or written; the message names it."""


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        index: Its number, from 0.
        seconds: When it is shown.
        image: ``(h, w, 3)`` uint8 RGB, upright: a rotation noted by the camera is applied. All frames of a
            video have the size of its first one.
    """

    index: int
    seconds: float
    image: NDArray[np.uint8]


def _load_av() -> ModuleType:
    """PyAV, or a clear line about how to get it."""
    try:
        import av
    except ImportError:
        raise VideoError("videos need PyAV; install it with: pip install 'veilmark[video]'") from None
    module: ModuleType = av
    return module


def is_video(path: str | Path) -> bool:
    """Whether the file's ending is that of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; every error inside that is the file's becomes a VideoError."""
    av = _load_av()
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no pictures, only {', '.join({s.type for s in container.streams})}")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise VideoError(f"{path}: damaged or no video ({reason}); get the file again or convert it") from None


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The decoder's frames; where the file breaks, those that it still holds, then the error."""
    av = _load_av()
    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        # Emptying the decoder may fail as well; the first error is the one to report.
        with suppress(av.FFmpegError):
            yield from stream.codec_context.decode(None)
        raise error from None


def read_frames(path: str | Path) -> Iterator[Frame]:
    """The frames of a video, one after the other: memory for one frame is enough.

    Args:
        path: The file; its first video stream is read.

    Yields:
        Frames in the order in which they are shown. Of a broken video, those before the break come first,
        then the error is raised.

    Raises:
        VideoError: If the file is missing, is no video, or breaks off; if PyAV is not installed.
    """
    path = Path(path)
    rate = frame_rate(path)
    with _opened(path) as (container, stream):
        size: dict[str, int] = {}
        turns = index = 0
        for index, frame in enumerate(_decoded(container, stream)):
            if not size:
                size = {"width": frame.width, "height": frame.height}
                # Rotation counts degrees counter-clockwise, as rot90 does.
                turns = round(frame.rotation / 90) % 4
            # A stream may change its size midway; like players, keep to that of the first frame.
            image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24", **size), turns))
            seconds = index / rate if frame.time is None else frame.time
            yield Frame(index, float(seconds), image)
        if not size:
            raise VideoError(f"{path}: holds no frame that can be decoded; get the file again or convert it")


def frame_rate(path: str | Path) -> float:
    """Mean frames per second; 25 where the file does not say.

    Raises:
        VideoError: As :func:`read_frames`, for what the header shows.
    """
    with _opened(Path(path)) as (_, stream):
        return float(stream.average_rate or stream.guessed_rate or FALLBACK_RATE)


def frame_count(path: str | Path) -> int | None:
    """How many frames to expect, for progress bars: counted or estimated from the length; None if unknown.

    Raises:
        VideoError: As :func:`read_frames`, for what the header shows.
    """
    with _opened(Path(path)) as (container, stream):
        if stream.frames:
            return int(stream.frames)
        # Containers count in microseconds.
        seconds = container.duration / 1e6 if container.duration else 0.0
        rate = stream.average_rate or stream.guessed_rate
        return round(seconds * float(rate)) or None if rate else None


class VideoWriter:
    """Writes an H.264 MP4, as a context manager; the file appears whole when the block ends without an error.

    Odd widths and heights grow by one repeated row or column, which yuv420p needs. Without a single frame, no
    file is written.

    Example:
        >>> with VideoWriter("overlay.mp4", fps=25) as video:  # doctest: +SKIP
        ...     video.write(image)

    Args:
        path: The file to write; an existing one is replaced.
        fps: Frames per second, above 0.

    Raises:
        VideoError: If PyAV is not installed, or ``fps`` is not above 0.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path = Path(path)
        if not 0 < fps < 1000:
            raise VideoError(f"{self.path}: cannot write {fps:g} frames per second; allowed: above 0, below 1000")
        self._av = _load_av()
        self._rate = Fraction(fps).limit_denominator(1001)
        # PyAV picks the container by the ending, so the temporary name keeps it.
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.tmp.mp4")
        self._container: Any = None
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def write(self, image: NDArray[np.uint8]) -> None:
        """Appends one frame.

        Args:
            image: ``(h, w, 3)`` uint8 RGB, of the first frame's size.

        Raises:
            VideoError: If the size is not the first frame's, or the file cannot be written.
        """
        try:
            if self._container is None:
                self._start(image)
            if image.shape != self._shape:
                raise VideoError(
                    f"{self.path}: a frame of {image.shape[1]} x {image.shape[0]} in a video of "
                    f"{self._shape[1]} x {self._shape[0]}; all frames must have one size"
                )
            even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            self._container.mux(self._stream.encode(frame))
        except (OSError, self._av.FFmpegError) as error:
            raise VideoError(f"{self.path}: cannot be written ({error})") from None

    def _start(self, image: NDArray[np.uint8]) -> None:
        self._container = self._av.open(str(self._temporary), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "18"})
        self._stream.width, self._stream.height = (side + side % 2 for side in image.shape[1::-1])
        self._stream.pix_fmt = "yuv420p"
        self._shape = image.shape

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        except (OSError, self._av.FFmpegError) as failure:
            raise VideoError(f"{self.path}: cannot be written ({failure})") from error
        finally:
            self._temporary.unlink(missing_ok=True)
