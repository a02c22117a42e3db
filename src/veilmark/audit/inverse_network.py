"""Pictures out of what the released generator makes of them, if that ever left a client."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from veilmark.audit.attack import Attack, Finding, Scene, with_controls
from veilmark.audit.generator_attacks import Generate, InverseNetwork, noise_in_place, released, train_inverse
from veilmark.audit.gradient_inversion import psnr
from veilmark.audit.record import Record, ThreatModel, not_released
from veilmark.federation.methods.ppidsg import PPIDSGOptions
from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.seeds import rng_for

CLIENTS = "G(x) of clients' pictures, which do not travel"
"""The rung that stands in place of ``as it was``: what would leak if generated pictures left a client."""
_HELD = 64
"""Public pictures at most that the way back is tried on."""
_OWN = 32
"""Pictures of each client at most."""
_SHOWN = 8


class PicturesFromGenerated(Attack):
    """Pictures out of G(x), by a network that learned the way back on public pictures.

    Whoever has the released G can make pairs of public x and G(x). In PPIDSG no G(x) of a client's picture travels, so
    no rung is called ``as it was``: the last one says whether G(x) may be handed out, as if it were hidden.

    Args:
        steps: Training steps of the inverse network.
    """

    name = "pictures from generated ones"
    cost = 18.0
    threat_model = ThreatModel.outsider
    needs = "the released generator; public pictures; generated pictures of clients, which do not travel"
    question = "If pictures that went through the generator leaked, could somebody turn them back?"

    def __init__(self, steps: int = 300) -> None:
        self.steps = steps

    def obstacle(self, record: Record) -> str | None:
        """There must be a generator to learn from."""
        options = record.method.options
        travels = isinstance(options, PPIDSGOptions) and bool(options.share)
        return not_released(record) if travels else "no generator travels"

    def findings(self, scene: Scene) -> list[Finding]:
        """The cipher in place of G, then G on held-out public pictures, then on the clients'.

        The negative control is a network that learned from noise in place of G(x): it can answer with a mean picture
        only.
        """
        record, options = scene.record, scene.record.method.options
        assert isinstance(options, PPIDSGOptions)
        order = torch.from_numpy(rng_for(scene.seed, 45).permutation(len(scene.public)))
        pictures = to_unit(scene.public.inputs[order])
        count = max(1, min(_HELD, len(pictures) // 4))
        held, learned = pictures[:count], pictures[count:]
        cipher = Cipher(Secret(rng_for(scene.seed, 46).bytes(SECRET_BYTES)), options.block)
        known = self._back(scene, cipher.scramble, learned, held, self.steps)
        # A third of the steps: all that noise can teach is the mean picture.
        steps = max(1, self.steps // 3)
        blind = self._back(scene, noise_in_place(scene.seed), learned, held, steps)
        generate = released(record, scene.device)
        network = self.run(scene, learned)
        made = _made(scene, network, generate, held)
        scene.show("G(x) of public pictures", held[:_SHOWN], made[:_SHOWN])
        chance = float(np.mean(nearest_stranger(held, learned)))
        what = ("PSNR", "dB")
        found = [
            self._finding(scene, "the cipher itself in place of the generator", *what, known, chance),
            self._finding(scene, "G(x) of public pictures", *what, psnr(made, held).tolist(), chance),
        ]
        real: list[float] = []
        strangers: list[float] = []
        for client, owner in sorted(enumerate(scene.truth.owners)):
            rows = torch.from_numpy(rng_for(scene.seed, 47, client).permutation(len(owner))[:_OWN])
            own = to_unit(owner.inputs[rows])
            # The scorer's side makes G(x), as clients would; the attack has it and its network only.
            back = _made(scene, network, generate, own)
            if not real:
                scene.show(CLIENTS, own[:_SHOWN], back[:_SHOWN])
            real += psnr(back, own).tolist()
            strangers += nearest_stranger(own, learned)
            scene.advance()
        found.append(self._finding(scene, CLIENTS, *what, real, float(np.mean(strangers))))
        return with_controls(found, float(np.mean(known)), float(np.mean(blind)))

    def run(self, scene: Scene, public: Tensor) -> InverseNetwork:
        """The way back from what G made of pictures.

        Args:
            scene: Its record; an outsider has what it ends with.
            public: ``(n, c, s, s)`` in [-1, 1].
        """
        return self._trained(scene, released(scene.record, scene.device), public, self.steps)

    def _back(self, scene: Scene, generate: Generate, learned: Tensor, held: Tensor, steps: int) -> list[float]:
        """PSNR of held-out pictures, found from what ``generate`` made of them."""
        network = self._trained(scene, generate, learned, steps)
        back: list[float] = psnr(_made(scene, network, generate, held), held).tolist()
        return back

    def _trained(self, scene: Scene, generate: Generate, learned: Tensor, steps: int) -> InverseNetwork:
        return train_inverse(generate, learned.to(scene.device), steps=steps, seed=scene.seed, advance=scene.advance)


def nearest_stranger(pictures: Tensor, strangers: Tensor) -> list[float]:
    """PSNR in dB of the nearest other picture, for each of ``(n, c, s, s)``."""
    return [float(psnr(strangers, one.expand_as(strangers)).max()) for one in pictures]


def _made(scene: Scene, network: InverseNetwork, generate: Generate, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        back: Tensor = network(torch.cat([generate(some) for some in torch.split(pictures.to(scene.device), 256)]))
    return back.cpu().clone()
