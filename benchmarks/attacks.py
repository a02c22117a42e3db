"""Our gradient inversion beside that of breaching: the same gradients, the same number of steps, one core.

    python benchmarks/attacks.py --data cifar10     # makes the peer's environment, runs both, writes the JSON
    python benchmarks/attacks.py                    # the same on scikit-learn's digits, which need no data
    python benchmarks/attacks.py --resume           # goes on after a break
    python benchmarks/attacks.py --print            # the table of the stored JSON

Each picture (a test picture, 32 px, in colour) has a network of its own: that of the DLG paper, freshly drawn. Its
gradient for that one picture is saved as safetensors and handed to both. Each side has one start, drawn by itself, and
one thread; our metric scores both. Pictures are taken five at a time, ours first, so that whatever else the machine
does meets both. Only figures stay, in ``runs/attacks/``; no picture does.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

import veilmark
from peer_breaching import BUILT_ON, PEER, SIDE, WARM_UP, make_environment, run_peer
from veilmark.audit import gradient_inversion, waves
from veilmark.audit.gradient_inversion import GradientOf, Inverted, classifier_gradient, cosine_inversion, dlg, psnr
from veilmark.audit.inversion_search import SmallSigmoidNetwork
from veilmark.audit.waves import Waves
from veilmark.federation.image_sets import load_image_set
from veilmark.ppidsg.client_training import to_unit
from veilmark.run.errors import DataError, VeilmarkError
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.progress import say
from veilmark.run.seeds import rng_for

TOGETHER = 5
"""Pictures that one side attacks before it is the other's turn."""
SHAPE = (1, 3, SIDE, SIDE)
SMOOTHNESS = 0.02
"""Weight of the total variation that our side takes."""

Side = dict[str, list[float]]
"""``psnr`` in dB and ``seconds`` of CPU time, by picture."""


@dataclass(frozen=True, eq=False)
class Case:
    """A picture, the network that saw it, and the gradient.

    Attributes:
        picture: ``(1, 3, 32, 32)`` in [-1, 1].
        label: ``(1,)`` int64.
        weights: The network's parameters.
        gradient: What makes gradients of it.
        seen: The picture's.
    """

    picture: Tensor
    label: Tensor
    weights: list[Tensor]
    gradient: GradientOf
    seen: list[Tensor]


