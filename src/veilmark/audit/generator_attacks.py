"""What PPIDSG's released generator gives away: a way back to pictures, and the key that it learned to imitate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor, nn

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.cipher_attacks import known_plaintext
from veilmark.audit.record import Record, ThreatModel, finished_share, not_released
from veilmark.federation.methods.ppidsg import PPIDSGOptions, generator_of
from veilmark.ppidsg.cipher import Cipher, Table
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.networks import Generator
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for

Generate = Callable[[Tensor], Tensor]
"""Pictures ``(n, c, s, s)`` in [-1, 1] to what G makes of them."""


class InverseNetwork(nn.Module):
    """From G(x) back to x: a perceptron, since no convolution undoes a permutation of blocks, and three convolutions.

    Args:
        channels: 1 or 3.
        side: Pixels.
        width: Of the perceptron's hidden layer.
    """

    def __init__(self, channels: int, side: int, width: int = 1024) -> None:
        super().__init__()
        pixels = channels * side**2
        self.places = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, width),
            nn.ReLU(),
            nn.Linear(width, pixels),
            nn.Unflatten(1, (channels, side, side)),
        )
        self.refined = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, channels, side, side)`` to the same, in [-1, 1]."""
        rough = self.places(x)
        y: Tensor = torch.tanh(rough + self.refined(rough))
        return y


def train_inverse(
    generate: Generate,
    public: Tensor,
    *,
    steps: int = 600,
    batch: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> InverseNetwork:
    """Learns x from G(x) on public pictures: what whoever has G can do (threat model: outsider, server).

    Args:
        generate: The released G.
        public: ``(n, c, s, s)`` in [-1, 1], none of a client's, where G computes; the network will, too.
        steps: Steps of Adam.
        batch: Pictures a step.
        lr: Adam's rate, which falls to zero in a line.
        seed: Of first weights and order.
        advance: Called after each step.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = InverseNetwork(public.shape[1], public.shape[2]).to(public.device)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with torch.no_grad():
        made = torch.cat([generate(some) for some in torch.split(public, 256)])
    rng = rng_for(seed, 30)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(public), size=batch))
        loss = (network(made[rows]) - public[rows]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        advance()
    return network


def encryption_oracle(generate: Generate, public: Tensor, block: int) -> Table:
    """The key that G learned to imitate: G stands for the cipher, and its answers are snapped to the nearest key.

    Args:
        generate: The released G.
        public: ``(n, c, s, s)`` in [-1, 1], none of a client's, where G computes.
        block: Side of the cipher's blocks, which is public.

    Returns:
        The guessed key.
    """
    with torch.no_grad():
        made = torch.cat([generate(some) for some in torch.split(public, 256)])
    return known_plaintext(public.cpu(), made.cpu(), block)


def noise_in_place(seed: int) -> Generate:
    """Noise in [-1, 1] in place of what G makes of pictures, whatever they are."""
    generator = torch.Generator().manual_seed(seed)
    return lambda pictures: (torch.rand(pictures.shape, generator=generator) * 2 - 1).to(pictures.device)


class KeyOracle(Attack):
    """The scrambling key out of the released generator, which was trained to imitate it."""

    name = "key out of the generator"
    threat_model = ThreatModel.outsider
    needs = "the released generator; public pictures"
    question = "Does the released generator give away the secret with which clients scramble?"

    def obstacle(self, record: Record) -> str | None:
        """There must be a generator, and one key that it can have learned."""
        options = record.method.options
        if not isinstance(options, PPIDSGOptions) or not options.share:
            return "no generator travels"
        if options.scope != "federation":
            return f"keys are of the scope {options.scope}: no one key to find"
        return not_released(record)

    def findings(self, scene: Scene) -> list[Finding]:
        """The cipher in place of G, and G as the run ends with it."""
        record, options = scene.record, scene.record.method.options
        assert isinstance(options, PPIDSGOptions)
        assert scene.truth.key is not None
        public = to_unit(scene.public.inputs.to(scene.device))
        rehearsed = Cipher(Secret(rng_for(scene.seed, 33).bytes(SECRET_BYTES)), options.block)
        known = encryption_oracle(rehearsed.scramble, public, options.block)
        scene.advance()
        blind = encryption_oracle(noise_in_place(scene.seed), public, options.block)
        scene.advance()
        guess = self.run(record, public)
        scene.advance()
        chance = blocks_by_chance(record.task.channels, record.task.side, options.block, options.without)
        what = ("blocks of the key that are right", "%")
        shape = tuple(public.shape[1:])
        positive = blocks_right(known, rehearsed.table(*shape), shape, options.block)
        real = blocks_right(guess, scene.truth.key, shape, options.block)
        found = [
            self._finding(scene, "the cipher itself in place of the generator", *what, positive, chance),
            self._finding(scene, REAL, *what, real, chance),
        ]
        noise = blocks_right(blind, scene.truth.key, shape, options.block)
        return with_controls(found, float(np.mean(positive)), float(np.mean(noise)))

    def run(self, record: Record, public: Tensor) -> Table:
        """The guessed key.

        Args:
            record: What the server saw; an outsider has what it ends with.
            public: ``(n, c, s, s)`` in [-1, 1], where G is to compute.
        """
        options = record.method.options
        assert isinstance(options, PPIDSGOptions)
        return encryption_oracle(released(record, public.device), public, options.block)


def released(record: Record, device: torch.device | str = "cpu") -> Generator:
    """The generator that the run ends with, on a device."""
    return generator_in(record, finished_share(record), device)


def generator_in(record: Record, message: Tensors, device: torch.device | str = "cpu") -> Generator:
    """The generator in a broadcast or in a client's message.

    Args:
        record: What the server saw; its method is PPIDSG.
        message: One of its messages.
        device: Where it computes.
    """
    options = record.method.options
    assert isinstance(options, PPIDSGOptions)
    network = Generator(record.task.channels, skip=not options.published)
    network.load_state_dict(generator_of(message))
    return network.to(device)


def blocks_right(guess: Table, true: Table, shape: tuple[int, ...], block: int) -> list[float]:
    """For each block 100 where all of its pixels go to their place and are negated as they should be, else 0."""
    channels, height, width = shape
    same = (guess.place == true.place) & (guess.negated == true.negated)
    right = same.reshape(channels, height // block, block, width // block, block)
    return [100.0 * bool(some) for some in right.all(axis=(0, 2, 4)).reshape(-1)]


def blocks_by_chance(channels: int, side: int, block: int, without: Collection[str] = ()) -> float:
    """Percent of a key's blocks that a guess has right: place, orientation, negation, order of colours.

    Args:
        channels: 1 or 3.
        side: Of the pictures, in pixels.
        block: Side of a block.
        without: Steps of the cipher that are left out; whoever guesses knows that.
    """
    turns = {(True, True): 8, (True, False): 4, (False, True): 3, (False, False): 1}
    ways = turns["rotate" not in without, "flip" not in without]
    ways *= 1 if "negate" in without else 2
    ways *= 1 if "colour" in without else math.factorial(channels)
    ways *= 1 if "permute" in without else (side // block) ** 2
    return 100 / ways
