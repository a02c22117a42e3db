"""The PPIDSG paper's own attack on G (Ma, Yao and Xu 2024, arXiv 2312.10380): noise, and other pictures, go through it.

The paper looks whether what comes out has anything of clients' pictures. Here that is measured: how near the nearest of
them is, beside the nearest of as many pictures of the same classes that nobody learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.generator_attacks import released
from veilmark.audit.gradient_inversion import psnr
from veilmark.audit.record import Record, ThreatModel, not_released
from veilmark.federation.methods.ppidsg import PPIDSGOptions
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import to_unit
from veilmark.run.seeds import rng_for

MADE = 48
"""Pictures of noise that go through G, and public ones, at most."""
FAINT = 0.1
"""Of the noise, what is added to the pictures that the control hands out."""
_SHOWN = 8


class NoiseThroughGenerator(Attack):
    """What comes out of G where noise goes in, or a public picture."""

    name = "noise through the generator"
    cost = 0.3
    threat_model = ThreatModel.outsider
    needs = "the released generator; public pictures"
    question = "If noise or other pictures go through the released generator, do pictures like the clients' come out?"

    def obstacle(self, record: Record) -> str | None:
        """There must be a generator to ask."""
        options = record.method.options
        travels = isinstance(options, PPIDSGOptions) and bool(options.share)
        return not_released(record) if travels else "no generator travels"

    def findings(self, scene: Scene) -> list[Finding]:
        """Something that hands out public pictures, then G; the negative control is the noise as it is."""
        half = len(scene.public) // 2
        order = rng_for(scene.seed, 80).permutation(len(scene.public))
        learned, others = _rows(scene.public, order[:half]), _rows(scene.public, order[half : 2 * half])
        known, rest = to_unit(learned.inputs), to_unit(others.inputs)
        clients, strangers = of_like_classes(scene.truth.owners, scene.truth.strangers or others, scene.seed)
        fed = known[:MADE]
        noise = torch.from_numpy(rng_for(scene.seed, 81).uniform(-1, 1, fed.shape).astype(np.float32))

        def scored(rung: str, source: str, made: Tensor, pictures: Tensor, strange: Tensor) -> Finding:
            values, near = nearest(made, pictures)
            chance, _ = nearest(made, strange)
            scene.show(f"{rung}, from {source}", near[:_SHOWN], made[:_SHOWN])
            scene.advance()
            metric = f"PSNR of the nearest learned picture to what was made from {source}"
            return self._finding(scene, rung, metric, "dB", values, chance)

        rung = f"{half} public pictures, handed out with a little noise in place of the generator"
        found = [
            scored(rung, "noise", (fed + FAINT * noise).clamp(-1, 1), known, rest),
            scored(REAL, "noise", self.run(scene, noise), clients, strangers),
            scored(REAL, "public pictures", self.run(scene, fed), clients, strangers),
        ]
        return with_controls(found, found[0].value, float(np.mean(nearest(noise, clients)[0])))

    def run(self, scene: Scene, pictures: Tensor) -> Tensor:
        """What the released G makes.

        Args:
            scene: Its record; an outsider has what it ends with.
            pictures: ``(n, c, s, s)`` in [-1, 1].
        """
        with torch.no_grad():
            made: Tensor = released(scene.record, scene.device)(pictures.to(scene.device)).cpu()
        return made


def nearest(made: Tensor, pictures: Tensor) -> tuple[list[float], Tensor]:
    """The nearest picture to each made one: PSNR in dB, and that picture."""
    best = torch.stack([psnr(pictures, one.expand_as(pictures)) for one in made]).max(dim=1)
    return best.values.tolist(), pictures[best.indices]


def of_like_classes(owners: Sequence[Data], others: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Equally many pictures of each class, of owners and of others: none is to be near by its class or their number.

    Args:
        owners: Whose pictures are in question.
        others: Those beside them, with pictures of some of their classes.
        seed: Of which ones are drawn.

    Returns:
        Both in [-1, 1].
    """
    inputs = (torch.cat([owner.inputs for owner in owners]), others.inputs)
    labels = (torch.cat([owner.targets for owner in owners]).numpy(), others.targets.numpy())
    chosen = []
    for label in np.unique(labels[0]).tolist():
        rows = [np.flatnonzero(some == label) for some in labels]
        count = min(map(len, rows))
        chosen.append([rng_for(seed, 82, label, side).permutation(rows[side])[:count] for side in (0, 1)])
    ours, theirs = (np.concatenate(some) for some in zip(*chosen, strict=True))
    return to_unit(inputs[0][ours]), to_unit(inputs[1][theirs])


def _rows(data: Data, rows: np.typing.NDArray[np.int64]) -> Data:
    return Data(data.inputs[rows], data.targets[rows], tuple(data.names[row] for row in rows))
