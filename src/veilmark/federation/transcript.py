"""What the server saw, kept for an audit: format 2.

``manifest.json`` (version, public config, shapes), a folder for each recorded round with ``broadcast.safetensors``,
one ``client-<number>.safetensors`` for each message and ``scores.safetensors`` with what clients said of their answers
to the public test set, and ``chain.jsonl``: one line a file, each with the hash of the
line before, so that nothing can be changed or put in afterwards without breaking what follows, and a run's
``summary.json`` has the hash of the last line, so that nothing can be cut off. This finds accidents and careless edits:
who may write all of these files can write them all anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from veilmark.federation.messages import Declared, Update, tensor_bytes
from veilmark.run.checkpoints import Tensors, write_tensors
from veilmark.run.errors import DataError, VeilmarkError
from veilmark.run.folder import write_json, write_text

VERSION = 2
CHAIN = "chain.jsonl"
SCORES = "scores"
"""The file of a round's scores: a float64 tensor each, named ``<client>/<name>``."""
_START = "0" * 64


class TranscriptError(DataError):
    """A transcript that is incomplete or was changed."""


def forecast(broadcast: Tensors, declared: Declared, clients: int, rounds: int) -> int:
    """Bytes that the recorded rounds will take: exact but for headers and scores, some kilobytes a file.

    Args:
        broadcast: What the server sends.
        declared: What an update looks like.
        clients: Clients a round.
        rounds: Recorded rounds.
    """
    return rounds * (tensor_bytes(broadcast) + clients * declared.size())


def check_room(folder: Path, needed: int) -> None:
    """Refuses to begin what will not fit.

    Raises:
        VeilmarkError: If the disk has less room than ``needed`` bytes.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise VeilmarkError(
            f"the transcript will take {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; record fewer "
            "rounds, e.g. --set record=[last], or none: --set record=[]"
        )


class Transcript:
    """Writes and verifies a transcript.

    Args:
        path: Its folder; mode 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def start(self, manifest: dict[str, Any], last_round: int) -> None:
        """Begins a transcript, or forgets what a resumed run will write again.

        Args:
            manifest: Public config, architecture, declared tensors and metrics.
            last_round: Finished rounds, 0 for a new run.

        Raises:
            TranscriptError: If the chain is damaged where finished rounds stand.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        os.chmod(self.path, 0o700)
        if not last_round:
            write_json(self.path / "manifest.json", {"version": VERSION, **manifest})
            write_text(self.path / CHAIN, self._line("manifest.json", _START) + "\n")
        kept = self._finished_lines(last_round)
        write_text(self.path / CHAIN, "".join(line + "\n" for line in kept))
        for folder in self.path.glob("round-*"):
            if _round_of(folder.name + "/") > last_round:
                shutil.rmtree(folder)

    def _finished_lines(self, last_round: int) -> list[str]:
        """The chain's lines of the manifest and of finished rounds."""
        kept: list[str] = []
        lines = self._lines()
        for number, line in enumerate(lines, 1):
            try:
                file = json.loads(line)["file"]
            except (json.JSONDecodeError, KeyError, TypeError):
                # A run that is killed may leave half a line, the last one, of a round that it had not finished.
                if number == len(lines) and not self._unnamed(kept, last_round):
                    break
                raise TranscriptError(
                    f"{self.path / CHAIN}, line {number} is damaged, and finished rounds cannot be trusted from there "
                    "on; begin anew with another --out"
                ) from None
            if _round_of(file) <= last_round:
                kept.append(line)
        return kept

    def _unnamed(self, lines: list[str], last_round: int) -> set[str]:
        """Files of finished rounds that no line names."""
        there = {path.relative_to(self.path).as_posix() for path in self.path.glob("round-*/*.safetensors")}
        named = {json.loads(line)["file"] for line in lines}
        return {file for file in there - named if _round_of(file) <= last_round}

    def add_broadcast(self, round_number: int, tensors: Tensors) -> None:
        """Records what was sent to every client; rounds count from 1."""
        self._add(round_number, "broadcast", tensors, {})

    def add_update(self, round_number: int, client: int, update: Update) -> None:
        """Records what a client sent: tensors, declared metrics, sample count."""
        said = {"metrics": json.dumps(dict(update.metrics), sort_keys=True), "examples": str(update.examples)}
        self._add(round_number, f"client-{client}", update.tensors, said)

    def add_scores(self, round_number: int, scores: Mapping[int, Mapping[str, Sequence[float]]]) -> None:
        """Records what clients said of their answers to the public test set after a round, by client and name."""
        said = {
            f"{client}/{name}": torch.tensor(figures, dtype=torch.float64)
            for client, of_client in sorted(scores.items())
            for name, figures in sorted(of_client.items())
        }
        self._add(round_number, SCORES, said, {})

    def _add(self, round_number: int, name: str, tensors: Tensors, metadata: dict[str, str]) -> None:
        file = f"round-{round_number:04d}/{name}.safetensors"
        write_tensors(self.path / file, tensors, metadata)
        lines = self._lines()
        with (self.path / CHAIN).open("a", encoding="utf-8") as chain:
            chain.write(self._line(file, _hash(lines[-1].encode())) + "\n")

    def _line(self, file: str, previous: str) -> str:
        return json.dumps({"file": file, "sha256": _file_hash(self.path / file), "previous": previous})

    def end(self) -> str:
        """The hash of the chain's last line: another transcript has another; empty where there is none."""
        lines = self._lines()
        return _hash(lines[-1].encode()) if lines else ""

    def _lines(self) -> list[str]:
        chain = self.path / CHAIN
        return chain.read_text(encoding="utf-8").splitlines() if chain.exists() else []

    def verify(self) -> list[str]:
        """Checks every hash, and that the folder holds what the chain names and nothing else.

        Returns:
            The files, in the order in which they were written.

        Raises:
            TranscriptError: If anything is missing, changed, out of order or not in the chain; it is named.
        """
        previous, files = _START, []
        for number, line in enumerate(self._lines(), 1):
            where = f"{self.path / CHAIN}, line {number}"
            try:
                entry = json.loads(line)
                file, claimed, before = entry["file"], entry["sha256"], entry["previous"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise TranscriptError(f"{where} is damaged; the transcript cannot be trusted from there on") from None
            if before != previous:
                raise TranscriptError(f"{where} does not follow the line before; lines were changed, lost or put in")
            path = self.path / file
            if not path.resolve().is_relative_to(self.path.resolve()) or not path.is_file():
                raise TranscriptError(f"{where} names {file}, which is not in the transcript")
            if _file_hash(path) != claimed:
                raise TranscriptError(f"{path} was changed after it was written")
            previous = _hash(line.encode())
            files.append(file)
        if not files:
            raise TranscriptError(f"{self.path} holds no {CHAIN}; is it the transcript/ of a federation's run folder?")
        there = {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()} - {CHAIN}
        if strange := sorted(there - set(files)):
            raise TranscriptError(f"{self.path / strange[0]} is not in the chain; it was put in afterwards")
        return files


def _round_of(file: str) -> int:
    """The round that a file belongs to; 0 for the manifest."""
    folder = file.split("/")[0]
    return int(folder.removeprefix("round-")) if folder.startswith("round-") else 0


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
