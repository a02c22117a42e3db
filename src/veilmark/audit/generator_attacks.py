"""What PPIDSG's released generator gives away: a way back to pictures, and the key that it learned to imitate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from veilmark.audit.cipher_attacks import known_plaintext
from veilmark.ppidsg.cipher import Table
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
        public: ``(n, c, s, s)`` in [-1, 1], none of a client's.
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
        network = InverseNetwork(public.shape[1], public.shape[2])
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
        public: ``(n, c, s, s)`` in [-1, 1], none of a client's.
        block: Side of the cipher's blocks, which is public.

    Returns:
        The guessed key.
    """
    with torch.no_grad():
        made = torch.cat([generate(some) for some in torch.split(public, 256)])
    return known_plaintext(public, made, block)
