"""A sheet of pictures that anybody may see beside what a method makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from veilmark.faces.images import write_png
from veilmark.federation.client_side import ClientSide
from veilmark.run.checkpoints import Tensors

SHOWN = 8
"""Pictures on a sheet."""
_ENLARGED = 3


def write_samples(side: ClientSide, broadcast: Tensors, round_number: int, path: Path) -> list[str]:
    """Writes a sheet: a row of pictures that anybody may see, and one for each view that the first client has of them.

    Args:
        side: The clients.
        broadcast: The global share.
        round_number: The round after which the client is asked, from 1.
        path: The PNG.

    Returns:
        What the rows show; a method that shows pictures as they are has one row.
    """
    inputs = side.task.shown(SHOWN)
    views = {"x": inputs} | side.built(0, round_number).views(broadcast, inputs)
    write_sheet(path, list(views.values()))
    return list(views)


def write_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Writes rows of pictures as one enlarged picture.

    Args:
        path: The PNG.
        rows: Each ``(n, c, s, s)`` uint8, all alike.
    """
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).permute(1, 2, 0).numpy()
    enlarged = np.repeat(np.repeat(sheet, _ENLARGED, axis=0), _ENLARGED, axis=1)
    write_png(path, enlarged if enlarged.shape[2] == 3 else np.repeat(enlarged, 3, axis=2))
