"""The charts and contact sheets of a run, drawn to be read on a phone.

Every chart is a :class:`matplotlib.figure.Figure` of its own, so that nothing here touches pyplot's global
state and threads may draw side by side. Colours are Okabe and Ito's, which stay apart for colour-blind
readers; markers and line styles say the same once more.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette without yellow, which is too pale on white."""

MARKERS = ("o", "s", "^", "D", "v", "P")
FLOOR_COLOUR = "#6b6f76"
FLOOR = "mean shape"
"""The method that every other one has to beat; drawn in grey."""

_TITLES = {
    "loss": "Training loss",
    "nme": "Validation NME, %, by face size",
    "psnr": "Validation PSNR, dB, by face size",
    "drift": "Drift of the landmarks, % inter-ocular",
    "speed": "Training images per second",
}
PANELS = tuple(_TITLES)
"""The panels of :func:`plot_curves`, in drawing order."""

# 5.2 inches at 200 dpi are 1040 px: shrunk to a 360 px column, the 12-point text is still 11 px high.
_WIDTH, _HEIGHT, _DPI = 5.2, 3.7, 200
TEXT = 12
INK, _GRID = "#24272d", "#e3e3e3"
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": TEXT - 1, "labelcolor": INK, "handlelength": 2.2}


class NothingLogged(ValueError):
    """A run has logged no value for the panels asked for."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Writes a file whole or not at all.

    Args:
        path: File to make or replace; its folder must exist.
        write: Called with the open temporary file beside it, which is then renamed to ``path``.

    Returns:
        ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as stream:
            write(stream)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def new_axes(figure: Figure, row: int, rows: int, title: str, below: str) -> Axes:
    """One chart of a figure, in the style of all: what it shows above it, what it is drawn against below."""
    axes = figure.add_subplot(rows, 1, row + 1)
    axes.set_title(title, loc="left", fontsize=TEXT + 1, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(below, fontsize=TEXT, color=INK)
    axes.tick_params(labelsize=TEXT, colors=INK, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9a9da3")
    return axes


def new_figure(rows: float = 1) -> Figure:
    """A figure as high as ``rows`` charts, wide enough for a phone."""
    return Figure(figsize=(_WIDTH, _HEIGHT * rows), dpi=_DPI, layout="constrained", facecolor="white")


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, whole or not at all."""
    # The default metadata holds the address of Matplotlib's site; a report holds no address at all.
    metadata: dict[str, Any] = {"Software": None}
    return write_atomically(path, lambda out: figure.savefig(out, format="png", metadata=metadata))


