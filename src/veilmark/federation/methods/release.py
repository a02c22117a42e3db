"""What a client does to its message before it leaves: a bound on all of it, Gaussian noise, and what that promises.

:func:`released` with :func:`client_epsilon` is differential privacy in the local model: **the unit is all that one
client has; neighbours differ by replacing one client's examples by any others.** A bounded movement has a norm of
``clip`` at most, so two of them differ by ``2 clip`` at most, whatever the client has: that is the sensitivity, and
noise of deviation ``noise * clip`` is ``noise / 2`` of it. Every client sends in every round, so nothing is gained by
sampling; rounds compose (RDP of Mironov 2017, by Opacus). It holds against whoever sees all messages of the run, the
server included: what a client keeps between rounds depends on its examples and on what was sent before, nothing else.

Not covered: how many examples a client has, and whatever else it tells, such as scores. Chance comes from the client's
secret and from what it hides (:func:`secret_for`), so that a run repeats bit for bit, and two messages have the same
noise only where they are the same message; it goes through a generator that is not cryptographic, in floating point.
Runs on the same examples add up: no accountant here counts more than one.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors

DELTA = 1e-5
"""Of :func:`client_epsilon`: far below one over any number of clients."""


def bounded(tensors: Tensors, clip: float) -> Tensors:
    """All tensors times one factor, so that their common norm is ``clip`` at most."""
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in tensors.values()))
    return {name: value * min(1.0, clip / max(norm, 1e-30)) for name, value in tensors.items()}


def private_rng(secret: Secret, purpose: str) -> np.random.Generator:
    """Chance that the server cannot draw again: whoever could would take the noise off.

    Args:
        secret: The client's own.
        purpose: What it is for; it names the round, since noise that is used twice cancels.
    """
    return np.random.default_rng(secret.stream(purpose.encode()).take(32).view("<u4").tolist())


def secret_for(secret: Secret, purpose: str, *hidden: Tensors) -> Secret:
    """A secret for the chance of one message: noise that two messages shared would cancel in their difference.

    As deterministic signatures draw their nonces (RFC 6979): from a key and from what is signed. The same values give
    the same message again, which says nothing new; any other broadcast, example, setting or memory has chance of its
    own.

    Args:
        secret: The client's own.
        purpose: What it is for.
        hidden: All that chance is to hide, or all that determines it.
    """
    digest = hashlib.sha256(purpose.encode())
    for tensors in hidden:
        for name in sorted(tensors):
            value = tensors[name].detach().cpu().contiguous()
            digest.update(f"|{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return secret.derive(b"message|" + digest.digest())


def gaussian(rng: np.random.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape and type of a tensor."""
    return torch.from_numpy(rng.standard_normal(tuple(like.shape), dtype=np.float32)).to(like.dtype)


def released(
    broadcast: Tensors, trained: Tensors, clip: float, deviation: float, secret: Secret, purpose: str
) -> Tensors:
    """The broadcast, moved by a bounded movement with noise.

    Args:
        broadcast: What training began with.
        trained: What it ended with, the same names.
        clip: Largest norm of the movement, over all tensors together.
        deviation: Standard deviation of the noise on every number; 0 for none.
        secret: The client's own.
        purpose: Of the noise; it names the round.
    """
    rng = private_rng(secret_for(secret, f"{purpose}|{clip}|{deviation}", broadcast, trained), "noise")
    movement = bounded({name: value - broadcast[name] for name, value in trained.items()}, clip)
    sent = {name: broadcast[name] + value for name, value in movement.items()}
    return {name: value + deviation * gaussian(rng, value) for name, value in sent.items()} if deviation else sent


@functools.lru_cache(maxsize=256)
def client_epsilon(noise: float, rounds: int) -> float:
    """Epsilon at ``DELTA`` of one client's messages, an upper bound; the unit is all that the client has.

    Args:
        noise: Deviation of the noise over the bound of the movement, above 0.
        rounds: Messages.
    """
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    # Little noise has its best order just above 1, which Opacus's own orders do not reach.
    orders = (1 + np.logspace(-7, 3, 400)).tolist()
    rdp = compute_rdp(q=1.0, noise_multiplier=noise / 2, steps=rounds, orders=orders)
    return float(get_privacy_spent(orders=orders, rdp=rdp, delta=DELTA)[0])
