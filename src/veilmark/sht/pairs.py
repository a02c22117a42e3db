"""Which two faces make a pair, on which pose transfer is trained: A is painted in the pose of B."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from veilmark.faces.datasets import Face
from veilmark.run.errors import ConfigError

PairKind = Literal["video", "person", "warp"]
"""B is another frame of the same person and video, any other face of the same person, or a warped copy of A."""


def choose_pairs(faces: Sequence[Face], kind: PairKind, rng: np.random.Generator) -> list[tuple[int, int]]:
    """A pair for every face that has a partner, the partner drawn evenly from all it could have.

    Faces without a name of the person (for ``video``: of the person and the video) have no partner.

    Args:
        faces: The faces, with or without landmarks.
        kind: What makes two faces a pair.
        rng: Source of the draws, e.g. ``rng_for(seed, purpose, epoch)``.

    Returns:
        ``(A, B)`` as positions in ``faces``, in the order of A; for ``warp`` every face with itself, to be warped
        (:func:`veilmark.faces.warp.warp_copy`).

    Raises:
        ConfigError: If the kind is unknown, or no face of a set has a partner; the message offers
            ``pairs.kind=warp``.
    """
    if kind not in get_args(PairKind):
        raise ConfigError(f"pairs.kind is {kind!r}; allowed: {', '.join(get_args(PairKind))}")
    if kind == "warp":
        return [(index, index) for index in range(len(faces))]
    groups: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    for index, face in enumerate(faces):
        key = (face.person, face.video) if kind == "video" else (face.person,)
        if None not in key:
            groups[key].append(index)
    # Where a set names no people its unit is the picture: two faces of one picture are two people.
    together = [members for members in groups.values() if len({faces[index].path for index in members}) > 1]
    place = {index: (members, at) for members in together for at, index in enumerate(members)}
    pairs = []
    for index, (members, at) in sorted(place.items(), key=lambda entry: entry[0]):
        # One of the others: a step of 1 to all but one around the circle of the members.
        step = int(rng.integers(1, len(members)))
        pairs.append((index, members[(at + step) % len(members)]))
    if not pairs:
        raise ConfigError(f"pairs.kind is {kind!r}, but {_lack(faces, kind)}; use pairs.kind=warp, which needs neither")
    return pairs


def _lack(faces: Sequence[Face], kind: PairKind) -> str:
    """Why no face of a set has a partner."""
    if not faces:
        return "there is no face"
    if all(face.person is None for face in faces):
        return f"none of the {len(faces)} faces says whose it is"
    if kind == "video" and all(face.video is None for face in faces):
        return f"none of the {len(faces)} faces says from which video it is"
    return f"no two of the {len(faces)} faces are of one person" + (" and video" if kind == "video" else "")