def plot_nme_by_size(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """NME against the size of the face, one line for each method and source of the box.

    Args:
        rows: Each with ``size`` (face px), ``box`` (``annotated`` or ``finder``), ``method`` and ``nme``
            (percent of the inter-ocular distance). The annotated box is dashed; ``mean shape`` is grey.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("plot_nme_by_size needs at least one row")
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault((row["method"], row["box"]), []).append((row["size"], row["nme"]))
    methods = list(dict.fromkeys(method for method, _ in lines if method != FLOOR))
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    figure = new_figure()
    axes = new_axes(figure, 0, 1, "NME, % of the inter-ocular distance", "side of the face crop, px")
    for (method, box), points in lines.items():
        sizes, values = zip(*sorted(points), strict=True)
        axes.plot(
            sizes,
            values,
            color=colours.get(method, FLOOR_COLOUR),
            marker="x" if method == FLOOR else MARKERS[methods.index(method) % len(MARKERS)],
            markerfacecolor="white" if box == "annotated" and method != FLOOR else None,
            linestyle="--" if box == "annotated" else "-",
            linewidth=2.2,
            markersize=7,
            label=f"{method}, {box} box",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(row["size"]) for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2, **LEGEND)
    return save_figure(figure, path)


def plot_ced(curves: Mapping[str, NDArray[np.floating]], path: Path, limit: float = 10) -> Path:
    """The cumulative error distribution: which share of the faces has an NME of at most x.

    A curve labelled ``mean shape`` is grey.

    Args:
        curves: Label to the NME of each face, ``(n,)`` in percent. One that is not finite counts as a
            face never found.
        path: PNG to write.
        limit: Right end of the chart in percent.

    Returns:
        ``path``.

    Raises:
        ValueError: If there is no curve, or one without a face.
    """
    if not curves or any(np.size(errors) == 0 for errors in curves.values()):
        raise ValueError("plot_ced needs at least one curve, and at least one face in each")
    figure = new_figure()
    axes = new_axes(figure, 0, 1, "Faces at or below that error, %", "NME, % of the inter-ocular distance")
    for i, (label, errors) in enumerate(curves.items()):
        values = np.asarray(errors, dtype=np.float64).ravel()
        reached = np.sort(values[np.isfinite(values) & (values <= limit)])
        share = 100 * np.arange(1, len(reached) + 1) / len(values)
        x = np.concatenate([[0.0], reached, [limit]])
        y = np.concatenate([[0.0], share, [share[-1] if len(share) else 0.0]])
        # Every second line is dashed, so that neighbours differ in more than colour.
        axes.step(
            x,
            y,
            where="post",
            color=FLOOR_COLOUR if label == FLOOR else COLOURS[i % len(COLOURS)],
            linestyle="-" if i % 2 == 0 else "--",
            linewidth=2.2,
            label=label,
        )
    axes.set_xlim(0, limit)
    axes.set_ylim(0, 100)
    axes.legend(loc="best", **LEGEND)
    return save_figure(figure, path)


def _series(points: Sequence[Mapping[str, Any]], panel: str) -> dict[str, list[tuple[float, float]]]:
    """The lines of one panel, label to (step, value); no line where nothing was logged."""
    lines: dict[str, list[tuple[float, float]]] = {}
    # A resumed run logs the steps after its checkpoint again; the later record is the true one.
    latest = {(point["step"], "validation" in point): point for point in points}
    for (step, _), point in sorted(latest.items(), key=lambda item: item[0]):
        sizes = {size: s for size, s in point.get("validation", {}).items() if isinstance(s, Mapping)}
        if panel == "drift":
            names = ("drift", "common_drift")
            found = {key.replace("_", " "): s[key] for s in sizes.values() for key in names if key in s}
        elif panel in ("nme", "psnr"):
            found = {f"{size} px": scores.get(panel) for size, scores in sizes.items()}
        else:
            key = {"loss": "loss", "speed": "images_per_second"}[panel]
            found = {key: point.get(key)}
        for label, value in found.items():
            if value is not None and math.isfinite(value):
                lines.setdefault(label, []).append((step, value))
    return lines


def stage_ends(points: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The last logged step of every stage of a run, in the order of the stages."""
    return {point["stage"]: point["step"] for point in points if isinstance(point.get("stage"), str)}


def plot_curves(points: Sequence[Mapping[str, Any]], path: Path, panels: Sequence[str] = PANELS) -> Path:
    """The curves of a training run, one panel above the other; a dashed line marks where a stage ends.

    Args:
        points: Records of ``metrics.jsonl``: ``{"step", "stage", "loss", "images_per_second", ...}`` and
            ``{"step", "stage", "validation": {size: {"nme", "psnr", "drift", "common_drift"}}}``, in the order
            logged.
        path: PNG to write.
        panels: Which of :data:`PANELS` to draw; those without a logged value are left out.

    Returns:
        ``path``.

    Raises:
        NothingLogged: If there is no value for any of the panels.
    """
    drawn = [(panel, lines) for panel in panels if (lines := _series(points, panel))]
    if not drawn:
        raise NothingLogged(f"no value was logged for {', '.join(panels)}")
    figure = new_figure(len(drawn))
    for row, (panel, lines) in enumerate(drawn):
        axes = new_axes(figure, row, len(drawn), _TITLES[panel], "step")
        for i, (label, values) in enumerate(lines.items()):
            axes.plot(
                *zip(*values, strict=True),
                color=COLOURS[i % len(COLOURS)],
                linewidth=2,
                marker=MARKERS[i % len(MARKERS)] if len(values) < 25 else None,
                markersize=6,
                label=label,
            )
        for step in list(stage_ends(points).values())[:-1]:
            axes.axvline(step, color=FLOOR_COLOUR, linestyle="--", linewidth=1.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if panel in ("speed", "drift"):
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(loc="best", ncols=2, **LEGEND)
    return save_figure(figure, path)


def contact_sheet(tiles: Sequence[tuple[NDArray[np.uint8], str]], columns: int, path: Path) -> Path:
    """Pictures in rows, each with its caption below.

    Small pictures are enlarged to the largest one's side without smoothing: their pixels stay visible.

    Args:
        tiles: Pictures ``(h, w, 3)`` or ``(h, w)`` uint8 with their captions, row by row.
        columns: Pictures in a row, at least 1.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        ValueError: If there is no tile, a picture is not uint8, or ``columns`` is below 1.
    """
    if not tiles or columns < 1:
        raise ValueError(f"contact_sheet needs tiles and at least 1 column, got {len(tiles)} and {columns}")
    if any(image.dtype != np.uint8 for image, _ in tiles):
        raise ValueError("contact_sheet takes uint8 pictures")
    side = max(128, *(max(image.shape[:2]) for image, _ in tiles))
    gap = side // 10
    # Matplotlib brings DejaVu Sans along, so captions look the same on every machine.
    scales = [side / max(image.shape[:2]) for image, _ in tiles]
    shapes = [
        (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        for (image, _), scale in zip(tiles, scales, strict=True)
    ]
    tall = max(shape[1] for shape in shapes)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size=max(12, tall // 10))
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [ruler.multiline_textbbox((0, 0), caption, font=font) for _, caption in tiles]
    width = math.ceil(max(side, *(right for _, _, right, _ in boxes)))
    height = tall + gap // 2 + math.ceil(max(bottom for _, _, _, bottom in boxes))
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, ((image, caption), shape) in enumerate(zip(tiles, shapes, strict=True)):
        x = gap + (i % columns) * (width + gap)
        y = gap + (i // columns) * (height + gap)
        picture = Image.fromarray(image).convert("RGB").resize(shape, Image.Resampling.NEAREST)
        sheet.paste(picture, (x + (width - shape[0]) // 2, y + (tall - shape[1]) // 2))
        pen.multiline_text(
            (x + width / 2, y + tall + gap // 2), caption, fill=INK, font=font, anchor="ma", align="center"
        )
    return write_atomically(path, lambda out: sheet.save(out, format="PNG"))
