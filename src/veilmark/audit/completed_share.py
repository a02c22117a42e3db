"""Membership where no whole classifier travels: somebody learns what is missing, and asks then.

That a part stays at home ends the questions that take a whole classifier. It ends them for nobody who can learn such a
part for himself: a head behind a released generator or extractor, an extractor in front of a released head. Another
client has pictures and secrets of its own for that; the server has public pictures.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from veilmark.audit.answers import logits_of
from veilmark.audit.attack import REAL, Finding, Scene
from veilmark.audit.membership import MembershipAttack, Scores, confidence
from veilmark.audit.record import Record, ThreatModel, finished_share, network_of, not_released
from veilmark.federation.engine import side_by_side
from veilmark.federation.methods.method import Secrets
from veilmark.federation.methods.ppidsg import PPIDSGOptions, cipher_of, generator_of
from veilmark.federation.tasks.classify import ClassifierNetwork
from veilmark.federation.tasks.task import Data
from veilmark.ppidsg.client_training import PPIDSGClient, to_unit
from veilmark.ppidsg.networks import Generator
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
RIDGE, NEVER = 0.01, -20.0
"""scikit-learn's C of a linear head, for features of root mean square 1; what such a head says of an unknown class."""


class _Pictures(NamedTuple):
    """Of an attack and its control.

    Attributes:
        own: What the attacker learns on.
        members: In question, by client.
        strangers: In question beside them.
        learned: Public ones that the share of the control is made to know.
        rest: Public ones that it is not.
    """

    own: Data
    members: list[Data]
    strangers: Data
    learned: Data
    rest: Data


