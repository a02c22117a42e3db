"""How much memory a run takes, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Begins to measure :func:`peak_rss_mb` anew, where the system lets a process do so (Linux)."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return


def peak_rss_mb(children: bool = False) -> float:
    """The largest resident memory of this process since :func:`forget_peak`, in megabytes (10**6 bytes).

    Where it cannot be forgotten it is the largest since the process began.

    Args:
        children: Whether any process counts that this one has waited for, in all its life.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
        used = int(lines["VmHWM"].split()[0])
    except (OSError, KeyError, ValueError):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if children:
        used = max(used, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return round(used * unit / 1e6, 1)


def give_back() -> None:
    """Hands freed memory back to the system, which glibc otherwise keeps: hundreds of MB after a client's turn."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
