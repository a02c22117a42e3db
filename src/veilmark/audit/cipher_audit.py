"""How few pictures would open a key of a run, the common one or a client's own: pairs, and scrambled pictures alone.

No scrambled picture travels in any run, so neither attack has a rung ``as it was``. Their rungs say how much would have
to leak before the key is open: a disk, a screen, a backup with scrambled pictures on it. What is to leak is made by the
scorer's side, which has the run's keys; attacks get the leaked pictures and nothing else of the truth. Where each
client has a key of its own, what leaks is always of one client, and figures are means over clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from veilmark.audit.attack import Attack, Finding, Scene, with_controls
from veilmark.audit.cipher_attacks import jigsaw, known_distribution, known_plaintext, neighbours_kept, opened
from veilmark.audit.record import Record, ThreatModel
from veilmark.federation.methods.etc import EtCOptions
from veilmark.federation.methods.ppidsg import PPIDSGOptions
from veilmark.ppidsg.cipher import STEPS, Cipher, Table
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.seeds import rng_for

PAIRS = (64, 16, 4, 1)
"""Leaked pairs, easiest rung first."""
CIPHERTEXTS = 64
"""Scrambled pictures that a jigsaw gets."""
CLIENTS = 4
"""Clients whose own keys are attacked, the first ones: a jigsaw in colour takes seconds."""
_HELD = 64
"""Pictures at most that a guessed key is tried on."""
_KEYS = 8
"""Random keys whose mean is the chance level."""
_DRAWS = 3
"""Sets of scrambled pictures that a jigsaw is played on."""
_MOST_STATES = 8192
"""Blocks times ways to turn one: the jigsaw compares each with each, and holds the table in memory."""
_EXACT = 0.5 / 127.5
"""Half a step of a byte, in pictures in [-1, 1]."""


def key_obstacle(record: Record) -> str | None:
    """Why a record has no key of more than one picture that could be opened; None where it has."""
    options = record.method.options
    if not isinstance(options, PPIDSGOptions | EtCOptions):
        return "nothing is scrambled in this method"
    if options.scope == "image":
        return "each picture has a key of its own (scope image): the key of one opens no other"
    return None


def pixels_right(guess: Table, key: Table, pictures: Tensor) -> list[float]:
    """Share of pixels that a guessed key puts right again, in percent, by picture.

    Keys that do the same to a picture count the same: a flat block may lie any way up.

    Args:
        guess: The guessed key.
        key: The key.
        pictures: ``(n, c, h, w)`` in [-1, 1], which the attack did not have.
    """
    found = opened(guess, scrambled_with(key, pictures))
    right: list[float] = (100 * ((found - pictures).abs() < _EXACT).flatten(1).double().mean(dim=1)).tolist()
    return right


def scrambled_with(key: Table, pictures: Tensor) -> Tensor:
    """Pictures ``(n, c, h, w)`` in [-1, 1], scrambled with a key."""
    return opened(key.inverse(), pictures)


class CipherKnownPlaintext(Attack):
    """The key from a few leaked pictures and their scrambled selves.

    No pair ever travels in a run: there is no rung ``as it was``. Pairs are made by the scorer's side with the run's
    keys from public pictures. The threat model is the server: a client has the federation's key itself and needs no
    attack, and from the server it is to be kept.
    """

    name = "key from leaked pairs"
    cost = 0.1
    threat_model = ThreatModel.server
    needs = "pictures of a client together with their scrambled selves; neither travels"
    question = "If a few pictures leaked together with their scrambled selves, would all others of that key be open?"

    def obstacle(self, record: Record) -> str | None:
        """There must be a cipher, with a key of more than one picture."""
        return key_obstacle(record)

    def findings(self, scene: Scene) -> list[Finding]:
        """From 64 pairs to one, as far as public pictures go; tried on public pictures that are in no pair."""
        keys, block = _keys(scene), _block(scene)
        public, held = _split(scene)
        shape = _shape(public)

        def score(guesses: Sequence[Table]) -> list[float]:
            return _by_key([pixels_right(guess, key, held) for guess, key in zip(guesses, keys, strict=True)])

        texture = torch.from_numpy(rng_for(scene.seed, 41).uniform(-1, 1, (1, *shape)).astype(np.float32))
        chosen = [known_plaintext(texture, scrambled_with(key, texture), block) for key in keys]
        positive = float(np.mean(score(chosen)))
        scene.advance()
        few = public[: PAIRS[0]]
        # Each with a key of its own, none of them the run's: pairs that do not belong together say nothing of it.
        strange = torch.cat(
            [scrambled_with(_random_key(scene, 100 + row), few[row : row + 1]) for row in range(len(few))]
        )
        negative = float(np.mean(score([known_plaintext(few, strange, block)] * len(keys))))
        scene.advance()
        chance = _chance(scene, lambda guess: score([guess] * len(keys)))
        found = []
        for count in (count for count in PAIRS if count <= len(public)):
            leaked = public[:count]
            values = score([self.run(leaked, scrambled_with(key, leaked), block) for key in keys])
            rung = f"{count} leaked pair{'s' if count > 1 else ''}{_whose(scene)}"
            found.append(self._finding(scene, rung, "pixels of other pictures unscrambled", "%", values, chance))
            scene.advance()
        return with_controls(found, positive, negative)

    def run(self, pictures: Tensor, scrambled: Tensor, block: int) -> Table:
        """The guessed key.

        Args:
            pictures: ``(n, c, h, w)`` in [-1, 1].
            scrambled: The same, scrambled.
            block: Side of the cipher's blocks, which is public.
        """
        return known_plaintext(pictures, scrambled, block)


class CipherJigsaw(Attack):
    """The key from scrambled pictures alone, put together like a jigsaw, or by the statistics of their kind.

    No scrambled picture travels in a run: there is no rung ``as it was``. They are made by the scorer's side with the
    run's keys from public pictures. Which way up the whole is, and whether it is negated, a jigsaw cannot know and the
    measure does not ask: whoever looks at the result sees it.
    """

    name = "key from scrambled pictures alone"
    cost = 0.1
    threat_model = ThreatModel.server
    needs = "scrambled pictures of clients, which do not travel"
    question = "If scrambled pictures leaked without their originals, could somebody put them together again?"

    def obstacle(self, record: Record) -> str | None:
        """There must be a cipher, with a key of more than one picture, and not too many pieces."""
        if why := key_obstacle(record):
            return why
        ways = 96 if record.task.channels == 3 else 16
        pieces = (record.task.side // record.method.options.block) ** 2
        if pieces * ways > _MOST_STATES:
            return f"{pieces} blocks in {ways} ways each are more than this jigsaw compares"
        return None

    def findings(self, scene: Scene) -> list[Finding]:
        """Up to 64 scrambled pictures, three times; first with the statistics of other public pictures."""
        keys, block = _keys(scene), _block(scene)
        public, other = _split(scene)
        shape = _shape(public)

        def score(key: Table, solve: Callable[[Tensor], Table], pictures: Tensor) -> float:
            kept = neighbours_kept(solve(scrambled_with(key, pictures)), key, shape, block)
            scene.advance()
            return kept

        def guessed(guess: Table) -> list[float]:
            return [neighbours_kept(guess, key, shape, block) for key in keys]

        count = max(2, min(CIPHERTEXTS, len(public) // _DRAWS))
        parts = [some for some in torch.split(public, count)[:_DRAWS] if len(some) > 1]
        waves = _waves(scene, count, shape)
        positive = float(np.mean([score(key, partial(jigsaw, block=block), waves) for key in keys]))
        noise = rng_for(scene.seed, 43).uniform(-1, 1, (count, *shape)).astype(np.float32)
        negative = float(np.mean(guessed(jigsaw(torch.from_numpy(noise), block))))
        scene.advance()
        chance = _chance(scene, guessed)
        what = ("neighbouring pixels across blocks that are side by side again", "%")
        found = []
        if len(other) > 1:
            rung = f"{count} scrambled pictures{_whose(scene)}, {len(other)} others of their kind: by statistics"
            solve = partial(known_distribution, other, block=block)
            values = _by_key([[score(key, solve, some) for some in parts] for key in keys])
            found.append(self._finding(scene, rung, *what, values, chance))
        solve = partial(self.run, block=block)
        values = _by_key([[score(key, solve, some) for some in parts] for key in keys])
        rung = f"{count} scrambled pictures{_whose(scene)}: jigsaw"
        found.append(self._finding(scene, rung, *what, values, chance))
        return with_controls(found, positive, negative)

    def run(self, scrambled: Tensor, block: int) -> Table:
        """The guessed key.

        Args:
            scrambled: ``(n, c, s, s)`` in [-1, 1].
            block: Side of the cipher's blocks, which is public.
        """
        return jigsaw(scrambled, block)


def _keys(scene: Scene) -> list[Table]:
    """The run's common key, or those of its first clients, with which the scorer's side makes what leaks."""
    truth = scene.truth
    keys = list(truth.keys[:CLIENTS]) if truth.key is None else [truth.key]
    if not keys:
        raise ValueError("the scorer needs the run's key to make what leaks")
    return keys


def _by_key(scores: Sequence[list[float]]) -> list[float]:
    """All scores of one key; the mean of each, where there are several."""
    return scores[0] if len(scores) == 1 else [float(np.mean(some)) for some in scores]


def _whose(scene: Scene) -> str:
    """Whose key is opened, for the name of a rung."""
    return " of one client's key" if scene.record.method.options.scope == "client" else ""


def _block(scene: Scene) -> int:
    options = scene.record.method.options
    assert isinstance(options, PPIDSGOptions | EtCOptions)
    return options.block


def _shape(pictures: Tensor) -> tuple[int, int, int]:
    channels, height, width = pictures.shape[1:]
    return channels, height, width


def _split(scene: Scene) -> tuple[Tensor, Tensor]:
    """Public pictures that leak, and those that do not."""
    rows = torch.from_numpy(rng_for(scene.seed, 40).permutation(len(scene.public)))
    pictures = to_unit(scene.public.inputs[rows])
    held = min(_HELD, len(pictures) // 2)
    return pictures[held:], pictures[:held]


def _random_key(scene: Scene, number: int) -> Table:
    options, task = scene.record.method.options, scene.record.task
    secret = Secret(rng_for(scene.seed, 42, number).bytes(SECRET_BYTES))
    steps = [step for step in STEPS if step not in options.without]
    return Cipher(secret, options.block, steps).table(task.channels, task.side, task.side)


def _chance(scene: Scene, scores: Callable[[Table], Sequence[float]]) -> float:
    """What random keys get that the cipher could have made."""
    return float(np.mean([np.mean(scores(_random_key(scene, 1 + number))) for number in range(_KEYS)]))


def _waves(scene: Scene, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Pictures of some slow waves: every edge continues across it, so a jigsaw must be solved."""
    rng = rng_for(scene.seed, 44)
    rows, columns = np.mgrid[: shape[1], : shape[2]] / shape[1]
    made = np.zeros((count, *shape))
    for _ in range(4):
        wave, phase = rng.normal(0, 6, (2, count, shape[0], 1, 1)), rng.uniform(0, 6.3, (count, shape[0], 1, 1))
        made += np.sin(wave[0] * rows + wave[1] * columns + phase)
    return torch.from_numpy((made / np.abs(made).max()).astype(np.float32))
