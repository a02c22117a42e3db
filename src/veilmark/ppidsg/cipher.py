"""The block cipher of PPIDSG (Algorithm 1 of the paper, arXiv 2312.10380): images scrambled, exactly reversibly.

Per block of B x B pixels: rotate (K1), negate (K2), flip (K3), permute the colour channels (K4, RGB only); then permute
the blocks (K5). All of it moves or negates single values, so the whole cipher is one table of places and one of signs.

It hides the look of a picture. It is **not** encryption in the cryptographic sense: one known pair of a textured
picture opens the whole key, since every step can be read off the pixels. See ``docs/cipher.md``.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.errors import ConfigError

BLOCKS = (2, 4, 8, 16)
STEPS = ("rotate", "negate", "flip", "colour", "permute")
"""The steps in the order of Algorithm 1, K1 to K5."""

_COLOURS = np.array(list(itertools.permutations(range(3))))
_KEPT_TABLES = 64


@dataclass(frozen=True)
class Table:
    """What the cipher does to pictures of one shape: ``scrambled[p] = +-picture[place[p]]``, on flattened pictures.

    Attributes:
        place: ``(c h w,)`` int64.
        negated: ``(c h w,)`` bool.
    """

    place: NDArray[np.int64]
    negated: NDArray[np.bool_]

    def inverse(self) -> Table:
        """The table that undoes this one."""
        place = np.empty_like(self.place)
        place[self.place] = np.arange(len(place))
        return Table(place, self.negated[place])


class Cipher:
    """Scrambles and unscrambles batches of pictures of any size, gray or RGB, on any device.

    Args:
        secret: What the subkeys are expanded from.
        block: Side of a block in pixels: 2, 4, 8 or 16.
        steps: Which steps are taken; a step's subkey does not depend on which others are.

    Raises:
        ConfigError: If the block or a step is none of these.
    """

    def __init__(self, secret: Secret, block: int = 4, steps: Sequence[str] = STEPS) -> None:
        if block not in BLOCKS:
            raise ConfigError(f"block is {block}; allowed: {', '.join(map(str, BLOCKS))}")
        unknown = [step for step in steps if step not in STEPS]
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is no step of the cipher; allowed: {', '.join(STEPS)}")
        self.secret, self.block = secret, block
        self.steps = tuple(step for step in STEPS if step in steps)
        self._tables: OrderedDict[tuple[int, int, int, bool], Table] = OrderedDict()

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after edges have been repeated to whole blocks."""
        return -(-height // self.block) * self.block, -(-width // self.block) * self.block

    def subkeys(self, channels: int, height: int, width: int) -> dict[str, NDArray[np.integer]]:
        """The subkeys K1 to K5 for pictures of one shape, by step.

        Pictures of another shape get unrelated ones, so that what is learned from thumbnails does not open the rest.

        Args:
            channels: 1 or 3.
            height: Height in pixels.
            width: Width in pixels.

        Returns:
            Per block: ``rotate`` quarter turns against the clock, 0 to 3; ``negate`` 0 or 1; ``flip`` 0 none, 1 left
            and right, 2 up and down; ``colour`` 0 to 5, a place among the permutations of RGB. ``permute``: from which
            block each block comes.
        """
        rows, columns = (side // self.block for side in self.padded(height, width))
        count = rows * columns
        keys: dict[str, NDArray[np.integer]] = {}
        for number, step in enumerate(STEPS, start=1):
            purpose = f"K{number} {step}|block={self.block}|grid={rows}x{columns}|channels={channels}"
            stream = self.secret.stream(purpose.encode("ascii"))
            if step == "permute":
                keys[step] = stream.permutation(count)
            else:
                keys[step] = stream.below({"rotate": 4, "negate": 2, "flip": 3, "colour": 6}[step], count)
        return keys

    def table(self, channels: int, height: int, width: int) -> Table:
        """What :meth:`scramble` does to pictures of one shape; sides are multiples of the block.

        Raises:
            ValueError: If channels are neither 1 nor 3.
        """
        if channels not in (1, 3):
            raise ValueError(f"pictures have 1 or 3 channels, not {channels}")
        b = self.block
        rows, columns = height // b, width // b
        keys = self.subkeys(channels, height, width)
        places = np.arange(channels * height * width).reshape(channels, rows, b, columns, b)
        blocks = places.transpose(1, 3, 0, 2, 4).reshape(rows * columns, channels, b, b).copy()
        negated = np.zeros(len(blocks), dtype=np.bool_)
        if "rotate" in self.steps:
            for turns in (1, 2, 3):
                of_these = keys["rotate"] == turns
                blocks[of_these] = np.rot90(blocks[of_these], turns, axes=(2, 3))
        if "negate" in self.steps:
            negated = keys["negate"] == 1
        if "flip" in self.steps:
            for flip, axis in ((1, 3), (2, 2)):
                of_these = keys["flip"] == flip
                blocks[of_these] = np.flip(blocks[of_these], axis=axis)
        if "colour" in self.steps and channels == 3:
            blocks = blocks[np.arange(len(blocks))[:, None], _COLOURS[keys["colour"]]]
        if "permute" in self.steps:
            blocks, negated = blocks[keys["permute"]], negated[keys["permute"]]
        whole = np.broadcast_to(negated[:, None, None, None], blocks.shape)
        place, signs = (
            part.reshape(rows, columns, channels, b, b).transpose(2, 0, 3, 1, 4).reshape(-1) for part in (blocks, whole)
        )
        return Table(np.ascontiguousarray(place), np.ascontiguousarray(signs))

    def scramble(self, pictures: Tensor, images: Sequence[bytes] | None = None) -> Tensor:
        """Scrambles a batch.

        Args:
            pictures: ``(n, c, h, w)``: uint8, negated to ``255 - v``; or floating point in [-1, 1], negated to
                ``-v``. Both are the same, since ``v / 127.5 - 1`` maps one on the other. Edges are repeated to whole
                blocks.
            images: One name per picture, for the scope ``image``: every picture is scrambled with a secret of its
                own, derived from this cipher's secret and its name. None: all with the same.

        Returns:
            ``(n, c, *padded(h, w))`` of the same dtype and device.

        Raises:
            ValueError: If the shape or dtype does not fit, or the names' number.
        """
        _check(pictures, images)
        height, width = pictures.shape[2:]
        high, wide = self.padded(height, width)
        rows = torch.arange(high, device=pictures.device).clamp_max(height - 1)
        columns = torch.arange(wide, device=pictures.device).clamp_max(width - 1)
        whole = pictures if (high, wide) == (height, width) else pictures[:, :, rows][:, :, :, columns]
        return self._apply(whole, images, inverse=False)

    def unscramble(
        self, scrambled: Tensor, size: tuple[int, int] | None = None, images: Sequence[bytes] | None = None
    ) -> Tensor:
        """Undoes :meth:`scramble`, exactly.

        Args:
            scrambled: ``(n, c, h, w)``, sides multiples of the block.
            size: Height and width of the picture, where its edges had been repeated.
            images: As in :meth:`scramble`.

        Returns:
            ``(n, c, *size)``.

        Raises:
            ValueError: If the shape, dtype or size does not fit, or the names' number.
        """
        _check(scrambled, images)
        height, width = scrambled.shape[2:]
        if (height, width) != self.padded(height, width):
            raise ValueError(f"sides {height} x {width} are not multiples of the block, {self.block}: not scrambled so")
        size = size or (height, width)
        if self.padded(*size) != (height, width):
            raise ValueError(f"a picture of {size[0]} x {size[1]} is not scrambled to {height} x {width}")
        return self._apply(scrambled, images, inverse=True)[:, :, : size[0], : size[1]]

    def _apply(self, pictures: Tensor, images: Sequence[bytes] | None, inverse: bool) -> Tensor:
        shape = tuple(pictures.shape[1:])
        if images is None:
            table = self._kept(shape, inverse)
            return _by_table(pictures, table.place, table.negated)
        tables = [self._of_image(name)._made(shape, inverse) for name in images]
        if not tables:
            return pictures.clone()
        place = np.stack([table.place for table in tables])
        return _by_table(pictures, place, np.stack([table.negated for table in tables]))

    def _of_image(self, name: bytes) -> Cipher:
        return Cipher(self.secret.derive(b"image|" + name), self.block, self.steps)

    def _made(self, shape: tuple[int, ...], inverse: bool) -> Table:
        table = self.table(*shape)
        return table.inverse() if inverse else table

    def _kept(self, shape: tuple[int, ...], inverse: bool) -> Table:
        key = (shape[0], shape[1], shape[2], inverse)
        if key not in self._tables:
            self._tables[key] = self._made(shape, inverse)
            if len(self._tables) > _KEPT_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


def _check(pictures: Tensor, images: Sequence[bytes] | None) -> None:
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or 0 in pictures.shape[1:]:
        raise ValueError(f"expected pictures (n, 1 or 3, h, w), got {tuple(pictures.shape)}")
    if pictures.dtype != torch.uint8 and not pictures.is_floating_point():
        raise ValueError(f"expected uint8 or floating point, got {pictures.dtype}")
    if images is not None and len(images) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures, but {len(images)} names")


def _by_table(pictures: Tensor, place: NDArray[np.int64], negated: NDArray[np.bool_]) -> Tensor:
    """``place`` and ``negated`` are ``(d,)`` for all pictures, or ``(n, d)`` for one each."""
    flat = pictures.flatten(1)
    if pictures.device.type == "cpu" and pictures.dtype in (torch.uint8, torch.float32, torch.float64):
        # numpy's take is several times as fast as torch's index_select on small elements.
        values = flat.detach().numpy()
        moved = values.take(place, axis=1) if place.ndim == 1 else np.take_along_axis(values, place, axis=1)
        if pictures.dtype == torch.uint8:
            moved ^= np.where(negated, 255, 0).astype(np.uint8)
        else:
            moved *= np.where(negated, -1, 1).astype(moved.dtype)
        return torch.from_numpy(moved).reshape(pictures.shape)
    index = torch.as_tensor(place, device=pictures.device)
    negate = torch.as_tensor(negated, device=pictures.device)
    out = flat[:, index] if index.ndim == 1 else flat.gather(1, index)
    other = 255 - out if pictures.dtype == torch.uint8 else -out
    return torch.where(negate, other, out).reshape(pictures.shape)


@dataclass(frozen=True)
class KeySpace:
    """How many keys there are, in bits, counting what can be told apart.

    Attributes:
        orientation: Rotation and flip together. Four turns times three flips are 12 settings but 8 orientations.
        negation: One bit a block.
        colour: Permutations of the channels.
        permutation: Orders of the blocks.
        secret: What the secret holds: no key space is larger than that.
    """

    orientation: float
    negation: float
    colour: float
    permutation: float
    secret: float = 8.0 * SECRET_BYTES

    @property
    def distinct(self) -> float:
        """Different scramblings, in bits."""
        return self.orientation + self.negation + self.colour + self.permutation

    @property
    def effective(self) -> float:
        """What a search through all keys costs at most: the smaller of scramblings and secrets."""
        return min(self.distinct, self.secret)


def key_space(channels: int, height: int, width: int, block: int = 4, steps: Sequence[str] = STEPS) -> KeySpace:
    """Key space for pictures of one shape.

    Large, and no measure of safety: known pairs, or how neighbouring blocks fit, open the cipher without a search.

    Args:
        channels: 1 or 3.
        height: Height in pixels.
        width: Width in pixels.
        block: Side of a block in pixels.
        steps: The steps taken.
    """
    count = -(-height // block) * -(-width // block)
    rotate, flip = "rotate" in steps, "flip" in steps
    orientations = 8 if rotate and flip else 4 if rotate else 3 if flip else 1
    return KeySpace(
        orientation=count * math.log2(orientations),
        negation=float(count) if "negate" in steps else 0.0,
        colour=count * math.log2(6) if "colour" in steps and channels == 3 else 0.0,
        permutation=math.lgamma(count + 1) / math.log(2) if "permute" in steps else 0.0,
    )