class MembershipBehindShare(MembershipAttack):
    """Which pictures clients trained on, by what was released and a part that the attacker learns.

    What the run ends with and what it started from are completed alike, and a picture counts as a member as far as the
    end makes the attacker more certain of the right class than the start (difficulty calibration; Watson et al. 2022,
    arXiv 2111.08440). What does not travel is learned by Adam. Where a whole classifier travels, nothing is learned.
    """

    def obstacle(self, record: Record) -> str | None:
        """A generator, or something of the classifier, must travel."""
        if not _generator_options(record) and not _shared_of_classifier(record):
            return "nothing is released that a classifier could be made of"
        return not_released(record)

    def run(self, scene: Scene, own: Data, asked: Sequence[Data]) -> tuple[list[Scores], list[Scores]]:
        """The attack on the run as it was.

        Args:
            scene: Its record; its truth is read for the secrets of a curious client alone, who has them.
            own: What the attacker learns the missing part on.
            asked: Pictures in question, with labels.

        Returns:
            For each of ``asked``, ``(n,)``, larger for members; and how certain of the right class the attacker is with
            what the run started from.
        """
        shares = (finished_share(scene.record), scene.record.start)
        after, before = self._certainties(scene, own, [(share, 1, asked) for share in shares])
        return [one - other for one, other in zip(after, before, strict=True)], before

    def findings(self, scene: Scene) -> list[Finding]:
        """A share that knows some public pictures, and the run; the attacker's own pictures are not asked about."""
        start = scene.record.start
        own, members, strangers, learned, rest = self._pictures(scene)
        asked = [*members, strangers]
        said, (known, unknown, *before) = self.run(scene, own, [learned, rest, *asked])
        overfit = self._overfit(scene, start, learned)
        # The start once more, with other first weights in front or behind, knows nobody. Where nothing is learned it
        # would be the same once more, and all of it a tie: there it is an end of noise.
        learns = bool(_generator_options(scene.record)) or bool(_classifier(scene, start, 2)[1])
        vain = start if learns else _noise_end(scene)
        knows, again = self._certainties(scene, own, [(overfit, 1, [learned, rest]), (vain, 2, asked)])
        rung = f"a share that knows {len(learned)} public pictures by heart"
        found = self._scored(scene, rung, [(knows[0] - known, knows[1] - unknown)], [(learned.targets, rest.targets)])
        classes = [(torch.cat([some.targets for some in members]), strangers.targets)]
        *real, strange = said[2:]
        found += self._scored(scene, REAL, [(np.concatenate(real), strange)], classes)
        *blind, strange = (one - other for one, other in zip(again, before, strict=True))
        return self._controlled(found, self._scored(scene, REAL, [(np.concatenate(blind), strange)], classes))

    def _certainties(
        self, scene: Scene, own: Data, shares: Sequence[tuple[Tensors, int, Sequence[Data]]]
    ) -> list[list[Scores]]:
        """How certain of the right class shares are, once what is missing is learned.

        Args:
            scene: See :meth:`run`.
            own: What the missing part is learned on.
            shares: Each with a number (another one: other first weights, another order) and the pictures in question.

        Returns:
            For each share, and each of its pictures in question, ``(n,)``.
        """
        # First weights are drawn one after the other; then they learn side by side.
        begun = [self._begun(scene, share, own, number) for share, number, _ in shares]

        def certain(place: int) -> list[Scores]:
            network = begun[place]()
            asked = shares[place][2]
            return [confidence(logits_of(network, some.inputs), some.targets) for some in asked]

        return [found for _, found in side_by_side(range(len(shares)), certain, scene.device)]

    @abstractmethod
    def _pictures(self, scene: Scene) -> _Pictures:
        """Who is asked about, and with what the attacker learns."""

    def _secrets(self, scene: Scene) -> Secrets:
        """Of the client whose share is made to know pictures: none of the run's."""
        return strange_secrets(scene)

    def _begun(self, scene: Scene, share: Tensors, own: Data, number: int) -> Callable[[], nn.Module]:
        """What makes a classifier with the share in it as it is, and the rest learned on the attacker's pictures.

        Behind a generator subclasses have their own.
        """
        network, missing = _classifier(scene, share, number)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        for parameter in missing:
            parameter.requires_grad_(True)

        def completed() -> nn.Module:
            if missing:
                _learn(scene, network, missing, to_unit(own.inputs), own.targets, STEPS, number)
            return network

        return completed

    def _overfit(self, scene: Scene, share: Tensors, learned: Data) -> Tensors:
        """The share after training on a few pictures only; what is missing stays as it starts, so the share learns."""
        return knowing_share(scene, share, learned, self._secrets(scene), 3)()


def knowing_share(scene: Scene, share: Tensors, learned: Data, secrets: Secrets, number: int) -> Callable[[], Tensors]:
    """What trains a share on a few pictures only; what is missing stays as it starts, so the share learns them.

    Args:
        scene: Its record.
        share: Where it starts.
        learned: The pictures.
        secrets: Of the client that does it, behind a generator.
        number: Another one gives other networks beside the share, and another order.
    """
    travels: nn.Module
    if _generator_options(scene.record):
        client = _client(scene, learned, number, secrets)
        client.generator.load_state_dict(generator_of(share))
        whole, travels = _whole(client), client.generator
        learning, steps = list(travels.parameters()), GENERATOR_STEPS
    else:
        whole, missing = _classifier(scene, share, number)
        travels, steps = whole, KNOWN_STEPS
        learning = [parameter for parameter in whole.parameters() if all(parameter is not some for some in missing)]

    def knowing() -> Tensors:
        _learn(scene, whole, learning, to_unit(learned.inputs), learned.targets, steps, number)
        return share | {name: value.cpu() for name, value in travels.state_dict().items() if name in share}

    return knowing


def _noise_end(scene: Scene) -> Tensors:
    """What the run started from, changed by noise as large as what the run made of it, tensor by tensor.

    Noise in place of the last messages would not do: what was broadcast before them knows members already.
    """
    generator = torch.Generator().manual_seed(int(rng_for(scene.seed, 97).integers(2**31)))
    end, made = finished_share(scene.record), dict(scene.record.start)
    for name, value in made.items():
        if name in end and value.is_floating_point():
            spread = (end[name] - value).square().mean().sqrt()
            made[name] = value + spread * torch.randn(value.shape, generator=generator)
    return made


