"""Why does no search find the pictures behind PPIDSG's generator? Its gradient, of one picture, with everything known.

    python benchmarks/generator_inversion.py --data DIR    # DIR holds the folder mnist; some ten minutes of a core
    python benchmarks/generator_inversion.py --print       # tables from the committed figures

Public pictures of MNIST, a fresh generator as the first round broadcasts it, and one step on one picture: the easiest
rung of ``veilmark audit``. The attacker knows D, F, C, the key and the label. Five questions:

- *How near must a guess be, to be seen?* Noise of several sizes is added to the true picture; how far (cosine
  distance) is the gradient of that from the true one, and how far are the gradients of strangers? By loss as well.
- *Where does a search end?* From the mean of public pictures along their principal components (what the audit plays),
  by L-BFGS on squared distance (DLG), and pixel by pixel from the true picture with noise added.
- *Is it the attack or the generator?* DLG by the same three losses where all networks are small and smooth, with the
  corner of the semantic loss as clients have it and rounded by the attacker; and the latter on PPIDSG's own generator.
- *Can the way back be learned?* Ridge regression from sketched gradients of other pictures to pixels.
- *Can a guess be checked?* The area under the curve by which the size of the gradients' cosine tells the true picture
  from strangers of its class; with everything known, and with D, F, C and the key guessed (the mean of three guesses).

Intervals: 95 %, bootstrap over pictures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import one_hot

from veilmark.audit.attack import mean_interval
from veilmark.audit.gradient_inversion import (
    GradientOf,
    cosine_distance,
    cosine_inversion,
    dlg,
    generator_gradient,
    psnr,
)
from veilmark.audit.inversion_ladder import CONTROL_STEPS, CORNER
from veilmark.audit.inversion_search import scrambled, search, smooth_gradient
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of
from veilmark.federation.tasks.classify import ClassifyConfig, load_classify
from veilmark.ppidsg.client_training import PPIDSGClient, to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.folder import write_json
from veilmark.run.local_training import Training
from veilmark.run.progress import console, progress_bar, say
from veilmark.run.seeds import rng_for

RESULTS = Path(__file__).parent / "results" / "generator_inversion.json"
PUBLIC = 1000
"""Public pictures: those that are attacked, and strangers."""
CLASSES = 10
ATTACKED = 6
"""Pictures whose gradient is attacked."""
STRANGERS = 20
"""Strangers of the same class that a guess is compared with."""
GUESSES = 3
"""Attackers who guess, with secrets and networks of their own each."""
NOISE = (0.01, 0.03, 0.1, 0.3, 0.6)
"""Standard deviations that are added to pictures in [-1, 1]."""
STARTS = (0.03, 0.1, 0.3)
"""Those that a search begins from."""
STEPS = 60
"""Of a search."""
LBFGS_STEPS = 4
"""Of DLG, some 20 evaluations each."""
SKETCH = 512
"""Numbers that are kept of a tensor's gradient."""
PENALTIES = tuple(10.0**power for power in range(-2, 7))
LOSSES = {
    "all three, as in PPIDSG": (1.0, 2.0),
    "adversarial and class loss": (0.0, 2.0),
    "adversarial and semantic loss": (1.0, 0.0),
}
"""Weights of the semantic and the class loss."""

Rows = Sequence[int]


class Attacker:
    """One who plays a client's step of G, with secrets and networks that are the client's or guessed.

    Args:
        pictures: ``(n, 1, 28, 28)`` uint8.
        labels: ``(n,)`` int64.
        number: 0: the client's own secrets and networks. Others: guessed ones.
    """

    def __init__(self, pictures: Tensor, labels: Tensor, number: int) -> None:
        self.inputs, self.labels = to_unit(pictures), labels
        self.options = PPIDSGOptions(generator_lr=1e-3, extractor="fixed")
        secret = Secret(rng_for(0, 1, number).bytes(SECRET_BYTES))
        cipher = cipher_of(self.options, secret, secret)
        self.client = PPIDSGClient(
            pictures[:1],
            labels[:1],
            CLASSES,
            cipher,
            secret.derive(b"key"),
            self.options,
            training=Training(local_steps=1),
            seed=number,
        )
        # Everybody has the G that was broadcast.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.client.generator.apply(_reset)
        self.table = cipher.table(*pictures.shape[1:])

    def gradient(self, semantic: float = 1.0, classes: float = 2.0, corner: float = 0.0) -> GradientOf:
        """What makes gradients of G, of pictures and class probabilities."""
        head, generator = nn.Sequential(self.client.extractor, self.client.classifier), self.client.generator
        scramble = partial(scrambled, self.table)
        return generator_gradient(generator, self.client.discriminator, head, scramble, semantic, classes, corner)


