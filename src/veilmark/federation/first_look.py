"""The first look: three methods side by side, with nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from veilmark.federation.recipes import federation_config, start_federation
from veilmark.federation.runs import Engine, check_settings
from veilmark.run.errors import ConfigError
from veilmark.run.progress import say


@dataclass(frozen=True)
class Look:
    """What a first look at a task plays.

    Attributes:
        recipe: A packaged recipe that needs no data.
        methods: What is compared: everything shared, nothing shared, a generator shared.
        settings: Changes that make the recipe a matter of minutes.
        last: How many of the last rounds are recorded, beside the first. Whose person it is shows in many; each costs
            the audit seconds.
    """

    recipe: str
    methods: tuple[str, ...]
    settings: tuple[str, ...] = ()
    last: int = 1


LOOKS = {
    "classify": Look("ppidsg-digits", ("none", "local", "ppidsg"), ("data.head_widths=[256, 64]",)),
    "landmarks": Look(
        "landmarks-synthetic",
        ("none", "local", "keyed"),
        (
            "data.frames=5",
            "data.test_people=8",
            "rounds=10",
            "training.batch=4",
            "training.lr=0.003",
            "data.network.stages=1",
            "data.network.map_stride=4",
            "data.network.structure_widths=[48, 64]",
            "data.network.detail_widths=[24, 32]",
        ),
        last=3,
    ),
}
"""First looks by task."""


def first_look(
    folder: Path,
    settings: list[str],
    engine: Engine = "in-process",
    resume: bool = False,
    device: str = "cpu",
    task: str = "classify",
    secrets: Path | None = None,
    methods: Sequence[str] | None = None,
) -> list[Path]:
    """Plays a task's recipe with each of its methods.

    Args:
        folder: Where the run folders go.
        settings: Changes, ``path.to.key=value`` each.
        engine: ``in-process`` or ``flower``.
        resume: Go on from the last finished rounds.
        device: Where clients compute: ``auto``, ``cpu`` or ``cuda``.
        task: A key of ``LOOKS``.
        secrets: Folder of the secrets, the same for all; ``secrets`` beside the run folders by default.
        methods: Only these of the look's methods.

    Returns:
        The run folders.

    Raises:
        VeilmarkError: If a setting does not fit, or a folder holds another run.
    """
    look = LOOKS[task]
    if any(setting.startswith("method=") for setting in settings):
        raise ConfigError(
            f"a first look plays the methods {', '.join(look.methods)}; for one method name the recipe, e.g. veilmark "
            f"federate {look.recipe} --set method={look.methods[-1]}"
        )
    rounds = federation_config(look.recipe, [*look.settings, *settings]).rounds
    recorded = sorted({1, *range(max(1, rounds - look.last + 1), rounds + 1)})
    changes = [*look.settings, f"record={recorded}", *settings]
    chosen = look.methods if methods is None else methods
    configs = {method: federation_config(look.recipe, [*changes, f"method={method}"]) for method in chosen}
    bundled = federation_config(look.recipe, []).data.layout
    for config in configs.values():
        if config.data.layout != bundled:
            raise ConfigError(
                f"a first look plays {bundled}, not {config.data.layout}; name a recipe for it, and its folder with "
                "--data: veilmark federate --help"
            )
        check_settings(config, None)
    for method, config in configs.items():
        say(f"[bold]{method}[/bold]")
        kept = secrets or folder / "secrets"
        start_federation(config, None, folder / method, engine=engine, secrets=kept, resume=resume, device=device)
    return [folder / method for method in chosen]
