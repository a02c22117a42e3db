"""``veilmark detect``: many pictures and videos in, files of landmarks out; one bad file stops nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from veilmark.faces.crop import BoxError
from veilmark.faces.images import ImageError, list_images, read_image, write_png
from veilmark.faces.video import Frame, VideoError, VideoWriter, frame_count, frame_rate, is_video, read_frames
from veilmark.landmarks.draw import draw_landmarks
from veilmark.landmarks.formats import FORMATS, Record, json_lines
from veilmark.run.errors import DataError, VeilmarkError
from veilmark.run.progress import progress_bar
from veilmark.sht.landmarker import Detection, Landmarker

TOGETHER = 16
"""Pictures or frames that are decoded before the network looks at all of their faces."""


@dataclass
class DetectionSummary:
    """What became of the files that a user named.

    Attributes:
        pictures: Pictures and frames that were read.
        faces: Faces found in them.
        without: Names of pictures, and of videos, in which no face was found.
        skipped: Files that could not be read, with the reason.
        records: The landmarks of every picture (those of videos are in files of their own).
    """

    pictures: int = 0
    faces: int = 0
    without: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


def _named(inputs: Iterable[str]) -> tuple[list[tuple[Path, str]], list[Path], dict[str, str]]:
    """Pictures with the names they get in the results, videos, and inputs that name nothing."""
    pictures: dict[Path, str] = {}
    videos: list[Path] = []
    missing: dict[str, str] = {}
    for item in inputs:
        if is_video(item) and Path(item).is_file():
            videos.append(Path(item))
            continue
        folder = Path(item) if Path(item).is_dir() else None
        try:
            found = list_images([item])
        except DataError as error:
            missing[item] = str(error)
            if folder is None:
                continue
            found = []
        for path in found:
            name = path.relative_to(folder).as_posix() if folder else path.name
            # Two folders may hold pictures of one name: the whole path tells them apart.
            pictures.setdefault(path, name if name not in pictures.values() else path.as_posix().lstrip("/"))
        if folder is not None:
            inside = sorted(path for path in folder.rglob("*") if is_video(path) and path.is_file())
            videos.extend(inside)
            if inside:
                missing.pop(item, None)
    return list(pictures.items()), videos, missing


class _Files:
    """Writes what was asked for besides the points, under the pictures' names."""

    def __init__(self, out: Path, draw: bool, hallucinate: bool) -> None:
        self.out, self.draw, self.hallucinate = out, draw, hallucinate

    def picture(self, name: str, image: NDArray[np.uint8], detection: Detection) -> None:
        """The overlay and the hallucinated faces of one picture."""
        stem = Path(name).with_suffix("").as_posix()
        if self.draw:
            path = self.out / "overlays" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, draw_landmarks(image, detection.landmarks))
        self.faces(stem, detection)

    def faces(self, stem: str, detection: Detection) -> None:
        """The hallucinated faces, 128 px each."""
        if self.hallucinate and detection.faces is not None:
            for number, face in enumerate(detection.faces):
                path = self.out / "faces" / (f"{stem}.png" if number == 0 else f"{stem}_{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                write_png(path, face)


def _trusted(detection: Detection, min_trust: float) -> Detection:
    """The faces that are trusted enough."""
    keep = [row for row, trust in enumerate(detection.landmarks.trust) if trust >= min_trust]
    faces = None if detection.faces is None else detection.faces[keep]
    return Detection(detection.landmarks.select(keep), faces, [detection.crops[row] for row in keep])


def _look(
    landmarker: Landmarker, images: Sequence[NDArray[np.uint8]], hallucinate: bool, min_trust: float
) -> list[Detection]:
    return [_trusted(found, min_trust) for found in landmarker.detect(images, hallucinate=hallucinate)]


def _record(name: str, image: NDArray[np.uint8], detection: Detection, frame: int | None = None) -> Record:
    return Record(name, image.shape[1], image.shape[0], detection.landmarks, frame)


def _detect_video(
    landmarker: Landmarker, path: Path, files: _Files, summary: DetectionSummary, min_trust: float
) -> None:
    """One JSON line per frame; a broken video keeps the frames before the break."""
    faces_before = summary.faces
    files.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        overlay: VideoWriter | None = None
        if files.draw:
            (files.out / "overlays").mkdir(exist_ok=True)
            overlay = stack.enter_context(VideoWriter(files.out / "overlays" / f"{path.stem}.mp4", frame_rate(path)))
        write = stack.enter_context(json_lines(files.out / f"{path.stem}.jsonl"))
        bar = stack.enter_context(progress_bar("frames"))
        task = bar.add_task(escape(path.name), total=frame_count(path), note="")

        def flush(frames: list[Frame]) -> None:
            seen = _look(landmarker, [frame.image for frame in frames], files.hallucinate, min_trust)
            for frame, detection in zip(frames, seen, strict=True):
                write(_record(path.name, frame.image, detection, frame.index))
                summary.pictures += 1
                summary.faces += len(detection.landmarks)
                files.faces(f"{path.stem}/{frame.index:06d}", detection)
                if overlay is not None:
                    # All frames of a video have one size: no enlarging for small faces here.
                    overlay.write(draw_landmarks(frame.image, detection.landmarks, scale=1))
                bar.advance(task)

        waiting: list[Frame] = []
        try:
            for frame in read_frames(path):
                waiting.append(frame)
                if len(waiting) == TOGETHER:
                    flush(waiting)
                    waiting = []
        except VideoError as error:
            summary.skipped[str(path)] = str(error)
        flush(waiting)
    if summary.faces == faces_before:
        summary.without.append(path.name)


def detect_files(
    landmarker: Landmarker,
    inputs: Sequence[str],
    out: Path,
    format: str = "json",
    *,
    draw: bool = False,
    hallucinate: bool = False,
    min_trust: float = 0.5,
) -> DetectionSummary:
    """Finds the landmarks in pictures, folders, patterns and videos, and writes them.

    Args:
        landmarker: Finder and network.
        inputs: Files, folders, patterns.
        out: Folder of the results: ``landmarks.json`` (or ``.csv``, ``coco.json``, a folder ``pts``),
            ``<video>.jsonl``, ``overlays/``, ``faces/``.
        format: ``json``, ``csv``, ``pts`` or ``coco``.
        draw: Whether to write overlays.
        hallucinate: Whether to write hallucinated faces.
        min_trust: Faces trusted less are left out.

    Returns:
        What became of every file; files that could not be read are in ``skipped``.
    """
    pictures, videos, missing = _named(inputs)
    summary = DetectionSummary(skipped=missing)
    files = _Files(out, draw, hallucinate)

    def flush(waiting: list[tuple[str, NDArray[np.uint8]]]) -> None:
        try:
            seen = _look(landmarker, [image for _, image in waiting], hallucinate, min_trust)
        except BoxError as error:
            if len(waiting) == 1:
                summary.skipped[waiting[0][0]] = f"{waiting[0][0]}: {error}"
                return
            # One by one, so that the picture with the unusable box is named and the others are done.
            for alone in waiting:
                flush([alone])
            return
        for (name, image), detection in zip(waiting, seen, strict=True):
            summary.records.append(_record(name, image, detection))
            summary.pictures += 1
            summary.faces += len(detection.landmarks)
            if not len(detection.landmarks):
                summary.without.append(name)
            files.picture(name, image, detection)

    if pictures:
        with progress_bar("pictures") as bar:
            task = bar.add_task("detecting", total=len(pictures), note="")
            waiting: list[tuple[str, NDArray[np.uint8]]] = []
            for path, name in pictures:
                try:
                    waiting.append((name, read_image(path)))
                except ImageError as error:
                    summary.skipped[str(path)] = str(error)
                if len(waiting) == TOGETHER:
                    flush(waiting)
                    waiting = []
                bar.advance(task)
            if waiting:
                flush(waiting)
    for path in videos:
        try:
            _detect_video(landmarker, path, files, summary, min_trust)
        except VeilmarkError as error:
            summary.skipped[str(path)] = str(error)
    if summary.records:
        out.mkdir(parents=True, exist_ok=True)
        target = {"json": "landmarks.json", "csv": "landmarks.csv", "pts": "pts", "coco": "coco.json"}[format]
        FORMATS[format](out / target, summary.records)
    return summary
