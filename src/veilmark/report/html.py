"""Reports of a run: one HTML file that needs nothing else.

Pictures are inlined, styles are inline, there is no script, and a content policy in the page forbids the
browser to fetch anything. Whatever comes from a run's files is data: it is validated, then escaped.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pydantic import BaseModel, ValidationError

from veilmark.report import DemoSummary, Evaluation, plots
from veilmark.run.errors import DataError

REPORT = "report.html"
"""Name of the report in its run folder."""

_IMAGE_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}

_NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Picture:
    """A picture ready for an ``img`` element: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


Record = TypeVar("Record", bound=BaseModel)


def _fixed(value: float | None, digits: int = 2, signed: bool = False) -> str | None:
    if value is None:
        return None
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _plain(value: Any) -> str:
    """A JSON value as a reader would write it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _when(text: str) -> str:
    """An ISO time as a date to read; any other text as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 60:
        return f"{_fixed(seconds, 1)}{_NBSP}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{_NBSP}h {minutes:02d}{_NBSP}min" if hours else f"{minutes}{_NBSP}min"


def _opened(text: str) -> str:
    """Words with a capital letter at the start; the rest stays, e.g. in dB."""
    return text[:1].upper() + text[1:]


def _count(number: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:,}"


def _megabytes(count: int) -> str | None:
    return _fixed(count / 1e6, 1)


def _pixels(size: int | str) -> str:
    return f"{size} px" if str(size).isdigit() else str(size)


def _best(history: list[tuple[int, dict[str, float]]], key: str, highest: bool) -> str | None:
    """The best value of a validation history, with its step."""
    found = [(scores[key], step) for step, scores in history if math.isfinite(scores.get(key, math.nan))]
    if not found:
        return None
    value, step = (max if highest else min)(found)
    return f"{_fixed(value)} ({_count(step)})"


def _entry(scores: dict[str, float], key: str) -> float | None:
    """One figure of a validation; not every size has every figure."""
    return scores.get(key)


def read_text(path: Path) -> str:
    """A text file of a run.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; is {path.parent} the folder of a finished run?") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}; run the command again to write it anew") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} holds {type(value).__name__}, expected a JSON object")
    return value


def read_record(path: Path, model: type[Record]) -> Record:
    """One JSON file of a run, checked.

    Raises:
        DataError: If it is missing, damaged or lacks a value; the message names the file and the key.
    """
    value = _parse(read_text(path), str(path))
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: {key}: {first['msg']} (got {str(first['input'])[:80]!r}); "
            "was it written by another version of Veilmark? Run the command again"
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; one that a kill cut short is left out.

    Raises:
        DataError: If the file is missing or damaged, or holds no record.
    """
    lines = read_text(path).split("\n")
    # A run that was stopped while writing leaves a last line without its end: nothing was logged there.
    records = [_parse(line, f"{path}, line {i}") for i, line in enumerate(lines[:-1], 1) if line.strip()]
    for i, record in enumerate(records, 1):
        if not isinstance(record.get("step"), int):
            raise DataError(f"{path}: record {i} has no whole number 'step'; was it written by `veilmark train`?")
    if not records:
        raise DataError(f"{path} holds no record yet; wait for the first logged step of the run")
    return records


def _embed(run: Path, name: str) -> Picture:
    """The picture ``name`` of the run folder, inlined."""
    path = run / name
    if not path.resolve().is_relative_to(run.resolve()):
        raise DataError(f"picture {name!r} lies outside the run folder {run}; pictures of a report belong in it")
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=tuple(_IMAGE_TYPES)) as image:
            kind, (width, height) = _IMAGE_TYPES[str(image.format)], image.size
    except OSError as error:
        raise DataError(
            f"cannot read the picture {path}: {error}; expected PNG, JPEG or WebP. Run the command again"
        ) from error
    return Picture(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}", width, height)


