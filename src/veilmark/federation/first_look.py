"""The first look: three methods on digits, with nothing to download."""

from __future__ import annotations

from pathlib import Path

from veilmark.federation.recipes import federation_config, start_federation
from veilmark.federation.runs import Engine
from veilmark.run.progress import say

METHODS = ("none", "local", "ppidsg")
"""What is compared: everything shared, nothing shared, a generator shared."""


def first_look(
    folder: Path, settings: list[str], engine: Engine = "in-process", resume: bool = False, device: str = "cpu"
) -> list[Path]:
    """Plays the recipe ``ppidsg-digits`` with each of ``METHODS``.

    Args:
        folder: Where the run folders go; their secrets lie beside, in ``secrets``, the same for all.
        settings: Changes, ``path.to.key=value`` each.
        engine: ``in-process`` or ``flower``.
        resume: Go on from the last finished rounds.
        device: Where clients compute: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The run folders.

    Raises:
        VeilmarkError: If a setting does not fit, or a folder holds another run.
    """
    configs = {method: federation_config("ppidsg-digits", [*settings, f"method={method}"]) for method in METHODS}
    for method, config in configs.items():
        say(f"[bold]{method}[/bold]")
        kept = folder / "secrets"
        start_federation(config, None, folder / method, engine=engine, secrets=kept, resume=resume, device=device)
    return [folder / method for method in METHODS]
