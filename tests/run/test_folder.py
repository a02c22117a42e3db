"""The run folder: one holder, one run, and files that are whole however the process ends."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from veilmark.run.folder import RunError, RunFolder, write_json, write_text

HOLDER = """
import sys
from pathlib import Path
from veilmark.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold():
    sys.stdout.write("held\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_another_process_is_refused_until_the_holder_ends(tmp_path: Path, end: str) -> None:
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-c", HOLDER, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use by another process") as caught, folder.hold():
            pass
        assert str(folder.path) in str(caught.value)
        if end == "is killed":
            holder.kill()
        else:
            assert holder.stdin is not None
            holder.stdin.close()
        holder.wait(timeout=30)
    with folder.hold():
        pass


def test_a_second_holder_in_this_process_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path).hold():
        with pytest.raises(RunError, match="in use"), RunFolder(tmp_path).hold():
            pass
        with pytest.raises(RunError, match="in use"), RunFolder(tmp_path).hold():
            pass
    with RunFolder(tmp_path).hold():
        pass


def test_an_error_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path).hold():
        raise ZeroDivisionError
    with RunFolder(tmp_path).hold():
        pass


@pytest.mark.parametrize(
    ("stored", "given", "resume", "refusal"),
    [
        (None, "a: 1\n", False, None),  # a new run
        (None, "a: 1\n", True, None),  # nothing to resume yet: also a new run
        ("a: 1\n", "a: 1\n", True, None),  # the same run goes on
        ("a: 1\n", "a: 1\n", False, "--resume"),  # never overwritten by accident
        ("a: 1\n", "a: 2\n", True, "differs"),  # never mixed with other settings
        ("a: 1\n", "a: 2\n", False, "holds a run already"),  # another run in the same folder
    ],
)
def test_start(tmp_path: Path, stored: str | None, given: str, resume: bool, refusal: str | None) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    if stored is not None:
        folder.start(stored, resume=False)
    if refusal is None:
        folder.start(given, resume)
        assert folder.checkpoints.is_dir()
    else:
        with pytest.raises(RunError, match=refusal) as caught:
            folder.start(given, resume)
        assert str(folder.path) in str(caught.value)
    assert (folder.path / "config.yaml").read_text(encoding="utf-8") == (stored or given)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, [0] * 4000)

    def rewrite() -> None:
        for value in range(1, 40):
            write_json(path, [value] * 4000)

    writer = threading.Thread(target=rewrite)
    writer.start()
    while writer.is_alive():
        values = json.loads(path.read_text(encoding="utf-8"))
        assert len(values) == 4000
        assert len(set(values)) == 1
    writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    whole = Path.write_text

    def full_disk(self: Path, text: str, encoding: str) -> int:
        whole(self, text[:2], encoding=encoding)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="space"):
        write_text(path, "new content")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_without_nan(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"nme": 2.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"nme": value})
    with pytest.raises(ValueError, match="JSON"):
        RunFolder(tmp_path).log({"nme": value})
    assert json.loads(path.read_text(encoding="utf-8")) == {"nme": 2.5}
    assert RunFolder(tmp_path).read_log() == []


def test_the_log_reads_back_in_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_log() == []
    records = [{"step": 1, "loss": 0.1}, {"step": 2, "note": "Gesicht · ü\u2028"}, {"step": 2, "nme": 1e-12}]
    for record in records:
        folder.log(record)
    assert folder.read_log() == records


@pytest.mark.parametrize("kept_bytes", [1, 5, 12, 17])
def test_a_torn_last_line_is_left_out(tmp_path: Path, kept_bytes: int) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        folder.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "a": "b"}\n'[:kept_bytes])
    assert folder.read_log() == [{"step": 1}, {"step": 2}]


def test_a_resumed_run_writes_the_dropped_lines_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"started": "now"})
    for step in range(1, 6):
        folder.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')
    folder.keep_log(3)
    folder.log({"step": 4})
    assert folder.read_log() == [{"started": "now"}, {"step": 1}, {"step": 2}, {"step": 3}, {"step": 4}]
    folder.keep_log(0)
    assert folder.read_log() == [{"started": "now"}]


def test_keep_log_of_a_new_run_makes_no_file(tmp_path: Path) -> None:
    RunFolder(tmp_path).keep_log(0)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    refused, begun = RunFolder(tmp_path / "runs" / "refused"), RunFolder(tmp_path / "begun")
    with pytest.raises(ValueError, match="no such key"), refused.hold():
        raise ValueError("no such key")
    assert not refused.path.exists()
    with pytest.raises(ValueError, match="later"), begun.hold():
        begun.start("a: 1\n", resume=False)
        raise ValueError("later")
    assert (begun.path / "config.yaml").exists()
    with begun.hold():
        assert (begun.path / ".lock").exists()


@pytest.mark.parametrize("files", [[], ["notes.txt"]])
def test_a_folder_that_somebody_made_before_stays(tmp_path: Path, files: list[str]) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for name in files:
        (folder.path / name).write_text("mine")
    with folder.hold():
        pass
    assert sorted(entry.name for entry in folder.path.iterdir()) == [".lock", *files]
