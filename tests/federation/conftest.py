"""A tiny federation: pictures of 16 px with an upright or a lying bar, three clients, no file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from veilmark.federation.methods.method import ClientView, Method, Secrets, ServerView
from veilmark.federation.tasks.classify import Classify, ClassifyConfig
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.secret import Secret
from veilmark.run.local_training import Training

CLASSES = ("lying", "upright")


def bars(count, seed=0, channels=1, side=16):
    """Pictures of two classes that a look tells apart."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 60, (count, channels, side, side), dtype=np.uint8)
    labels = np.arange(count) % 2
    for picture, label in zip(pictures, labels, strict=True):
        at = int(rng.integers(2, side - 4))
        if label:
            picture[:, :, at : at + 3] = 230
        else:
            picture[:, at : at + 3] = 230
    names = tuple(f"{seed}/{row}".encode() for row in range(count))
    return Data(torch.from_numpy(pictures), torch.from_numpy(labels), names)


@dataclass
class Bench:
    """Everything that methods are handed, small."""

    task: Classify
    owners: list[Data]
    training: Training
    rounds: int = 4
    seed: int = 0

    def client(self, method: Method, number: int = 0):
        secrets = Secrets(Secret(b"f" * 32), Secret(bytes([number]) * 32))
        view = ClientView(number, self.task, self.owners[number], self.training, self.rounds, self.seed, secrets)
        return method.client(view)

    def server(self, method: Method):
        return method.server(ServerView(self.task, len(self.owners), self.rounds, self.seed, self.training))


@pytest.fixture
def bench():
    """Makes a :class:`Bench`: ``bench(batch=4, images=12, head_widths=(24, 12))``."""

    def make(images=12, clients=3, channels=1, head_widths=(24, 12), rounds=4, seed=0, **training):
        config = ClassifyConfig(layout="digits", head_widths=head_widths)
        task = Classify(config, CLASSES, channels, 16, bars(20, 99, channels))
        owners = [bars(images, number, channels) for number in range(clients)]
        return Bench(task, owners, Training(**({"batch": 4, "lr": 0.05} | training)), rounds, seed)

    return make