class MembershipByClient(MembershipBehindShare):
    """By the first client, with its own pictures and secrets.

    Behind a generator it is PPIDSG's own client that plays a round more: F and C start where those of all clients do.
    """

    name = "membership behind the share"
    cost = 33.0
    threat_model = ThreatModel.client
    needs = "what is released; a client's own pictures and secrets; the picture in question, labelled"
    question = "Can another client tell whether a picture was in the training, with a missing part that it learns?"

    def _pictures(self, scene: Scene) -> _Pictures:
        public = scene.public
        count = min(KNOWN, len(public) // 2)
        learned, rest = _rows(public, range(count)), _rows(public, range(count, len(public)))
        own, *others = _in_question(scene)
        return _Pictures(own, others, scene.truth.strangers or public, learned, rest)

    def _secrets(self, scene: Scene) -> Secrets:
        """The first client's own, where the method has any."""
        return scene.truth.first or super()._secrets(scene)

    def _begun(self, scene: Scene, share: Tensors, own: Data, number: int) -> Callable[[], nn.Module]:
        """Behind a generator, F and C after a round of PPIDSG's own training; else as elsewhere."""
        if not _generator_options(scene.record):
            return super()._begun(scene, share, own, number)
        client = _client(scene, own, number, self._secrets(scene))

        def completed() -> nn.Module:
            client.train_round(generator_of(share), scene.record.rounds[-1].number - 1)
            scene.advance()
            client.generator.load_state_dict(generator_of(share))
            return _whole(client)

        return completed


class MembershipByServer(MembershipBehindShare):
    """By the server, on public pictures, without any secret.

    Behind a generator or an extractor it learns a logistic regression on what comes out: heads with layers of their own
    know the few pictures that they learned, and hardly any others (docs/audit-attacks.md). In front of a released head
    an extractor is learned by Adam.
    """

    name = "membership behind the share, by the server"
    cost = 15.0
    threat_model = ThreatModel.server
    needs = "what is released; labelled public pictures; the picture in question, labelled"
    question = "Can the server tell whether a picture was in the training, with a missing part learned in public?"

    def obstacle(self, record: Record) -> str | None:
        """Something must be missing: where a whole classifier travels, other attacks ask it."""
        if not set(record.task.network(0).state_dict()) - set(record.declared.tensors):
            return "a whole classifier travels: there is nothing to learn, and it is asked as it is"
        return super().obstacle(record)

    def _pictures(self, scene: Scene) -> _Pictures:
        public = scene.public
        count = min(KNOWN, len(public) // 3)
        half = count + (len(public) - count) // 2
        learned, own, rest = (_rows(public, range(*ends)) for ends in ((0, count), (count, half), (half, len(public))))
        # Whom the attacker learned is no stranger.
        return _Pictures(own, _in_question(scene), scene.truth.strangers or rest, learned, rest)

    def _begun(self, scene: Scene, share: Tensors, own: Data, number: int) -> Callable[[], nn.Module]:
        """Behind what makes features, a linear head; another number learns it on another draw of the pictures."""
        if not makes_features(scene.record):
            return super()._begun(scene, share, own, number)
        front = front_of(scene, share)
        draw = np.arange(len(own))
        if number > 1:
            draw = rng_for(scene.seed, 78, number).integers(len(own), size=len(own))
        return partial(with_linear_head, scene, front, _rows(own, draw))


def with_linear_head(scene: Scene, front: nn.Module, own: Data) -> nn.Module:
    """A network with a multinomial logistic regression behind it, learned on these pictures."""
    classes = len(scene.record.task.classes)
    with torch.no_grad():
        made = [front(some.to(scene.device)).flatten(1).cpu() for some in torch.split(to_unit(own.inputs), 64)]
    features, labels = torch.cat(made), own.targets.numpy()
    size = float(features.square().mean().sqrt()) or 1.0
    head = nn.Linear(features.shape[1], classes)
    known = np.unique(labels)
    with torch.no_grad():
        head.weight.zero_()
        # A class of which it has no picture is none that it would name.
        head.bias.fill_(NEVER)
        head.bias[known] = 0.0
        if len(known) > 1:
            model = LogisticRegression(C=RIDGE, max_iter=1000).fit((features / size).numpy(), labels)
            slopes, bias = model.coef_, model.intercept_
            if len(known) == 2:
                # One line between two classes: half of it for each.
                slopes, bias = (np.stack([-some[0] / 2, some[0] / 2]) for some in (slopes, bias))
            head.weight[known] = torch.from_numpy(slopes / size).float()
            head.bias[known] = torch.from_numpy(bias).float()
    return nn.Sequential(front, nn.Flatten(), head).to(scene.device)


def _generator_options(record: Record) -> PPIDSGOptions | None:
    """Options of PPIDSG, where its generator travels."""
    options = record.method.options
    return options if isinstance(options, PPIDSGOptions) and options.share else None


def _shared_of_classifier(record: Record) -> set[str]:
    return set(record.task.network(0).state_dict()) & set(record.declared.tensors)


def _client(scene: Scene, own: Data, number: int, known: Secrets) -> PPIDSGClient:
    """A client of PPIDSG; another number gives another D, and another F where that starts by chance."""
    record, options = scene.record, _generator_options(scene.record)
    assert options is not None
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


def strange_secrets(scene: Scene) -> Secrets:
    """Secrets of somebody who knows none of the run's."""
    common, own = (Secret(rng_for(scene.seed, 73, place).bytes(SECRET_BYTES)) for place in (0, 1))
    return Secrets(common, own)


def _whole(client: PPIDSGClient) -> nn.Module:
    return nn.Sequential(client.generator, client.extractor, client.classifier)


def makes_features(record: Record) -> bool:
    """Whether what travels makes features of pictures by itself: a generator, or a whole extractor."""
    extractor = {name for name in record.task.network(0).state_dict() if name.startswith("extractor.")}
    return bool(_generator_options(record)) or extractor <= _shared_of_classifier(record)


def front_of(scene: Scene, share: Tensors) -> nn.Module:
    """The share's generator or extractor, where one :func:`makes_features`."""
    options = _generator_options(scene.record)
    if options is None:
        return network_of(scene.record, share, scene.device).extractor
    generator = Generator(scene.record.task.channels, skip="generator" not in options.published)
    generator.load_state_dict(generator_of(share))
    return generator.to(scene.device)


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
    scene: Scene,
    network: nn.Module,
    parameters: list[nn.Parameter],
    x: Tensor,
    targets: Tensor,
    steps: int,
    number: int,
) -> None:
    """Some steps of Adam on batches of pictures in [-1, 1], for these parameters."""
    optimizer = torch.optim.Adam(parameters, RATE)
    for step in range(steps):
        rows = torch.from_numpy(rng_for(scene.seed, 71, number, step).permutation(len(x))[:BATCH])
        inputs, labels = (some[rows].to(scene.device) for some in (x, targets))
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 10 == 9:
            scene.advance()


def _in_question(scene: Scene) -> list[Data]:
    """Pictures of each client, those of the first one included."""
    return [
        _rows(owner, rng_for(scene.seed, 72, place).permutation(len(owner))[:MOST_ASKED])
        for place, owner in enumerate(scene.truth.owners)
    ]


def _rows(data: Data, rows: range | NDArray[np.int64]) -> Data:
    index = torch.tensor(list(rows), dtype=torch.int64)
    return Data(data.inputs[index], data.targets[index], tuple(data.names[int(row)] for row in rows))
