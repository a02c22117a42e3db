"""Attacks on the cipher of PPIDSG: how few pictures open it, with and without their originals.

All three attacks end in a guessed :class:`~veilmark.ppidsg.cipher.Table`, one that the cipher could have made, and are
scored by what it unscrambles of pictures that the attacker has not seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from veilmark.ppidsg.cipher import Table

Floats = NDArray[np.float32]
Array = NDArray[Any]

_COLOURS: dict[int, list[tuple[int, ...]]] = {1: [(0,)], 3: list(itertools.permutations(range(3)))}


@dataclass(frozen=True)
class _Change:
    """What the cipher can do to a block: flip left and right or not, turn, permute colours, negate."""

    mirrored: bool
    turns: int
    colours: tuple[int, ...]
    negated: bool

    def of(self, blocks: Array) -> Array:
        """The block ``(..., c, b, b)``, moved; what negation does is left to the caller."""
        turned = np.rot90(blocks[..., ::-1] if self.mirrored else blocks, self.turns, axes=(-2, -1))
        return turned[..., list(self.colours), :, :]


def _changes(channels: int) -> list[_Change]:
    # Plain first: where several fit alike (flat blocks), the first is taken.
    return [
        _Change(mirrored, turns, colours, negated)
        for negated in (False, True)
        for mirrored in (False, True)
        for turns in range(4)
        for colours in _COLOURS[channels]
    ]


def _blocks(pictures: Array, block: int) -> Array:
    """``(n, c, h, w)`` to ``(blocks, n, c, block, block)``, row by row."""
    n, c, h, w = pictures.shape
    parts = pictures.reshape(n, c, h // block, block, w // block, block).transpose(2, 4, 0, 1, 3, 5)
    return parts.reshape(-1, n, c, block, block)


def _check(pictures: Tensor, scrambled: Tensor, block: int) -> None:
    if pictures.shape != scrambled.shape or pictures.ndim != 4 or pictures.shape[1] not in _COLOURS:
        raise ValueError(
            f"expected two batches (n, 1 or 3, h, w) alike, got {tuple(pictures.shape)} and {tuple(scrambled.shape)}"
        )
    if not len(pictures) or pictures.shape[2] % block or pictures.shape[3] % block:
        raise ValueError(f"{tuple(pictures.shape)} is no whole number of blocks of {block}")


def known_plaintext(pictures: Tensor, scrambled: Tensor, block: int, even: Tensor | None = None) -> Table:
    """The key that fits pairs of pictures and their scrambled selves best.

    Every block of the originals is compared with every scrambled one, in all 16 (gray) or 96 (RGB) ways in which the
    cipher changes a block; the assignment of blocks to places with the least squared difference is the guess. Exact
    pairs open the key up to keys that do the same to them; pairs that are only nearly right, such as x and G(x), are
    snapped to the nearest key.

    Args:
        pictures: ``(n, c, h, w)`` floats in [-1, 1].
        scrambled: The same pictures, scrambled with one key.
        block: Side of the cipher's blocks, in pixels.
        even: ``(n,)`` bool: pairs of figures that negation leaves as they are, such as standard deviations.

    Returns:
        The guess.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(pictures, scrambled, block)
    channels, height, width = pictures.shape[1:]
    sources, targets = (_blocks(some.numpy().astype(np.float32), block) for some in (pictures, scrambled))
    sign = np.where(even.numpy() if even is not None else np.zeros(len(pictures), bool), 1, -1).astype(np.float32)
    changes, flat = _changes(channels), targets.reshape(len(targets), -1)
    least = np.full((len(sources), len(targets)), np.inf, dtype=np.float64)
    best = np.zeros(least.shape, dtype=np.int64)
    for number, change in enumerate(changes):
        moved = change.of(sources) * (sign[None, :, None, None, None] if change.negated else 1)
        rows = moved.reshape(len(sources), -1).astype(np.float64)
        apart = (rows**2).sum(1)[:, None] + (flat.astype(np.float64) ** 2).sum(1)[None] - 2 * rows @ flat.T
        # A little more than rounding: among equals the first stays.
        better = apart < least - 1e-6
        least[better], best[better] = apart[better], number
    taken, places = linear_sum_assignment(least)
    order = np.argsort(places)
    chosen = [changes[best[source, place]] for source, place in zip(taken[order], places[order], strict=True)]
    return _table(taken[order], chosen, (channels, height, width), block)