def _sheets(run: Path) -> list[tuple[int, str]]:
    """Step and name of at most four sheets of transfers: the first, the last, and what lies between."""
    sheets = (path for path in run.glob("transfers/*.png") if path.stem.isdecimal())
    found = sorted((int(path.stem), f"transfers/{path.name}") for path in sheets)
    shown = min(4, len(found))
    return [found[round(i * (len(found) - 1) / max(1, shown - 1))] for i in range(shown)]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("veilmark.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (_best, _count, _duration, _entry, _fixed, _megabytes, _opened, _pixels, _plain, _when)
    environment.filters.update({function.__name__[1:]: function for function in filters})
    return environment


def write_page(run: Path, template: str, **context: Any) -> Path:
    """Fills a template with ``context`` and writes it as the report of a folder."""
    page = _environment().get_template(template).render(embed=partial(_embed, run), **context)
    return plots.write_atomically(run / REPORT, lambda out: out.write(page.encode("utf-8")))


def write_demo_report(run: Path) -> Path:
    """The report of ``veilmark demo``: each face at each size, what was made of it, and how sure that is.

    Args:
        run: Run folder with ``summary.json`` (:class:`~veilmark.report.DemoSummary`) and its pictures.

    Returns:
        The report that was written.

    Raises:
        DataError: If a file is missing, unreadable or lacks a value; the message names it.
    """
    return write_page(run, "demo.html.j2", demo=read_record(run / "summary.json", DemoSummary))


def write_training_report(run: Path) -> Path:
    """The report of a training run: curves, the last validation beside the best one, transfers, the config.

    The curves are left beside the report as ``curves_<panel>.png``.

    Args:
        run: Run folder with ``metrics.jsonl``; ``summary.json``, ``config.yaml`` and the sheets
            ``transfers/<step>.png`` are shown if there.

    Returns:
        The report that was written.

    Raises:
        DataError: If a file is missing, unreadable or holds no record; the message names it.
    """
    records = read_metrics(run / "metrics.jsonl")
    steps = [record for record in records if "validation" not in record]
    validations: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for record in records:
        for size, scores in record.get("validation", {}).items():
            if isinstance(scores, dict):
                validations.setdefault(size, []).append((record["step"], scores))
    # Keys are sizes in pixels, so 16 comes before 128; a set's name goes last.
    ordered = dict(sorted(validations.items(), key=lambda item: (not item[0].isdigit(), len(item[0]), item[0])))
    images_per_second = [record["images_per_second"] for record in steps if "images_per_second" in record]
    summary_path, config_path = run / "summary.json", run / "config.yaml"
    curves = {}
    for panel in plots.PANELS:
        with contextlib.suppress(plots.NothingLogged):
            curves[panel] = plots.plot_curves(records, run / f"curves_{panel}.png", [panel]).name
    return write_page(
        run,
        "training.html.j2",
        name=run.resolve().name,
        steps=steps,
        last_step=max(record["step"] for record in records),
        stages=plots.stage_ends(records),
        # Every stage counts its own time.
        seconds={str(record.get("stage")): record["seconds"] for record in steps if "seconds" in record}.values(),
        transfers=_sheets(run),
        speed=median(images_per_second) if images_per_second else None,
        validations=ordered,
        curves=curves,
        summary=_parse(read_text(summary_path), str(summary_path)) if summary_path.exists() else {},
        config=read_text(config_path) if config_path.exists() else None,
    )


def write_evaluation_report(run: Path) -> Path:
    """The report of an evaluation: its protocol, the tables, and the charts that are in the folder.

    Args:
        run: Run folder with ``metrics.json`` (see :class:`veilmark.report.Evaluation`) and, if drawn,
            ``nme_by_size.png``, ``ced.png`` and ``faces.png``.

    Returns:
        The report that was written.

    Raises:
        DataError: If a file is missing, unreadable or lacks a value; the message names it.
    """
    found = {name for name in ("nme_by_size.png", "ced.png", "faces.png") if (run / name).exists()}
    evaluation = read_record(run / "metrics.json", Evaluation)
    evaluation.landmarks.extend(evaluation.mean_shape)
    return write_page(run, "evaluation.html.j2", name=run.resolve().name, evaluation=evaluation, found=found)