def _reset(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.GroupNorm):
        layer.reset_parameters()


def plain(gradient: GradientOf, picture: Tensor, hard: Tensor) -> list[Tensor]:
    """A gradient without its graph."""
    return [some.detach() for some in gradient(picture, hard)]


def with_noise(picture: Tensor, spread: float, seed: int) -> Tensor:
    """A picture and noise, within bounds."""
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return (picture + spread * noise).clamp(-1, 1)


def sketch(gradients: Sequence[Tensor]) -> Tensor:
    """A few numbers of each tensor's direction: signed sums over random groups of its entries."""
    parts = []
    for number, some in enumerate(gradients):
        flat = some.flatten() / some.norm().clamp(min=1e-12)
        if len(flat) > SKETCH:
            rng = rng_for(0, 2, number)
            groups = torch.from_numpy(rng.integers(SKETCH, size=len(flat)))
            signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(flat)).astype(np.float32))
            flat = torch.zeros(SKETCH).index_add_(0, groups, flat * signs)
        parts.append(flat)
    return torch.cat(parts)


def learned(features: Tensor, pictures: Tensor, asked: Tensor) -> Tensor:
    """Pictures of sketched gradients, by ridge regression from others; its penalty by leaving one out.

    Args:
        features: ``(n, f)``.
        pictures: ``(n, c, s, s)``.
        asked: ``(m, f)``.

    Returns:
        ``(m, c, s, s)``.
    """
    mean, spread = features.mean(dim=0), features.std(dim=0) + 1e-8
    model = RidgeCV(PENALTIES).fit(((features - mean) / spread).numpy(), pictures.flatten(1).numpy())
    made = torch.from_numpy(model.predict(((asked - mean) / spread).numpy())).float()
    return made.clamp(-1, 1).view(-1, *pictures.shape[1:])


def measure(folder: Path, advance: Callable[[], None]) -> dict[str, Any]:
    """All figures.

    Args:
        folder: Of MNIST.
        advance: Called after each piece of work: ``pieces()`` of them.
    """
    task, _, _, _ = load_classify(ClassifyConfig(layout="mnist", per_client=10, test=PUBLIC), folder, 1, 0)
    public = task.test
    known, *guessing = (Attacker(public.inputs, public.targets, number) for number in range(1 + GUESSES))
    inputs, gradient = known.inputs, known.gradient()
    hard = one_hot(public.targets, CLASSES).float()
    attacked, others = range(ATTACKED), range(ATTACKED, PUBLIC)
    seen: list[list[Tensor]] = [plain(gradient, inputs[row : row + 1], hard[row : row + 1]) for row in attacked]
    found: dict[str, dict[str, list[float]]] = {}

    def note(table: str, row: str, value: float) -> None:
        found.setdefault(table, {}).setdefault(row, []).append(value)

    for row in attacked:
        x, y = inputs[row : row + 1], hard[row : row + 1]
        strangers = _alike(public.targets, row, others)
        for name, weights in LOSSES.items():
            of_losses = known.gradient(*weights)
            true = seen[row] if weights == (1.0, 2.0) else plain(of_losses, x, y)
            for spread in NOISE:
                near = with_noise(x, spread, row)
                note(name, f"noise {spread}", float(cosine_distance(plain(of_losses, near, y), true)))
            for other in strangers[:5]:
                note(
                    name,
                    "strangers of the class",
                    float(cosine_distance(plain(of_losses, inputs[other][None], y), true)),
                )
            advance()
        for spread in NOISE:
            note("PSNR of noise", f"noise {spread}", float(psnr(with_noise(x, spread, row), x)))
        for name, attackers in (("everything known", [known]), ("D, F, C and the key guessed", guessing)):
            told = []
            for attacker in attackers:
                of_attacker = attacker.gradient()
                # Guessed losses may push G the other way: what the same picture leaves is the size of the cosine.
                alike = [
                    abs(1 - float(cosine_distance(plain(of_attacker, inputs[other][None], y), seen[row])))
                    for other in (row, *strangers)
                ]
                told.append(100 * float(roc_auc_score([1] + [0] * len(strangers), alike)))
                advance()
            note("checked", name, float(np.mean(told)))
        labels = public.targets[row : row + 1]
        made = search(gradient, seen[row], labels, CLASSES, inputs[list(others)][:200], steps=STEPS, seed=row)
        note("search", "along principal components", float(psnr(made, x)))
        advance()
        shape = (1, *x.shape[1:])
        for corner, words in ((0.0, "as clients have it"), (CORNER, "rounded")):
            of_attacker = known.gradient(corner=corner)
            lbfgs = dlg(of_attacker, seen[row], shape, CLASSES, labels, steps=LBFGS_STEPS, restarts=1, seed=row)
            note("search", f"DLG, label known; corner {words}", float(psnr(lbfgs.pictures, x)))
            advance()
        sharp, rounded = (
            smooth_gradient(x.shape[1], x.shape[2], CLASSES, partial(scrambled, known.table), corner=corner, seed=row)
            for corner in (0.0, CORNER)
        )
        given = plain(sharp, x, y)
        for of_small, words in ((sharp, "as clients have it"), (rounded, "rounded")):
            found_by = dlg(of_small, given, shape, CLASSES, labels, steps=CONTROL_STEPS, restarts=1, seed=row)
            note("small and smooth", f"corner {words}", float(psnr(found_by.pictures, x)))
            advance()
        for spread in STARTS:
            begin = with_noise(x, spread, row)
            ended = cosine_inversion(
                gradient,
                seen[row],
                (1, *x.shape[1:]),
                labels,
                CLASSES,
                steps=STEPS,
                lr=0.01,
                smoothness=0,
                start=begin[0],
            )
            note("search", f"from the true picture and noise {spread}", float(psnr(ended.pictures, x)))
            advance()
        note(
            "search", "the nearest stranger", float(psnr(inputs[list(others)], x.expand(len(others), -1, -1, -1)).max())
        )
    features = []
    for other in others:
        features.append(sketch(plain(gradient, inputs[other][None], hard[other][None])))
        advance()
    back = learned(torch.stack(features), inputs[list(others)], torch.stack([sketch(some) for some in seen]))
    mean = inputs[list(others)].mean(dim=0, keepdim=True)
    for row in attacked:
        note("search", "learned on other pictures", float(psnr(back[row : row + 1], inputs[row : row + 1])))
        note("search", "the mean picture", float(psnr(mean, inputs[row : row + 1])))
    return {table: {name: mean_interval(values, 0) for name, values in rows.items()} for table, rows in found.items()}


