"""The server as a Flower app: the same rounds as in one process, over Flower's messages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

from veilmark.federation.client_app import CLIENT, CONFIG, EXAMPLES, FIGURES, ROUND, TENSORS, to_record, to_tensors
from veilmark.federation.config import FederationConfig
from veilmark.federation.engine import FederationError, Link, Scores
from veilmark.federation.messages import Update
from veilmark.run.checkpoints import Tensors
from veilmark.run.config import flat

PAUSE = 0.05
"""Seconds between two looks for answers."""


class GridLink(Link):
    """Clients are nodes of a Flower grid.

    Args:
        grid: The grid.
        config: What is played: how many clients must be there before the first round, and what they must play too.
        patience: Seconds to wait for them.
        advance: Called after each client's turn.
        timeout: Seconds to wait for a round's answers; without, as long as it takes.
        interrupted: Whether somebody wants the run to end.

    Raises:
        FederationError: If the clients do not come, are not numbered 0 to ``clients - 1``, or one of them plays another
            federation (other landmarks or sizes, say).
    """

    def __init__(
        self,
        grid: Grid,
        config: FederationConfig,
        *,
        patience: float = 300.0,
        advance: Callable[[], None] = lambda: None,
        timeout: float | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.grid, self.advance, self.timeout, self.interrupted = grid, advance, timeout, interrupted
        clients, until = config.clients, time.monotonic() + patience
        while len(nodes := list(grid.get_node_ids())) < clients:
            if time.monotonic() > until:
                raise FederationError(f"{len(nodes)} of {clients} clients came within {patience:g} seconds")
            self._pause()
        self.nodes: dict[int, int] = {}
        for node, reply in self._answers("query", {node: RecordDict() for node in nodes}):
            if reply.has_error():
                raise FederationError(f"node {node} does not say which client it is: {_reason(reply)}")
            number = int(_number(reply, CLIENT))
            _same_federation(number, reply, config)
            self.nodes[number] = node
        if sorted(self.nodes) != list(range(clients)):
            raise FederationError(f"clients are numbered {sorted(self.nodes)}; expected 0 to {clients - 1}, once each")

    def train(self, clients: Sequence[int], broadcast: Tensors, round_number: int) -> dict[int, Update | str]:
        """All at once, as many as the grid plays side by side."""
        updates: dict[int, Update | str] = dict.fromkeys(clients, "no answer came in time")
        for client, reply in self._turns("train", clients, broadcast, round_number):
            updates[client] = _reason(reply) if reply.has_error() else _update(reply)
        return updates

    def score(self, clients: Sequence[int], broadcast: Tensors, round_number: int) -> dict[int, Scores | str]:
        """All at once, as many as the grid plays side by side."""
        scores: dict[int, Scores | str] = dict.fromkeys(clients, "no answer came in time")
        for client, reply in self._turns("evaluate", clients, broadcast, round_number):
            scores[client] = _reason(reply) if reply.has_error() else _scores(reply)
        return scores

    def _turns(
        self, kind: str, clients: Sequence[int], broadcast: Tensors, round_number: int
    ) -> Iterator[tuple[int, Message]]:
        content = RecordDict({TENSORS: to_record(broadcast), ROUND: ConfigRecord({ROUND: round_number})})
        client_of = {self.nodes[client]: client for client in clients}
        for node, reply in self._answers(kind, dict.fromkeys(client_of, content)):
            self.advance()
            yield client_of[node], reply

    def _answers(self, kind: str, contents: dict[int, RecordDict]) -> Iterator[tuple[int, Message]]:
        """Answers by node, as they come."""
        sent = [Message(content, message_type=kind, dst_node_id=node) for node, content in contents.items()]
        waiting = set(self.grid.push_messages(sent))
        until = None if self.timeout is None else time.monotonic() + self.timeout
        while waiting and (until is None or time.monotonic() < until):
            for reply in self.grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply.metadata.src_node_id, reply
            self._pause()

    def _pause(self) -> None:
        if self.interrupted():
            raise KeyboardInterrupt
        time.sleep(PAUSE)


def server_app(play: Callable[[Grid], None]) -> ServerApp:
    """The server's app.

    Args:
        play: Plays the rounds, given the grid.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        play(grid)

    return app


def _figures(reply: Message) -> MetricRecord:
    figures = reply.content[FIGURES]
    assert isinstance(figures, MetricRecord)
    return figures


def _number(reply: Message, name: str) -> float:
    return float(_figures(reply)[name])  # type: ignore[arg-type]


def _same_federation(client: int, reply: Message, config: FederationConfig) -> None:
    """Refuses a client with another config, before any work: what it shares might fit and mean something else."""
    said = reply.content.get(CONFIG)
    there = flat(json.loads(str(said[CONFIG]))) if isinstance(said, ConfigRecord) else {}
    here = flat(json.loads(config.model_dump_json()))
    for key in here | there:
        if here.get(key) != there.get(key):
            raise FederationError(
                f"client {client} plays another federation: {key} is {there.get(key)!r} there and {here.get(key)!r} "
                "here; give it this server's config"
            )


def _update(reply: Message) -> Update | str:
    """A client's update; in words, what is missing in it."""
    tensors = reply.content.get(TENSORS)
    if not isinstance(tensors, ArrayRecord) or not isinstance(reply.content.get(FIGURES), MetricRecord):
        return f"its answer has no {TENSORS} or no {FIGURES}"
    figures = {name: value for name, value in _figures(reply).items() if name != EXAMPLES}
    if EXAMPLES not in _figures(reply):
        return f"its answer has no {EXAMPLES}"
    return Update(to_tensors(tensors), figures, int(_number(reply, EXAMPLES)))  # type: ignore[arg-type]


def _scores(reply: Message) -> Scores | str:
    """A client's scores; in words, what is missing in its answer."""
    if not isinstance(reply.content.get(FIGURES), MetricRecord):
        return f"its answer has no {FIGURES}"
    return {name: list(values) for name, values in _figures(reply).items()}  # type: ignore[arg-type]


def _reason(reply: Message) -> str:
    """The last line of an error: what comes before is where it happened."""
    lines = [line.strip() for line in str(reply.error.reason).splitlines() if line.strip(" ^")]
    return lines[-1] if lines else "an error without a reason"
