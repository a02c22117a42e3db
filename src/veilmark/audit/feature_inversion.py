"""Pictures out of the gradient of a linear layer: features by algebra (Phong et al. 2018), and a decoder for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from veilmark.audit.attack import REAL, Attack, Finding, Scene, by_client, control_where, with_controls
from veilmark.audit.gradient_inversion import psnr, sgd_gradient
from veilmark.audit.own_step import OWN_STEP, is_plain, own_step
from veilmark.audit.record import Record, ThreatModel, in_noise, network_of
from veilmark.federation.samples import SHOWN
from veilmark.federation.tasks.classify import ClassifierNetwork
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss, reconstruction_loss
from veilmark.ppidsg.networks import Extractor
from veilmark.run.local_training import rate, sgd_weight, steps_of
from veilmark.run.seeds import rng_for

_FIRST = "classifier.layers.1"
"""The first linear layer of the classifier that methods share."""
_REHEARSED = 6
DECODER_STEPS = 300
"""Of the decoder that turns features into pictures."""


def layer_inputs(weights: Tensor, bias: Tensor) -> Tensor:
    """What entered a linear layer, from its gradients (Phong et al. 2018): exact for one example.

    A row of the weights' gradient is the input times the bias' gradient. For more examples it is a mixture of theirs.

    Args:
        weights: ``(k, d)``.
        bias: ``(k,)``.

    Returns:
        ``(d,)``, from the row with the largest bias gradient.
    """
    row = int(bias.abs().argmax())
    return weights[row] / bias[row]


def train_feature_decoder(
    extractor: nn.Module,
    public: Tensor,
    *,
    steps: int,
    batch: int = 32,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Learns, on public pictures, the way back from features of a known extractor to pictures.

    Args:
        extractor: The encoder of F, as it was broadcast.
        public: ``(n, c, s, s)`` in [-1, 1], where the extractor computes; the decoder will, too.
        steps: Steps of Adam.
        batch: Pictures a step.
        seed: Of first weights and order.
        advance: Called after each step.

    Returns:
        F's decoder, trained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Extractor(public.shape[1]).decoder.to(public.device)
    with torch.no_grad():
        features = torch.cat([extractor(some) for some in torch.split(public, 256)])
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-3)
    rng = rng_for(seed, 34)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(len(public), size=batch))
        loss = reconstruction_loss(decoder(features[rows]), public[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        advance()
    return decoder


class PicturesFromHead(Attack):
    """Pictures out of the gradient of the first linear layer: features by algebra, then a decoder learned in public."""

    name = "pictures from updates"
    cost = 11.0
    threat_model = ThreatModel.server
    needs = "the changes of the whole classifier; public pictures"
    question = "Can the server see the clients' pictures in what they send?"

    def obstacle(self, record: Record) -> str | None:
        """Extractor and first linear layer must travel."""
        needed = [name for name in record.task.network(0).state_dict() if name.startswith(("extractor", _FIRST))]
        missing = [name for name in needed if name not in record.declared.tensors]
        return f"{missing[0]} does not travel" if missing else None

    def findings(self, scene: Scene) -> list[Finding]:
        """One step on one public picture, by the method's own client too, and every recorded message."""
        record, public = scene.record, to_unit(scene.public.inputs)
        targets, half = scene.public.targets, len(scene.public) // 2
        rehearsed: list[float] = []
        noise: list[float] = []
        owned: list[float] = []
        plain = True
        chances: list[float] = []
        shown: list[Tensor] = []
        decoders = self.decoders(scene)
        network, decoder = decoders[record.rounds[0].number]
        generator = torch.Generator().manual_seed(scene.seed)
        named = dict(network.named_parameters())
        for row in range(half, min(half + _REHEARSED, len(public))):
            x = public[row : row + 1]
            loss = class_loss(network(x.to(scene.device)), targets[row : row + 1].to(scene.device))
            gradients = torch.autograd.grad(loss, [named[f"{_FIRST}.weight"], named[f"{_FIRST}.bias"]])
            seen = [record.method.sent_of(some) for some in gradients]
            blind = [
                record.method.sent_of(torch.randn(some.shape, generator=generator).to(scene.device) * some.std())
                for some in seen
            ]
            sent = own_step(scene, [row])
            first = {name: sent[name] for name in (f"{_FIRST}.weight", f"{_FIRST}.bias")}
            plain = plain and is_plain(first, dict(zip(first, seen, strict=True)))
            for given, scores in ((seen, rehearsed), (blind, noise), (list(first.values()), owned)):
                made = _decoded(scene, network, decoder, given)
                scores.append(float(psnr(made, x)[0]))
                if given is seen:
                    shown.append(made)
            chances.append(float(psnr(public[:half], x.expand_as(public[:half])).max()))
            scene.advance()
        scene.show("one step on one picture", public[half : half + len(shown)], torch.cat(shown))
        real: dict[tuple[int, int], float] = {}
        strangers: dict[tuple[int, int], float] = {}
        nearest, made_of, in_vain = [], [], []
        found_in_noise = self.run(scene, in_noise(record, scene.seed), decoders)
        for (number, client), picture in self.run(scene, record, decoders).items():
            own = to_unit(scene.truth.owners[client].inputs)
            near = psnr(picture.expand_as(own), own)
            real[number, client] = float(near.max())
            nearest.append(own[int(near.argmax())])
            made_of.append(picture[0])
            others = (float(psnr(some[None].expand_as(own), own).max()) for some in public[:half])
            strangers[number, client] = max(others)
            in_vain.append(float(psnr(found_in_noise[number, client].expand_as(own), own).max()))
        scene.show(REAL, torch.stack(nearest[:SHOWN]), torch.stack(made_of[:SHOWN]))
        what = ("PSNR of the nearest picture", "dB")
        found = [
            self._finding(scene, "one step on one picture", *what, rehearsed, chances),
            *([self._finding(scene, OWN_STEP, *what, owned, chances)] if not plain else []),
            self._finding(scene, REAL, *what, by_client(real), by_client(strangers)),
        ]
        found = with_controls(found, float(np.mean(rehearsed)), float(np.mean(noise)))
        return control_where(found, REAL, float(np.mean(in_vain)))

    def decoders(self, scene: Scene) -> dict[int, tuple[ClassifierNetwork, nn.Module]]:
        """By round, the network that was broadcast, and the way back from its features."""
        networks = {some.number: network_of(scene.record, some.broadcast, scene.device) for some in scene.record.rounds}
        return {number: (network, self._decoder(scene, network)) for number, network in networks.items()}

    def run(
        self, scene: Scene, record: Record, decoders: Mapping[int, tuple[ClassifierNetwork, nn.Module]]
    ) -> dict[tuple[int, int], Tensor]:
        """A picture ``(1, c, s, s)`` by (round, client).

        Args:
            scene: What the attacker has.
            record: The messages that are attacked: the scene's, or noise in their place.
            decoders: By round, see :meth:`decoders`.
        """
        found = {}
        for recorded in record.rounds:
            network, decoder = decoders[recorded.number]
            share = rate(recorded.number - 1, record.config.rounds, record.config.training.decay_after)
            for client, update in recorded.updates.items():
                training, names = record.config.training, (f"{_FIRST}.weight", f"{_FIRST}.bias")
                steps = steps_of(update.examples, training)
                before, after = ({name: some[name] for name in names} for some in (recorded.broadcast, update.tensors))
                scale = share * training.lr * sgd_weight(steps, training.momentum)
                gradients = list(sgd_gradient(before, after, scale, training.weight_decay).values())
                found[recorded.number, client] = _decoded(scene, network, decoder, gradients)
                scene.advance()
        return found

    def _decoder(self, scene: Scene, network: ClassifierNetwork) -> nn.Module:
        half = to_unit(scene.public.inputs[: len(scene.public) // 2].to(scene.device))
        return train_feature_decoder(
            network.extractor, half, steps=DECODER_STEPS, seed=scene.seed, advance=scene.advance
        )


def _decoded(scene: Scene, network: ClassifierNetwork, decoder: nn.Module, gradients: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode():
        shape = network.extractor(to_unit(scene.public.inputs[:1].to(scene.device))).shape
        # Gradients out of the record are on the CPU.
        picture: Tensor = decoder(layer_inputs(gradients[0], gradients[1]).view(shape).to(scene.device))
    return picture.cpu().clone()
