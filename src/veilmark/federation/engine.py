"""The rounds of a federation, and the in-process engine. Flower's engine runs the same rounds (``server_app.py``)."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from veilmark.federation.client_side import ClientSide
from veilmark.federation.config import FederationConfig
from veilmark.federation.messages import Update, UpdateRefused, check_update, tensor_bytes
from veilmark.federation.methods.method import Server
from veilmark.federation.tasks.task import Task
from veilmark.federation.transcript import Transcript
from veilmark.run.checkpoints import Tensors, read_tensors, write_tensors
from veilmark.run.errors import VeilmarkError
from veilmark.run.folder import RunFolder

Scores = dict[str, list[float]]
Turn = TypeVar("Turn")


class FederationError(VeilmarkError):
    """A federation that cannot go on."""


class Link(ABC):
    """How the server reaches its clients."""

    @abstractmethod
    def train(self, clients: Sequence[int], broadcast: Tensors, round_number: int) -> dict[int, Update | str]:
        """Has clients train.

        Args:
            clients: Their numbers.
            broadcast: What they are sent.
            round_number: From 1.

        Returns:
            By client: its update, or why there is none.
        """

    @abstractmethod
    def score(self, clients: Sequence[int], broadcast: Tensors, round_number: int) -> dict[int, Scores | str]:
        """Has clients answer the public test set after a round.

        Args:
            clients: Their numbers.
            broadcast: What they are sent.
            round_number: From 1.

        Returns:
            By client: its scores, or why there are none.
        """


class InProcess(Link):
    """Clients of this process, as many side by side as PyTorch has threads.

    A step of a small network leaves most cores waiting for one another; clients do not wait for each other. Each
    client's figures are the same however many are at work, as long as each has one thread.

    Args:
        side: The clients.
        advance: Called after each client's turn.
    """

    def __init__(self, side: ClientSide, advance: Callable[[], None] = lambda: None) -> None:
        self.side, self.advance = side, advance

    def train(self, clients: Sequence[int], broadcast: Tensors, round_number: int) -> dict[int, Update | str]:
        """Every client's round."""
        return dict(self._turns(clients, lambda number: self.side.train(number, broadcast, round_number)))

    def score(self, clients: Sequence[int], broadcast: Tensors, round_number: int) -> dict[int, Scores | str]:
        """Every client's answers."""
        return dict(self._turns(clients, lambda number: self.side.score(number, broadcast, round_number)))

    def _turns(self, clients: Sequence[int], turn: Callable[[int], Turn]) -> Iterator[tuple[int, Turn]]:
        """What each client's turn gives, in the clients' order."""

        def told(number: int) -> Turn:
            done = turn(number)
            self.advance()
            return done

        return side_by_side(clients, told, self.side.device)


