"""Flower's simulation engine: each client's turn in a process of Ray, as many side by side as there are cores."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from flwr.serverapp import Grid
from flwr.simulation import run_simulation

from veilmark.federation.client_app import Place, client_app
from veilmark.federation.server_app import server_app

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Else Flower makes an environment per run, and may fetch packages for it.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Clients side by side: a thread each.
    "OMP_NUM_THREADS": "1",
}
"""What Flower, Ray and the clients' processes are told while they run; nobody is called home."""


def simulate(place: Place, clients: int, log: Path, play: Callable[[Grid, Callable[[], bool]], None]) -> None:
    """Plays a federation on Flower's simulation engine, and ends every process that this started.

    ``run_simulation`` is what Flower 1.41 has for a program that plays a run by itself; its successor starts
    background services that outlive the run and wants a project folder.

    Args:
        place: Where clients find what is their own.
        clients: How many.
        log: File that Flower's and Ray's messages go to.
        play: Plays the rounds, given the grid and what says whether Ctrl-C was pressed. What it raises is raised here.
    """
    before = set(psutil.Process().children(recursive=True))
    started: set[psutil.Process] = set()
    problems: list[BaseException] = []
    interrupt = threading.Event()

    def main(grid: Grid) -> None:
        try:
            play(grid, interrupt.is_set)
        except BaseException as problem:
            problems.append(problem)
        # Now, while they are our children: whoever loses its parent is not found by it any more.
        started.update(psutil.Process().children(recursive=True))

    cores = os.cpu_count() or 1
    # Ray's sockets have long names; a system's limit is about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="vm-"))
    home = {"FLWR_HOME": str(folder / "flower")}
    backend: dict[str, dict[str, Any]] = {
        "init_args": {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False, "_temp_dir": str(folder)},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    try:
        with _environment(ENVIRONMENT | home), _quiet(log), _ctrl_c(interrupt):
            run_simulation(server_app(main), client_app(place), num_supernodes=clients, backend_config=backend)
    finally:
        started.update(psutil.Process().children(recursive=True))
        end(started - before)
        shutil.rmtree(folder, ignore_errors=True)
    if problems:
        raise problems[0]


def end(processes: set[psutil.Process], patience: float = 10.0) -> None:
    """Ends processes: waits for those that are on their way out, asks, and at last insists.

    Args:
        processes: Which; those that are gone are left alone, whoever has their id by now.
        patience: Seconds before it asks, and again before it insists.
    """
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=patience)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=patience)


@contextmanager
def _ctrl_c(interrupt: threading.Event) -> Iterator[None]:
    """Ctrl-C is noted, not raised: Flower would wait for the last round before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGINT, lambda number, frame: interrupt.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Messages of Flower and Ray go to a file, and warnings of theirs with them."""
    loggers = [logging.getLogger(name) for name in ("flwr", "ray", "py.warnings")]
    file = logging.FileHandler(log, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    kept = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [file], False
    logging.captureWarnings(True)
    with warnings.catch_warnings():
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for logger, handlers, propagate in kept:
                logger.handlers, logger.propagate = handlers, propagate
            file.close()
