"""Membership where no whole classifier travels: another client learns what is missing, and asks then.

That a part stays at home ends the questions that take a whole classifier. It ends them for nobody who can learn such a
part for himself: a head behind a released generator or extractor, an extractor in front of a released head.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import REAL, Finding, Scene
from veilmark.audit.membership import MembershipAttack, Scores, confidence
from veilmark.audit.record import Record, ThreatModel, finished_share, not_released
from veilmark.federation.methods.method import Secrets
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of, generator_of
from veilmark.federation.tasks.classify import ClassifierNetwork
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import PPIDSGClient, to_unit
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.seeds import rng_for

STEPS, BATCH, RATE = 60, 32, 1e-3
"""Of Adam, with which the missing part is learned."""
KNOWN, KNOWN_STEPS, GENERATOR_STEPS = 32, 60, 25
"""Public pictures that a share is made to know by heart, and steps, in the positive control; a generator needs fewer,
which cost more."""
MOST_ASKED = 200
"""Pictures of each client that are asked about, at most."""
HEAD_WIDTHS = (128, 64)
"""Of a head that the attacker learns: it has few pictures."""


class MembershipBehindShare(MembershipAttack):
    """Which pictures other clients trained on, by what was released and a part that the attacker learns.

    The attacker is the first client, with its own pictures and secrets. It completes what the run ends with and what it
    started from alike, and a picture counts as a member as far as the end makes it more certain of the right class than
    the start (difficulty calibration; Watson et al. 2022, arXiv 2111.08440). Behind a generator it is PPIDSG's own
    client that plays a round more: F and C start where those of all clients do. Elsewhere what does not travel is
    learned by Adam. Where a whole classifier travels, nothing is learned.
    """

    name = "membership behind the share"
    threat_model = ThreatModel.client
    needs = "what is released; a client's own pictures and secrets; the picture in question, labelled"
    question = "Can another client tell whether a picture was in the training, with a missing part that it learns?"

    def obstacle(self, record: Record) -> str | None:
        """A generator, or something of the classifier, must travel."""
        if not _generator_options(record) and not _shared_of_classifier(record):
            return "nothing is released that a classifier could be made of"
        return not_released(record)

    def findings(self, scene: Scene) -> list[Finding]:
        """A share that knows some public pictures, and the run; the attacker's own pictures are not asked about."""
        record, public = scene.record, scene.public
        first, last = record.start, finished_share(record)
        count = min(KNOWN, len(public) // 2)
        learned, rest = _rows(public, range(count)), _rows(public, range(count, len(public)))
        own, *others = (_rows(owner, _asked(scene, place, owner)) for place, owner in enumerate(scene.truth.owners))
        strangers = scene.truth.strangers or public
        reference = self._completed(scene, first, own, 1)
        knows = self._completed(scene, self._overfit(scene, first, learned), own, 1)
        released, again = self._completed(scene, last, own, 1), self._completed(scene, first, own, 2)
        rung = f"a share that knows {count} public pictures by heart"
        found = self._scored(scene, rung, [(_gain(knows, reference, learned), _gain(knows, reference, rest))])
        real, blind = (
            (np.concatenate([_gain(some, reference, other) for other in others]), _gain(some, reference, strangers))
            for some in (released, again)
        )
        found += self._scored(scene, REAL, [real])
        return self._controlled(found, self._scored(scene, REAL, [blind]))

    def _completed(self, scene: Scene, share: Tensors, own: Data, number: int) -> nn.Module:
        """A classifier with the share in it as it is, and the rest learned on the attacker's pictures."""
        if _generator_options(scene.record):
            client = _client(scene, own, number)
            client.train_round(generator_of(share), scene.record.rounds[-1].number - 1)
            scene.advance()
            client.generator.load_state_dict(generator_of(share))
            return _whole(client)
        network, missing = _classifier(scene, share, number)
        if missing:
            for parameter in network.parameters():
                parameter.requires_grad_(False)
            for parameter in missing:
                parameter.requires_grad_(True)
            _learn(scene, network, missing, own, STEPS, number)
        return network

    def _overfit(self, scene: Scene, share: Tensors, learned: Data) -> Tensors:
        """The share after training on a few pictures only; what is missing stays as it starts, so the share learns."""
        travels: nn.Module
        if _generator_options(scene.record):
            client = _client(scene, learned, 3)
            client.generator.load_state_dict(generator_of(share))
            whole, travels = _whole(client), client.generator
            learning, steps = list(travels.parameters()), GENERATOR_STEPS
        else:
            whole, missing = _classifier(scene, share, 3)
            travels, steps = whole, KNOWN_STEPS
            learning = [parameter for parameter in whole.parameters() if all(parameter is not some for some in missing)]
        _learn(scene, whole, learning, learned, steps, 3)
        return share | {name: value.cpu() for name, value in travels.state_dict().items() if name in share}


def _generator_options(record: Record) -> PPIDSGOptions | None:
    """Options of PPIDSG, where its generator travels."""
    options = record.method.options
    return options if isinstance(options, PPIDSGOptions) and options.share else None


def _shared_of_classifier(record: Record) -> set[str]:
    return set(record.task.network(0).state_dict()) & set(record.declared.tensors)


def _client(scene: Scene, own: Data, number: int) -> PPIDSGClient:
    """The attacker as a client of PPIDSG; another number gives another D, and another F where that starts by chance."""
    record, options = scene.record, _generator_options(scene.record)
    assert options is not None
    known = scene.truth.first or Secrets(_drawn(scene, 0), _drawn(scene, 1))
    return PPIDSGClient(
        own.inputs,
        own.targets,
        len(record.task.classes),
        cipher_of(options, known.federation, known.own),
        known.federation.derive(b"key"),
        options,
        training=record.config.training,
        rounds=record.config.rounds,
        head_widths=record.task.head_widths,
        seed=int(rng_for(scene.seed, 70, number).integers(2**31)),
        names=list(own.names) if options.scope == "image" else None,
        device=scene.device,
    )


def _drawn(scene: Scene, place: int) -> Secret:
    return Secret(rng_for(scene.seed, 73, place).bytes(SECRET_BYTES))


def _whole(client: PPIDSGClient) -> nn.Module:
    return nn.Sequential(client.generator, client.extractor, client.classifier)


def _classifier(scene: Scene, share: Tensors, number: int) -> tuple[ClassifierNetwork, list[nn.Parameter]]:
    """A classifier with the share in it and fresh weights elsewhere, and these; another number gives others."""
    task, shared = scene.record.task, _shared_of_classifier(scene.record)
    with_head = any(name.startswith("classifier.") for name in shared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_for(scene.seed, 70, number).integers(2**31)))
        network = ClassifierNetwork(
            task.channels, task.side, len(task.classes), task.head_widths if with_head else HEAD_WIDTHS
        )
    network.load_state_dict({name: share[name] for name in shared}, strict=False)
    missing = [parameter for name, parameter in network.named_parameters() if name not in shared]
    return network.to(scene.device), missing


def _learn(
    scene: Scene, network: nn.Module, parameters: list[nn.Parameter], data: Data, steps: int, number: int
) -> None:
    """Some steps of Adam on batches of pictures, for these parameters."""
    optimizer = torch.optim.Adam(parameters, RATE)
    for step in range(steps):
        rows = torch.from_numpy(rng_for(scene.seed, 71, number, step).permutation(len(data))[:BATCH])
        inputs, labels = (some[rows].to(scene.device) for some in (data.inputs, data.targets))
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(network(to_unit(inputs)), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 10 == 9:
            scene.advance()


def _gain(released: nn.Module, reference: nn.Module, data: Data) -> Scores:
    """How much more certain the one is of the right class than the other, ``(n,)``."""
    known, before = (confidence(logits_of(network, data.inputs), data.targets) for network in (released, reference))
    return known - before


def _asked(scene: Scene, place: int, owner: Data) -> NDArray[np.int64]:
    return rng_for(scene.seed, 72, place).permutation(len(owner))[:MOST_ASKED]


def _rows(data: Data, rows: range | NDArray[np.int64]) -> Data:
    index = torch.tensor(list(rows), dtype=torch.int64)
    return Data(data.inputs[index], data.targets[index], tuple(data.names[int(row)] for row in rows))
