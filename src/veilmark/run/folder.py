"""The run folder: one folder a run, one process at a time, every file whole or absent."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from veilmark.run.errors import VeilmarkError


class RunError(VeilmarkError):
    """A run folder that is held by another process, or holds another run."""


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it: a reader sees all of it or the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, readable by people, whole or not at all. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class RunFolder:
    """``runs/<name>/``: ``config.yaml``, ``metrics.jsonl``, ``summary.json``, ``checkpoints/``, ``report.html``.

    Args:
        path: The folder; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the folder for this process; the lock goes with the process, however it ends.

        A folder that is made here and nothing is written to is taken away again: a refused run leaves nothing behind.

        Raises:
            RunError: If another process holds it.
        """
        made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.path} cannot be a run folder ({error.strerror}); choose another --out") from None
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is in use by another process; wait for it or choose another --out"
                ) from None
            try:
                yield
            finally:
                if made:
                    self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        # Another process may have come for it just now, or somebody has moved it away.
        with suppress(OSError):
            if [entry.name for entry in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                self.path.rmdir()

    def start(self, config_text: str, resume: bool) -> None:
        """Begins a run, or checks that the one to be resumed is the same.

        Args:
            config_text: The resolved config as YAML.
            resume: Whether to go on from what the folder holds.

        Raises:
            RunError: If there is a run already and ``resume`` is off, or its config differs.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        config = self.path / "config.yaml"
        if not config.exists():
            write_text(config, config_text)
            return
        if not resume:
            raise RunError(f"{self.path} holds a run already; add --resume to go on with it, or choose another --out")
        if config.read_text(encoding="utf-8") != config_text:
            raise RunError(
                f"{config} differs from the settings given; --resume goes on with the same settings only "
                "(repeat the --set of the first start, or choose another --out)"
            )

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a line that a kill cut short is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        records = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return records

    def keep_log(self, last_step: int) -> None:
        """Drops the lines after ``last_step``, which a resumed run will write again."""
        kept = [record for record in self.read_log() if record.get("step", 0) <= last_step]
        if kept or (self.path / "metrics.jsonl").exists():
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))
