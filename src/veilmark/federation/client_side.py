"""The clients' side of a run on one machine: their data, their secrets, and their memory on disk."""

from __future__ import annotations

from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from veilmark.federation.config import FederationConfig
from veilmark.federation.messages import Update
from veilmark.federation.methods.method import Client, ClientView, Method, Secrets
from veilmark.federation.tasks.task import Data, Task
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors, read_tensors, write_tensors
from veilmark.run.memory import give_back


class SecretFolder:
    """Files of the federation's and the clients' secrets: beside a run folder, never in it.

    Args:
        path: The folder; mode 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def missing(self, clients: int) -> list[Path]:
        """Files of secrets that are not there."""
        return [file for file in self._files(clients) if not file.exists()]

    def make_missing(self, clients: int) -> None:
        """Makes the secrets that are not there yet."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self.missing(clients):
            Secret.generate().save(file)

    def _files(self, clients: int) -> list[Path]:
        return [self._federation, *(self._client(number) for number in range(clients))]

    @property
    def _federation(self) -> Path:
        return self.path / "federation.key"

    def common(self) -> Secret:
        """What all clients share, and newcomers are given.

        Raises:
            SecretError: If the file is missing or open to others.
        """
        return Secret.load(self._federation)

    def _client(self, number: int) -> Path:
        return self.path / f"client-{number}.key"

    def of_client(self, number: int) -> Secrets:
        """What one client has.

        Raises:
            SecretError: If a file is missing or open to others.
        """
        return Secrets(self.common(), Secret.load(self._client(number)))

    def checks(self, clients: int) -> dict[str, str]:
        """Digits that tell secrets apart and open nothing, by the name of the file."""
        return {file.name: Secret.load(file).check() for file in self._files(clients)}


class ClientMemory:
    """What a client keeps between rounds: one file a round, the newest ones only.

    Args:
        path: The client's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def save(self, round_number: int, tensors: Tensors) -> None:
        """Keeps the memory after a round, which counts from 1, and that of the round before."""
        write_tensors(self.path / f"round-{round_number:04d}.safetensors", tensors)
        # A run that is killed in this round goes on from the one before.
        for number, file in self._files().items():
            if number < round_number - 1:
                file.unlink()

    def load(self, round_number: int) -> Tensors | None:
        """The newest memory of that round or one before; None at the start.

        A client that missed a round goes on from what it had.
        """
        older = {number: file for number, file in self._files().items() if number <= round_number}
        return read_tensors(older[max(older)])[0] if older else None

    def _files(self) -> dict[int, Path]:
        return {int(file.stem.removeprefix("round-")): file for file in self.path.glob("round-*.safetensors")}


class ClientSide:
    """All clients of a run on one machine; each is built for its turn only, from its memory.

    Args:
        config: The run's config.
        method: What they do.
        task: What they learn.
        owners: Their examples.
        secrets: Their secrets.
        folder: Where they keep their memory.
        device: Where they compute.
    """

    def __init__(
        self,
        config: FederationConfig,
        method: Method[Any],
        task: Task,
        owners: list[Data],
        secrets: SecretFolder,
        folder: Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.method, self.task, self.device = config, method, task, device
        self.owners, self.secrets, self.folder = owners, secrets, Path(folder)
        self._common: tuple[int, Tensor] | None = None
        self._lock = RLock()

    def train(self, number: int, broadcast: Tensors, round_number: int) -> Update:
        """One client's round, which counts from 1."""
        client = self.built(number, round_number - 1)
        update = client.train_round(broadcast, round_number - 1)
        self._memory(number).save(round_number, client.state())
        del client
        give_back()
        return update

    def score(self, number: int, broadcast: Tensors, round_number: int) -> dict[str, list[float]]:
        """One client's answers to the public test set, scored, after a round."""
        if self.method.personal:
            answers = self.built(number, round_number).predict(broadcast, self.task.test_inputs)
        else:
            answers = self._same_for_all(number, broadcast, round_number)
        give_back()
        return self.task.score(answers, self.owners[number])

    def _same_for_all(self, number: int, broadcast: Tensors, round_number: int) -> Tensor:
        """Answers where every client would give the same: one client's."""
        with self._lock:
            if self._common is None or self._common[0] != round_number:
                client = self.built(number, round_number)
                self._common = (round_number, client.predict(broadcast, self.task.test_inputs))
            return self._common[1]

    def built(self, number: int, round_number: int) -> Client:
        """A client as it was after a round; 0 is the start."""
        # First weights are drawn from the process's generator, which is one for all threads.
        with self._lock:
            client = self.method.client(self.view(number, self.secrets.of_client(number)))
        memory = self._memory(number).load(round_number)
        if memory is not None:
            client.load_state(memory)
        return client

    def view(self, number: int, secrets: Secrets) -> ClientView:
        """What a client knows."""
        config = self.config
        owned = self.owners[number]
        return ClientView(number, self.task, owned, config.training, config.rounds, config.seed, secrets, self.device)

    def _memory(self, number: int) -> ClientMemory:
        return ClientMemory(self.folder / f"client-{number}")
