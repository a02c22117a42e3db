"""A client as a Flower app. Its pictures, secrets and memory lie on its own machine; messages carry tensors and scores.

Three kinds of messages, whatever the engine: ``query`` (which client is this, and which federation does it play?),
``train`` and ``evaluate``; both bring the broadcast and the number of the round.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from veilmark.federation.client_side import ClientSide, SecretFolder
from veilmark.federation.config import federation_from
from veilmark.federation.tasks.loading import load_task
from veilmark.run.checkpoints import Tensors
from veilmark.run.errors import VeilmarkError

TENSORS, ROUND, FIGURES, CLIENT = "tensors", "round", "figures", "client"
EXAMPLES, CONFIG = "num-examples", "config"
"""Names of records and of their entries."""


@dataclass(frozen=True)
class Place:
    """Where a client finds what is its own.

    Attributes:
        config: The federation, as JSON.
        data: Folder of the data set; None for a bundled one.
        secrets: Folder of the secrets: a path, for secrets are in no message.
        memory: Folder of what clients keep between rounds.
    """

    config: str
    data: Path | None
    secrets: Path
    memory: Path


def to_record(tensors: Tensors) -> ArrayRecord:
    """Tensors as they travel: names, order, shapes and types stay."""
    return ArrayRecord({name: Array(value.detach().cpu().contiguous().numpy()) for name, value in tensors.items()})


def to_tensors(record: ArrayRecord) -> Tensors:
    """The inverse of :func:`to_record`."""
    # Arrays that came through a message are read-only; a tensor must not be.
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def client_app(place: Place) -> ClientApp:
    """The app of every client.

    Args:
        place: Where they find what is their own. The node's ``partition-id`` says which client it is.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        figures, played = MetricRecord({CLIENT: _number(context)}), ConfigRecord({CONFIG: place.config})
        return Message(RecordDict({FIGURES: figures, CONFIG: played}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def turn(broadcast: Tensors, round_number: int) -> RecordDict:
            update = _side(place).train(_number(context), broadcast, round_number)
            figures = MetricRecord({**update.metrics, EXAMPLES: update.examples})
            return RecordDict({TENSORS: to_record(update.tensors), FIGURES: figures})

        return _answered(message, turn)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        def turn(broadcast: Tensors, round_number: int) -> RecordDict:
            scores = _side(place).score(_number(context), broadcast, round_number)
            return RecordDict({FIGURES: MetricRecord(dict(scores))})

        return _answered(message, turn)

    return app


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _answered(message: Message, turn: Callable[[Tensors, int], RecordDict]) -> Message:
    """The answer to a message; a problem that we can name is an answer too, in words."""
    tensors, settings = message.content[TENSORS], message.content[ROUND]
    assert isinstance(tensors, ArrayRecord)
    assert isinstance(settings, ConfigRecord)
    try:
        return Message(turn(to_tensors(tensors), int(str(settings[ROUND]))), reply_to=message)
    except VeilmarkError as problem:
        return Message(Error(code=0, reason=str(problem)), reply_to=message)


@lru_cache(maxsize=1)
def _side(place: Place) -> ClientSide:
    """The clients of this process: data are read once, not every round."""
    config = federation_from(json.loads(place.config), "the server's config")
    task, owners, _, _ = load_task(config, place.data)
    return ClientSide(config, config.made_method(), task, owners, SecretFolder(place.secrets), place.memory)
