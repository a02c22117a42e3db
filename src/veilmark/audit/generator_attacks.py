"""What PPIDSG's released generator gives away: a way back to pictures, and the key that it learned to imitate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.cipher_attacks import known_plaintext
from veilmark.audit.record import Record, ThreatModel, finished_share, not_released
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of, generator_of
from veilmark.ppidsg.cipher import Cipher, Table
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import semantic_loss
from veilmark.ppidsg.networks import Generator
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for

Generate = Callable[[Tensor], Tensor]
"""Pictures ``(n, c, s, s)`` in [-1, 1] to what G makes of them."""

BATCH, RATE = 20, 1e-3
"""Of Adam, with which a generator is taught a key."""
CLIENTS = 8
"""Clients whose own keys are looked for, at most: with a thousand pictures in colour, one takes half a minute."""
_METRIC = "blocks of the key that are right"


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
    """The scrambling key out of a generator, which was trained to imitate it.

    A key that all clients share is looked for in what the run ends with. Where each client has a key of its own, it is
    looked for in the generator that this client sent last, which only the server has.

    Args:
        steps: Of Adam, with which the attacker teaches the run's first generator a key of its own, by the semantic loss
            alone. As few as make the control sure: on 100 digits of 28 px the oracle then reads 67 % of the blocks
            after 10, 92 % after 20 and 98 % after 30 (of blocks of 2: 61 %), on MNIST 31 %, where chance is 0.1; 30
            take 12 seconds of a core.
    """

    name = "key out of the generator"
    cost = 6.0
    threat_model = ThreatModel.outsider
    needs = "the released generator, or those that clients with keys of their own sent; public pictures"
    question = "Does the generator give away the secret with which clients scramble?"

    def __init__(self, steps: int = 30) -> None:
        self.steps = steps

    def obstacle(self, record: Record) -> str | None:
        """There must be a generator, and a key that it can have learned."""
        options = record.method.options
        if not isinstance(options, PPIDSGOptions) or not options.share:
            return "no generator travels"
        if options.scope == "image":
            return "each picture has a key of its own (scope image): there is none that a generator could learn"
        if options.scope == "client":
            return None if last_sent(record) else "no message of a client is in the record, and with it no client's key"
        return not_released(record)

    def findings(self, scene: Scene) -> list[Finding]:
        """A generator that the attacker taught a key, and the run's; the control is the cipher in place of G."""
        record, options = scene.record, scene.record.method.options
        assert isinstance(options, PPIDSGOptions)
        public = to_unit(scene.public.inputs.to(scene.device))
        shape = (record.task.channels, record.task.side, record.task.side)

        def right(guess: Table, key: Table) -> list[float]:
            scene.advance()
            return blocks_right(guess, key, shape, options.block)

        secret = Secret(rng_for(scene.seed, 33).bytes(SECRET_BYTES))
        rehearsed = cipher_of(options, secret, secret)
        own = rehearsed.table(*shape)
        positive = right(encryption_oracle(rehearsed.scramble, public, options.block), own)
        pupil = generator_in(record, record.start, scene.device)
        teach_key(pupil, public, rehearsed, steps=self.steps, seed=scene.seed, advance=scene.advance)
        taught = right(encryption_oracle(pupil, public, options.block), own)
        asked = _asked(scene)
        real = [right(self.run(record, sent, public), key) for sent, key in asked]
        blind = encryption_oracle(noise_in_place(scene.seed), public, options.block)
        noise = float(np.mean([right(blind, key) for _, key in asked]))
        chance = blocks_by_chance(record.task.channels, record.task.side, options.block, options.without)
        rung = "a generator that the attacker taught a key of its own"
        # Of keys of clients each is a unit, else each block is.
        values = [float(np.mean(some)) for some in real] if options.scope == "client" else real[0]
        found = [
            self._finding(scene, rung, _METRIC, "%", taught, chance),
            self._finding(scene, REAL, _METRIC, "%", values, chance),
        ]
        if options.scope == "client":
            # What a client sends reaches the server only.
            found = [replace(some, threat_model=ThreatModel.server.value) for some in found]
        return with_controls(found, float(np.mean(positive)), noise)

    def run(self, record: Record, message: Tensors, public: Tensor) -> Table:
        """The guessed key.

        Args:
            record: What the server saw.
            message: Whose generator is asked: what the run ends with, or what a client sent.
            public: ``(n, c, s, s)`` in [-1, 1], where G is to compute.
        """
        options = record.method.options
        assert isinstance(options, PPIDSGOptions)
        return encryption_oracle(generator_in(record, message, public.device), public, options.block)


def _asked(scene: Scene) -> list[tuple[Tensors, Table]]:
    """The messages whose generators are asked, each with the key that answers are scored against."""
    record, truth = scene.record, scene.truth
    if record.method.options.scope == "client":
        return [(sent, truth.keys[client]) for client, sent in last_sent(record).items()]
    assert truth.key is not None
    return [(finished_share(record), truth.key)]


def teach_key(
    generator: Generator,
    public: Tensor,
    cipher: Cipher,
    *,
    steps: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Teaches a generator what a cipher makes of pictures.

    Args:
        generator: Changed in place.
        public: ``(n, c, s, s)`` in [-1, 1], where it computes.
        cipher: With the key that it is to learn.
        steps: Steps of Adam, as PPIDSG's clients take them, on the semantic loss.
        seed: Of the order.
        advance: Called after each step.
    """
    scrambled, rng = cipher.scramble(public), rng_for(seed, 79)
    optimizer = torch.optim.Adam(generator.parameters(), RATE, betas=(0.5, 0.999))
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(public), size=BATCH))
        loss = semantic_loss(generator(public[rows]), scrambled[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        advance()


def last_sent(record: Record) -> dict[int, Tensors]:
    """What each client sent last, as far as it is recorded; of the first ``CLIENTS`` clients that sent anything."""
    sent = {client: update.tensors for recorded in record.rounds for client, update in recorded.updates.items()}
    return {client: sent[client] for client in sorted(sent)[:CLIENTS]}


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
    network = Generator(record.task.channels, skip="generator" not in options.published)
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
