"""Virtual environments for peers whose packages do not go with ours. Imports nothing but Python itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, *installs: Sequence[str]) -> Path:
    """A virtual environment of this very Python, made if it is not there; returns its Python.

    Args:
        folder: Of the environment.
        installs: What pip is given, call by call: requirements and options.

    Raises:
        RuntimeError: If it cannot be made; the message holds the end of pip's output.
    """
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(" ".join(words) for words in installs)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        call([sys.executable, "-m", "venv", str(folder)])
        for words in installs:
            call([str(python), "-m", "pip", "install", "-q", *words])
        stamp.write_text(wanted, encoding="utf-8")
    return python


def call(command: list[str]) -> None:
    """Runs a command and waits.

    Raises:
        RuntimeError: If it fails; the message holds the end of its output.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; mend what it says and start again:\n{done.stderr[-800:]}")