def side_by_side(
    clients: Sequence[int], turn: Callable[[int], Turn], device: torch.device | str
) -> Iterator[tuple[int, Turn]]:
    """What each client's turn gives, in the clients' order; as many at a time as PyTorch has threads.

    Args:
        clients: Their numbers.
        turn: What one does.
        device: Where. A GPU is one, and serves one client at a time.
    """
    threads = torch.get_num_threads()
    together = min(len(clients), threads) if torch.device(device).type == "cpu" else 1
    try:
        with ThreadPoolExecutor(together, initializer=lambda: torch.set_num_threads(threads // together)) as pool:
            yield from zip(clients, pool.map(turn, clients), strict=True)
    finally:
        torch.set_num_threads(threads)


@dataclass
class Rounds:
    """The server's side of a run: the same rounds whatever the link.

    Attributes:
        config: The run's config.
        server: What combines.
        task: What is learned; its networks and public test set.
        run: Where the run is kept.
        transcript: What the server saw.
        told: Called after each round with its record.
        refused: Updates and scores that were refused or never came, in words.
    """

    config: FederationConfig
    server: Server
    task: Task
    run: RunFolder
    transcript: Transcript
    told: Callable[[dict[str, Any]], None] = lambda record: None
    refused: list[str] = field(default_factory=list)

    def play(self, link: Link, first: int) -> None:
        """Plays the rounds from ``first`` (from 1) to the last.

        Raises:
            FederationError: If a round brought no update that could be accepted, or no score.
        """
        recorded = set(self.config.recorded())
        for number in range(first, self.config.rounds + 1):
            record = self.one_round(link, number, number in recorded)
            self.run.log(record)
            # The checkpoint is last: it says that the round is finished.
            self._save(number)
            self.told(record)

    def one_round(self, link: Link, number: int, recorded: bool) -> dict[str, Any]:
        """Sends, collects, checks, combines, scores.

        Args:
            link: How clients are reached.
            number: The round, from 1.
            recorded: Whether the transcript keeps its messages.

        Returns:
            The round's record, as in ``metrics.jsonl``.
        """
        started, refused = time.monotonic(), len(self.refused)
        broadcast = self.server.broadcast()
        if recorded:
            self.transcript.add_broadcast(number, broadcast)
        everyone = list(range(self.config.clients))
        updates = self._accepted(link.train(everyone, broadcast, number), number, recorded)
        if not updates:
            raise FederationError(f"round {number}: no update could be accepted; the last: {self.refused[-1]}")
        self.server.combine(updates)
        scores = self._scored(link.score(everyone, self.server.broadcast(), number), number)
        if recorded:
            self.transcript.add_scores(number, scores)
        losses = {name: _together(name, updates) for name in self.server.declared().metrics}
        return {
            "step": number,
            self.task.score_name: self.task.summary(scores, self.config.clients),
            "losses": losses,
            "clients": sorted(updates),
            "refused": self.refused[refused:],
            "bytes_up": sum(update.size() for update in updates.values()),
            "bytes_down": tensor_bytes(broadcast) * self.config.clients,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _accepted(self, replies: dict[int, Update | str], number: int, recorded: bool) -> dict[int, Update]:
        updates: dict[int, Update] = {}
        for client, reply in sorted(replies.items()):
            try:
                if isinstance(reply, str):
                    raise UpdateRefused(reply)
                update = check_update(reply, self.server.declared(), self.config.most_examples)
                self.server.check(update)
                if recorded:
                    self.transcript.add_update(number, client, reply)
                updates[client] = update
            except UpdateRefused as problem:
                self.refused.append(f"round {number}, client {client}: {problem}")
        return updates

    def _scored(self, replies: dict[int, Scores | str], number: int) -> dict[int, Scores]:
        checked = {client: self._declared(reply) for client, reply in sorted(replies.items())}
        missing = {client: reply for client, reply in checked.items() if isinstance(reply, str)}
        scores = {client: reply for client, reply in checked.items() if not isinstance(reply, str)}
        self.refused += [f"round {number}, client {client}, not scored: {why}" for client, why in missing.items()]
        if not any(self.task.in_mean(score) for score in scores.values()):
            reasons = "; ".join(f"client {client}: {why}" for client, why in missing.items())
            raise FederationError(
                f"round {number}: no score came to take the mean of ({reasons}); see to the clients, and go on with "
                "--resume"
            )
        return scores

    def _declared(self, reply: Scores | str) -> Scores | str:
        """The scores, if they are those that the task declares; in words, what they are else."""
        if isinstance(reply, str):
            return reply
        known = self.task.scored()
        if set(reply) != set(known):
            return f"its scores are {sorted(reply)}, declared are {sorted(known)}"
        wrong = [name for name, size in known.items() if size is not None and len(reply[name]) != size]
        return f"its score {wrong[0]!r} has {len(reply[wrong[0]])} figures, not {known[wrong[0]]}" if wrong else reply

    def _save(self, number: int) -> None:
        write_tensors(_checkpoint(self.run, number), self.server.state())
        for other in _finished(self.run):
            if other < number:
                _checkpoint(self.run, other).unlink()

    def resume(self) -> int:
        """Goes back to the last finished round.

        Returns:
            Its number; 0 if there is none.
        """
        last = max(_finished(self.run), default=0)
        if last:
            self.server.load_state(read_tensors(_checkpoint(self.run, last))[0])
        self.run.keep_log(last)
        return last


def _checkpoint(run: RunFolder, number: int) -> Path:
    return run.checkpoints / f"server-{number:04d}.safetensors"


def _finished(run: RunFolder) -> list[int]:
    return [int(file.stem.removeprefix("server-")) for file in run.checkpoints.glob("server-*.safetensors")]


def _together(name: str, updates: Mapping[int, Update]) -> float:
    """A declared figure of a round: the mean over examples; of epsilon, which is a promise, the largest."""
    if name == "epsilon":
        return max(update.metrics[name] for update in updates.values())
    total = sum(update.examples for update in updates.values())
    return sum(update.metrics[name] * update.examples for update in updates.values()) / total