def known_distribution(public: Tensor, scrambled: Tensor, block: int) -> Table:
    """The key that carries the statistics of public pictures into those of scrambled ones; no pair is known.

    One key moves every picture alike, so it moves the mean picture, and the picture of standard deviations, too: both
    are pairs for :func:`known_plaintext`.

    Args:
        public: ``(n, c, h, w)`` floats in [-1, 1], of the kind that was scrambled.
        scrambled: ``(m, c, h, w)``, other pictures, all with one key.
        block: Side of the cipher's blocks, in pixels.

    Returns:
        The guess.

    Raises:
        ValueError: If shapes do not fit, or there are not two pictures of each.
    """
    if len(public) < 2 or len(scrambled) < 2:
        raise ValueError(f"statistics need two pictures or more, got {len(public)} and {len(scrambled)}")
    pairs = [torch.stack([some.mean(dim=0), some.std(dim=0)]) for some in (public, scrambled)]
    return known_plaintext(pairs[0], pairs[1], block, even=torch.tensor([False, True]))


def jigsaw(scrambled: Tensor, block: int) -> Table:
    """The key that makes scrambled pictures smooth again: nothing but ciphertexts of one key is known.

    Blocks are put side by side greedily, the surest neighbours first (after Gallagher, CVPR 2012, which has pieces of
    unknown orientation; negation and colours are further states of a piece here). How well two pieces fit is judged
    over all pictures at once. Which way up, negated or not, and which colour is which cannot be known from fit alone:
    see :func:`look_alikes`.

    Args:
        scrambled: ``(n, c, h, w)`` floats in [-1, 1], square, all with one key.
        block: Side of the cipher's blocks, in pixels.

    Returns:
        The guess.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(scrambled, scrambled, block)
    channels, height, width = scrambled.shape[1:]
    if height != width:
        raise ValueError(f"pictures are {height} x {width}; the jigsaw is solved for squares")
    pieces = _blocks(scrambled.numpy().astype(np.float32), block)
    changes = _changes(channels)
    states = np.stack([change.of(pieces) * (-1 if change.negated else 1) for change in changes], axis=1)
    gain = _fit(states)
    turned = [_number(changes, change, 1) for change in changes]
    placed = _assemble(gain, turned, height // block)
    # The guess says where scrambled blocks go, which is the inverse of the cipher's table.
    ordered = [placed[cell] for cell in sorted(placed)]
    found = [piece for piece, _ in ordered], [changes[state] for _, state in ordered]
    return _table(np.array(found[0]), found[1], (channels, height, width), block).inverse()


def _number(changes: list[_Change], change: _Change, turns: int) -> int:
    """The change that turns the block further."""
    return changes.index(_Change(change.mirrored, (change.turns + turns) % 4, change.colours, change.negated))


def _fit(states: Floats) -> Floats:
    """How well a piece in a state fits to the right of another: ``(pieces, states, pieces, states)``.

    What two edges have in common, over all pictures: half of their mean energy less their squared difference. Edges
    that never differ from their mean tell nothing, and count for little.
    """
    pieces, changes = states.shape[:2]
    right, left = (states[..., column].reshape(pieces * changes, -1) for column in (-1, 0))
    if states.shape[2] > 1:
        mean = states.mean(axis=2, keepdims=True)
        # The mean counts as one more picture: it tells black from negated black.
        right, left = (
            np.concatenate(
                [
                    (states - mean)[..., column].reshape(pieces * changes, -1),
                    mean[..., column].reshape(pieces * changes, -1),
                ],
                axis=1,
            )
            for column in (-1, 0)
        )
    energy = [(edge**2).sum(axis=1) for edge in (right, left)]
    both = energy[0][:, None] + energy[1][None]
    gain = 0.25 * both - (both - 2 * right @ left.T)
    found: Floats = gain.reshape(pieces, changes, pieces, changes).astype(np.float32)
    return found


def _assemble(gain: Floats, turned: list[int], side: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Puts every piece on a square of ``side`` cells: cell to piece and state."""
    count, states = gain.shape[:2]
    # Below: turn the scene a quarter against the clock, and it is to the right.
    down = gain[:, turned][:, :, :, turned]
    sure = gain.copy()
    sure[np.arange(count), :, np.arange(count)] = -np.inf
    first, state, second, other = np.unravel_index(int(sure.argmax()), sure.shape)
    placed = {(0, 0): (int(first), int(state)), (0, 1): (int(second), int(other))}
    left = set(range(count)) - {int(first), int(second)}
    scores: dict[tuple[int, int], Floats] = {}

    def look(cell: tuple[int, int]) -> None:
        row, column = cell
        piece, at = placed[cell]
        near = {
            (row, column + 1): gain[piece, at],
            (row, column - 1): gain[:, :, piece, at],
            (row + 1, column): down[piece, at],
            (row - 1, column): down[:, :, piece, at],
        }
        for neighbour, found in near.items():
            if neighbour not in placed:
                scores[neighbour] = scores.get(neighbour, np.zeros((count, states), np.float32)) + found

    for cell in list(placed):
        look(cell)
    while left:
        rows, columns = ([cell[axis] for cell in placed] for axis in (0, 1))
        open_cells = [
            cell
            for cell in scores
            if cell not in placed
            and max(*rows, cell[0]) - min(*rows, cell[0]) < side
            and max(*columns, cell[1]) - min(*columns, cell[1]) < side
        ]
        remaining = sorted(left)
        best = max(open_cells, key=lambda cell: float(scores[cell][remaining].max()))
        row, at = np.unravel_index(int(scores[best][remaining].argmax()), (len(remaining), states))
        placed[best] = (remaining[int(row)], int(at))
        left.remove(remaining[int(row)])
        look(best)
    top, start = (min(cell[axis] for cell in placed) for axis in (0, 1))
    return {(row - top, column - start): found for (row, column), found in placed.items()}