def load_cases(data: Path | None, count: int) -> list[Case]:
    """The first ``count`` test pictures in an order drawn once; a picture's network is drawn by its place.

    Args:
        data: Folder of CIFAR-10; None takes scikit-learn's digits, enlarged and grey.
        count: How many.

    Raises:
        DataError: If files are missing or damaged, or the set has fewer pictures.
    """
    found = load_image_set("digits" if data is None else "cifar10", data, "test")
    if count > len(found):
        raise DataError(f"--count {count}: the set has {len(found)} test pictures; take fewer")
    chosen = found.take(rng_for(0, 41).permutation(len(found))[:count])
    pictures = to_unit(torch.from_numpy(chosen.images))
    pictures = interpolate(pictures, (SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    labels, classes = torch.from_numpy(chosen.labels), len(found.classes)
    return [case(pictures[n : n + 1], labels[n : n + 1], classes, n) for n in range(count)]


def case(picture: Tensor, label: Tensor, classes: int, seed: int) -> Case:
    """A picture with a network of that seed and its gradient."""
    network = SmallSigmoidNetwork(3, SIDE, classes, seed)
    gradient = classifier_gradient(network)
    seen = [some.detach() for some in gradient(picture, one_hot(label, classes).float())]
    return Case(picture, label, [some.detach() for some in network.parameters()], gradient, seen)


def plan(dlg_steps: int, cosine_steps: int) -> dict[str, dict[str, Any]]:
    """The peer's attacks: breaching's own configs, but for the number of steps.

    The last is the cosine attack with the weight of the total variation that ours has.
    """
    few, many = (f"optim.max_iterations={steps}" for steps in (dlg_steps, cosine_steps))
    smooth = f"regularization.total_variation.scale={SMOOTHNESS}"
    return {
        "DLG": {"config": "deepleakage", "overrides": [few], "labelled": False},
        "cosine": {"config": "invertinggradients", "overrides": [many], "labelled": True},
        "cosine, our smoothness": {"config": "invertinggradients", "overrides": [many, smooth], "labelled": True},
    }


def run_ours(cases: Sequence[Case], first: int, dlg_steps: int, cosine_steps: int) -> dict[str, Side]:
    """Our attacks on each picture, of which ``first`` is the number of the first; one start each.

    Returns:
        By attack.
    """
    along = Waves(SIDE, SIDE)

    def leak(one: Case, seed: int, steps: int) -> Inverted:
        return dlg(one.gradient, one.seen, SHAPE, len(one.seen[-1]), steps=steps, restarts=1, seed=seed)

    def align(one: Case, seed: int, steps: int) -> Inverted:
        return cosine_inversion(
            one.gradient, one.seen, SHAPE, one.label, len(one.seen[-1]),
            steps=steps, smoothness=SMOOTHNESS, waves=along, seed=seed,
        )  # fmt: skip

    attacks: dict[str, tuple[Callable[[Case, int, int], Inverted], int]] = {
        "DLG": (leak, dlg_steps),
        "cosine": (align, cosine_steps),
    }
    found: dict[str, Side] = {}
    for name, (attack, steps) in attacks.items():
        attack(cases[0], 0, WARM_UP)
        found[name] = {"psnr": [], "seconds": []}
        for number, one in enumerate(cases, first):
            began = time.process_time()
            pictures = attack(one, number, steps).pictures
            found[name]["seconds"].append(time.process_time() - began)
            found[name]["psnr"].append(float(psnr(pictures, one.picture)[0]))
    return found


def run_theirs(
    python: Path, cases: Sequence[Case], attacks: dict[str, dict[str, Any]]
) -> tuple[dict[str, Side], dict[str, str]]:
    """The peer's attacks, scored by our metric, by attack; its versions."""
    labels, true = (torch.cat([getattr(one, name) for one in cases]) for name in ("label", "picture"))
    answers, about = run_peer(python, [one.weights for one in cases], [one.seen for one in cases], labels, attacks)
    found = {
        name: {
            "psnr": psnr(answers[f"{name}.pictures"], true).tolist(),
            "seconds": answers[f"{name}.seconds"].tolist(),
        }
        for name in attacks
    }
    return found, about


def median_interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Median and its 95 % interval, by bootstrap over pictures."""
    found = np.asarray(values, dtype=np.float64)
    medians = np.median(found[rng_for(0, 42).integers(len(found), size=(draws, len(found)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(found)), float(low), float(high)


def score(ours: dict[str, Side], theirs: dict[str, Side]) -> list[dict[str, Any]]:
    """Rows of the table: each attack of the peer beside ours of that name.

    Returns:
        ``attack``, ``side``, medians with intervals of PSNR and seconds; for the peer's also in how many percent of
        the pictures ours has the higher PSNR and the smaller time. The figures of each picture stand in ``each``.
    """
    rows: list[dict[str, Any]] = []
    sides = [(name, "Veilmark", side) for name, side in ours.items()]
    sides += [(name, "breaching", side) for name, side in theirs.items()]
    for name, who, side in sorted(sides, key=lambda side: side[0]):
        row = {"attack": name, "side": who, "n": len(side["psnr"]), "each": side}
        row |= {figure: median_interval(side[figure]) for figure in ("psnr", "seconds")}
        if who == "breaching":
            own = ours[name.split(",")[0]]
            better = np.asarray(own["psnr"]) >= np.asarray(side["psnr"])
            faster = np.asarray(own["seconds"]) <= np.asarray(side["seconds"])
            row |= {"ours_better": 100 * float(better.mean()), "ours_faster": 100 * float(faster.mean())}
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = ("attack", "whose", "PSNR, dB, median (95 %)", "CPU-seconds a picture, median (95 %)",
             "ours has the higher PSNR, % of pictures", "ours takes less time, %")  # fmt: skip
    lines = [names, ("---",) * len(names)]
    for row in rows:
        figures = ["{:.1f} ({:.1f} to {:.1f})".format(*row[name]) for name in ("psnr", "seconds")]
        shares = [f"{row[name]:.0f}" if name in row else "" for name in ("ours_better", "ours_faster")]
        lines.append((row["attack"], row["side"], *figures, *shares))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(
    data: Path | None, count: int, dlg_steps: int, cosine_steps: int, env: Path, work: Path, resume: bool
) -> dict[str, Any]:
    """Runs both and scores them; arguments as in :func:`main`. Returns what the JSON holds."""
    torch.set_num_threads(1)
    cases, attacks, python = load_cases(data, count), plan(dlg_steps, cosine_steps), make_environment(env)
    settings = {
        "data": "digits" if data is None else "cifar10", "count": count, "attacks": attacks,
        "steps": {"DLG": dlg_steps, "cosine": cosine_steps}, "smoothness": SMOOTHNESS,
        "peer": PEER, "built_on": BUILT_ON, "version": veilmark.__version__,
    }  # fmt: skip
    code = b"".join(Path(module.__file__).read_bytes() for module in (gradient_inversion, waves))
    code += json.dumps(settings).encode()
    digest = hashlib.sha256(code + b"".join(one.picture.numpy().tobytes() for one in cases)).hexdigest()[:16]
    ours: dict[str, Side] = {}
    theirs: dict[str, Side] = {}
    about: dict[str, str] = {}
    for first in range(0, count, TOGETHER):
        some, file = cases[first : first + TOGETHER], work / f"{digest}-{first}.json"
        if not (resume and file.exists()):
            own = run_ours(some, first, dlg_steps, cosine_steps)
            peers, about = run_theirs(python, some, attacks)
            write_json(file, {"ours": own, "theirs": peers, "about": about})
        stored = json.loads(file.read_text(encoding="utf-8"))
        about = stored["about"]
        for all_of_them, part in ((ours, stored["ours"]), (theirs, stored["theirs"])):
            for name, side in part.items():
                for figure, values in side.items():
                    all_of_them.setdefault(name, {}).setdefault(figure, []).extend(values)
        say(f"{first + len(some)} of {count} pictures")
    return {
        "protocol": "docs/audit-attacks.md, Beside breaching",
        "config": settings,
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": _processor(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "peer": about},
        "rows": score(ours, theirs),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(
    data: Annotated[Path | None, typer.Option(help="Folder of CIFAR-10; without it, scikit-learn's digits.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Test pictures.")] = 20,
    dlg_steps: Annotated[int, typer.Option(min=1, help="Steps of L-BFGS on either side, 20 gradients each.")] = 60,
    cosine_steps: Annotated[int, typer.Option(min=1, help="Steps of Adam on either side, a gradient each.")] = 500,
    out: Annotated[Path, typer.Option(help="The JSON.")] = Path("benchmarks/results/attacks.json"),
    env: Annotated[Path, typer.Option(help="The peer's virtual environment, up to 6 GB.")] = Path(
        ".cache/peers/breaching"
    ),
    work: Annotated[Path, typer.Option(help="Where figures of finished pictures are kept.")] = Path("runs/attacks"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep every finished part.")] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the JSON's table; run nothing.")] = False,
) -> None:
    """Compares the gradient inversion of breaching and of Veilmark on the same gradients."""
    try:
        if not show:
            with RunFolder(work).hold():
                write_json(out, measure(data, count, dlg_steps, cosine_steps, env, work, resume))
        if not out.is_file():
            raise DataError(f"{out} does not exist; measure first, without --print")
    except (VeilmarkError, RuntimeError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(table(json.loads(out.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    typer.run(main)