def _alike(labels: Tensor, row: int, others: Rows) -> list[int]:
    """The first strangers of a picture's class."""
    return [other for other in others if labels[other] == labels[row]][:STRANGERS]


def pieces() -> int:
    """How much work there is."""
    return ATTACKED * (len(LOSSES) + 6 + GUESSES + len(STARTS)) + PUBLIC - ATTACKED


def tables(figures: dict[str, dict[str, Sequence[float]]]) -> list[str]:
    """Markdown tables of the figures."""

    def cell(value: Sequence[float], digits: int) -> str:
        return "{} ({} to {})".format(*(f"{some:.{digits}f}" for some in value))

    head = ["guess", "PSNR of the guess, dB", *LOSSES]
    lines = [head, ["---"] * len(head)]
    for row in [*(f"noise {spread}" for spread in NOISE), "strangers of the class"]:
        of_noise = figures["PSNR of noise"].get(row)
        distances = [cell(figures[name][row], 2) for name in LOSSES]
        lines.append([row, f"{of_noise[0]:.1f}" if of_noise else "", *distances])
    ends = [["search", "PSNR, dB (95 %)"], ["---"] * 2]
    ends += [[name, cell(value, 1)] for name, value in figures["search"].items()]
    smooth = [["the same losses, small and smooth networks: DLG", "PSNR, dB (95 %)"], ["---"] * 2]
    smooth += [[name, cell(value, 1)] for name, value in figures["small and smooth"].items()]
    checked = [["what the attacker has", "area under the curve, % (95 %)"], ["---"] * 2]
    checked += [[name, cell(value, 1)] for name, value in figures["checked"].items()]
    return ["\n".join("| " + " | ".join(line) + " |" for line in some) for some in (lines, ends, smooth, checked)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the figures")
    parser.add_argument("--print", action="store_true", help="print the tables of the committed figures")
    args = parser.parse_args()
    if not args.print:
        if args.data is None:
            parser.error("--data DIR is needed, the folder that holds mnist; or --print")
        torch.set_num_threads(1)
        began = time.process_time()
        with progress_bar("gradients") as progress:
            bar = progress.add_task("G", total=pieces(), note="")
            figures = measure(args.data / "mnist", lambda: progress.advance(bar))
        found = {
            "figures": figures,
            "cpu_seconds": time.process_time() - began,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        }
        write_json(args.results, found)
    found = json.loads(args.results.read_text(encoding="utf-8"))
    for table in tables(found["figures"]):
        console.print(table + "\n", markup=False, soft_wrap=True, highlight=False)
    say(f"{found['date']}, {found['cpu_seconds']:.0f} CPU-seconds, {found['machine']}")


if __name__ == "__main__":
    main()
