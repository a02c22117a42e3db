"""Veilmark: precise facial landmarks from faces too small to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veilmark.landmarks.result import Landmarks
    from veilmark.sht.landmarker import Landmarker

__version__ = "0.1.0"

__all__ = ["Landmarker", "Landmarks", "__version__"]


def __getattr__(name: str) -> Any:
    # On first use, so that `veilmark --help` need not wait for PyTorch.
    if name == "Landmarker":
        from veilmark.sht.landmarker import Landmarker

        return Landmarker
    if name == "Landmarks":
        from veilmark.landmarks.result import Landmarks

        return Landmarks
    raise AttributeError(f"module 'veilmark' has no attribute {name!r}")
