"""A federation on digits that takes seconds: its config, and how it is played."""

import json

from veilmark.federation.config import FederationConfig
from veilmark.federation.runs import run_federation
from veilmark.run.config import override, resolve
from veilmark.run.folder import RunFolder

TINY = {
    "clients": 2,
    "rounds": 2,
    "data": {"layout": "digits", "per_client": 8, "test": 20, "head_widths": [16, 8]},
    "training": {"batch": 4},
}


def config(**changes):
    """The tiny federation, changed: ``config(method="none", data__test=10)``."""
    settings = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    return resolve(FederationConfig, override(TINY, settings), "test")


def play(path, made=None, **options):
    """Plays a federation, the tiny one by default, into a run folder."""
    run = RunFolder(path)
    with run.hold():
        run_federation(made or config(), None, run, **options)
    return run
