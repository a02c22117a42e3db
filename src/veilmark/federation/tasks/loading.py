"""The task that a config names, with its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veilmark.federation.config import FederationConfig, LandmarksFederation
from veilmark.federation.tasks.classify import Classify, load_classify
from veilmark.federation.tasks.landmarks import LandmarksTask, load_landmarks
from veilmark.federation.tasks.task import Data, Task

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Classify, LandmarksTask)}
"""Tasks by name."""


def load_task(config: FederationConfig, data: Path | None) -> tuple[Task, list[Data], dict[str, Any], dict[str, str]]:
    """The task and its owners' examples.

    Args:
        config: The federation.
        data: Folder of the data set; None for a bundled one.

    Returns:
        The task, the owners' examples, what ``summary.json`` says of the partition, and what could not be read.

    Raises:
        ConfigError: If the data do not fit or do not suffice.
        DataError: If files are missing or damaged.
    """
    if isinstance(config, LandmarksFederation):
        return load_landmarks(config.data, data, config.clients, config.seed)
    return load_classify(config.data, data, config.clients, config.seed)