def _table(sources: NDArray[np.integer], changes: list[_Change], shape: tuple[int, int, int], block: int) -> Table:
    """The table of a key: from which block each block comes, and what is done to it."""
    channels, height, width = shape
    places = _blocks(np.arange(channels * height * width).reshape(1, *shape), block)
    moved = np.stack([change.of(places[source]) for source, change in zip(sources, changes, strict=True)])
    signs = np.array([change.negated for change in changes])[:, None, None, None, None]
    place, negated = (
        some.reshape(height // block, width // block, channels, block, block).transpose(2, 0, 3, 1, 4).reshape(-1)
        for some in (moved, np.broadcast_to(signs, moved.shape))
    )
    return Table(np.ascontiguousarray(place).astype(np.int64), np.ascontiguousarray(negated))


def opened(table: Table, scrambled: Tensor) -> Tensor:
    """What a guessed key unscrambles: ``(n, c, h, w)`` floats to the same."""
    inverse = table.inverse()
    flat = scrambled.flatten(1)[:, torch.from_numpy(inverse.place)]
    return torch.where(torch.from_numpy(inverse.negated), -flat, flat).reshape(scrambled.shape)


def look_alikes(pictures: Tensor) -> list[Tensor]:
    """Whole pictures turned, mirrored, negated, with colours exchanged: what a jigsaw cannot tell apart.

    Args:
        pictures: ``(n, c, s, s)`` floats in [-1, 1].

    Returns:
        16 (gray) or 96 (RGB) batches like it; the first is as it was.
    """
    found = []
    for change in _changes(pictures.shape[1]):
        moved = torch.from_numpy(np.ascontiguousarray(change.of(pictures.numpy())))
        found.append(-moved if change.negated else moved)
    return found


def neighbours_kept(guess: Table, true: Table, shape: tuple[int, int, int], block: int) -> float:
    """Share of true neighbours that a guessed key puts side by side again, in percent.

    The measure of the jigsaw literature (Cho, Avidan and Freeman 2010), for pairs of pixels across the edges of
    blocks: whatever way up the whole is.

    Args:
        guess: The guessed key.
        true: The key.
        shape: Channels, height, width.
        block: Side of the cipher's blocks, in pixels.
    """
    channels, height, width = shape
    # Where the pixels of the true picture end up after the guess has unscrambled it.
    landed = np.empty(channels * height * width, dtype=np.int64)
    landed[true.place[guess.inverse().place]] = np.arange(len(landed))
    where = landed.reshape(shape) % (height * width)
    rows, columns = where // width, where % width
    kept = []
    for axis, side in ((2, width), (1, height)):
        before = np.arange(block - 1, side - 1, block)
        apart = sum(abs(place.take(before + 1, axis=axis) - place.take(before, axis=axis)) for place in (rows, columns))
        kept.append((np.asarray(apart) == 1).reshape(-1))
    return 100 * float(np.concatenate(kept).mean())
