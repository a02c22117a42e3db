"""Pictures out of updates by search: what pictures would have given the same update? On the run's own networks.

Each attack runs up a ladder of knowledge, from one picture and one step of which everything is known to the messages
of the run. All but the last rung are rehearsed with public pictures, on the networks that were broadcast.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from veilmark.audit.attack import REAL, Attack, Finding, Scene, control_where, with_controls
from veilmark.audit.class_counts import apportioned, prior_counts, sign_rule
from veilmark.audit.gradient_inversion import (
    GradientOf,
    Likeness,
    classifier_gradient,
    cosine_distance,
    dlg,
    likeness,
    noise_like,
    psnr,
    sgd_gradient,
    ssim,
)
from veilmark.audit.inversion_search import (
    SmallSigmoidNetwork,
    compact_gradient,
    scrambled,
    search,
    smooth_gradient,
    stepped_gradient,
)
from veilmark.audit.label_inference import LabelCounts
from veilmark.audit.own_step import OWN_STEP, is_plain, own_step
from veilmark.audit.played_client import played_gradient, played_steps, played_table
from veilmark.audit.record import Record, RecordedRound, ThreatModel, in_noise, network_of
from veilmark.audit.waves import LikelyPictures
from veilmark.federation.engine import side_by_side
from veilmark.federation.messages import Update
from veilmark.federation.methods.ppidsg import PPIDSGOptions
from veilmark.federation.samples import SHOWN
from veilmark.federation.tasks.classify import ClassifierNetwork
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.ppidsg.networks import Generator
from veilmark.run.local_training import Training, rate, sgd_weight, steps_of

STEPS = 5
"""Of L-BFGS in a search for a classifier's pictures, some 20 evaluations each."""
GENERATOR_STEPS = 20
"""Of Adam in a search for a generator's pictures, dearer each. No number finds these: docs/audit-attacks.md."""
CONTROL_STEPS = 30
"""Of L-BFGS in the positive control."""
CORNER = 0.1
"""How far the control of a generator rounds the corner of the semantic loss."""
REHEARSED = 4
"""Single pictures on a rung of one picture, and noise in place of as many."""
SINGLE = 8
"""Such pictures on a classifier's rungs, which cost less: one search in four may fail, and of four pictures an interval
is then as wide as what is gained."""
CLIENTS = 4
"""Messages of the first recorded round that are attacked, at most: of two there is hardly an interval."""
NOISES = 2
"""Of those, how many have noise in their place: a mean is asked for, and no interval."""
STRANGERS = 200
"""Public pictures whose nearest one is chance, and along whose components searches go."""
_BATCH, _MOST = 4, 8
_PSNR, _SSIM = ("PSNR of the nearest picture", "dB"), ("SSIM of the nearest picture", "%")


class _Ladder(Attack):
    """What both ladders share: how rungs are scored."""

    threat_model = ThreatModel.server

    def _rehearsed(self, scene: Scene, rung: str, true: Tensor, made: Tensor) -> list[Finding]:
        """Scores pictures that were made of public ones."""
        said = likeness(made, true, _strangers(scene))
        scene.show(rung, true, made[said.order])
        return self._both(scene, rung, said)

    def _both(self, scene: Scene, rung: str, said: Likeness) -> list[Finding]:
        """PSNR and SSIM."""
        alike, by_chance = ([100 * some for some in every] for every in (said.ssim, said.chance_ssim))
        return [
            self._finding(scene, rung, *_PSNR, said.psnr, said.chance_psnr),
            self._finding(scene, rung, *_SSIM, alike, by_chance),
        ]

    def _beside(
        self, found: Sequence[Finding], positive: tuple[float, float], negative: tuple[float, float]
    ) -> list[Finding]:
        """Findings of rehearsals beside their controls, those of the run beside noise in place of its messages.

        By PSNR first, then by SSIM.
        """
        lines = []
        for (metric, _), yes, no in zip((_PSNR, _SSIM), positive, negative, strict=True):
            *alike, in_vain = [some for some in found if some.metric == metric]
            lines += control_where(with_controls(alike, yes, no), REAL, in_vain.value)
        return lines

    @abstractmethod
    def run(self, scene: Scene, record: Record, most: int) -> dict[int, Tensor]:
        """Pictures ``(n, c, s, s)`` by client, out of the first messages of a record: the run's, or noise for them."""

    def _messages(self, scene: Scene) -> list[Finding]:
        """Findings of the run's messages, then of noise in their place."""
        quiet = replace(scene, show=lambda rung, true, made: None)
        in_vain = self._real(quiet, self.run(scene, in_noise(scene.record, scene.seed), NOISES))
        return [*self._real(scene, self.run(scene, scene.record, CLIENTS)), *in_vain]

    def _real(self, scene: Scene, made: Mapping[int, Tensor]) -> list[Finding]:
        """Scores pictures that were made of messages: by client, the pair that is most alike.

        Chance is the pair that is most alike where strangers stand in for what was made.
        """
        owned = [to_unit(scene.truth.owners[client].inputs) for client in made]
        pairs = [_most_alike(pictures, own) for pictures, own in zip(made.values(), owned, strict=True)]
        by_chance = [_most_alike(_strangers(scene), own) for own in owned]
        shown, nearest = (torch.stack(side[:SHOWN]) for side in zip(*pairs, strict=True))
        scene.show(REAL, nearest, shown)
        figures = []
        for chosen in (pairs, by_chance):
            figures.append([float(psnr(one[None], own[None])) for one, own in chosen])
            figures.append([ssim(own, one) for one, own in chosen])
        return self._both(scene, REAL, Likeness(list(range(len(pairs))), *figures))


def _strangers(scene: Scene) -> Tensor:
    """Public pictures that nothing is rehearsed with."""
    return to_unit(scene.public.inputs[: len(scene.public) // 2][:STRANGERS])


def _most_alike(pictures: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The picture ``(c, s, s)`` that is nearest to one of a client's, by PSNR, and that one."""
    alike = torch.stack([psnr(picture.expand_as(own), own) for picture in pictures])
    best = int(alike.amax(dim=1).argmax())
    return pictures[best], own[int(alike[best].argmax())]


def _in_order(made: Tensor, true: Tensor) -> tuple[float, float]:
    """Mean PSNR in dB and SSIM in percent of pictures, each with its own."""
    alike = [100 * ssim(one, other) for one, other in zip(true, made, strict=True)]
    return float(psnr(made, true).mean()), float(np.mean(alike))


def _rows(scene: Scene, count: int) -> list[int]:
    """Public pictures to rehearse with: the first of the second half."""
    half = len(scene.public) // 2
    return list(range(half, min(half + count, len(scene.public))))


def _gradient(
    scene: Scene, network: nn.Module, rows: Sequence[int], weights: Iterable[nn.Parameter]
) -> tuple[Tensor, ...]:
    """What one step of SGD on public pictures gives away of a classifier, on the scene's device."""
    x, labels = (some[rows].to(scene.device) for some in (scene.public.inputs, scene.public.targets))
    return torch.autograd.grad(class_loss(network(to_unit(x)), labels), list(weights))


def _sent(scene: Scene, gradients: Iterable[Tensor]) -> list[Tensor]:
    """What the server has of gradients where the method prunes them."""
    return [scene.record.method.sent_of(some) for some in gradients]


def _behind(update: Update, training: Training, otherwise: int) -> int:
    """How many pictures are searched for: of one step its batch is known, of several any part may be what is found."""
    return min(update.examples, training.batch if steps_of(update.examples, training) == 1 else otherwise)


def _attacked(record: Record, most: int) -> tuple[RecordedRound, dict[int, Update]]:
    """The first recorded round, and the messages that are attacked."""
    first = record.rounds[0]
    return first, dict(list(first.updates.items())[:most])


class InversionOfClassifier(_Ladder):
    """Pictures out of the changes of a shared classifier, or of its parts that travel (Geiping et al. 2020)."""

    name = "gradient inversion"
    cost = 54.0
    needs = "the changes of a classifier, or of a part; public pictures"
    question = "Can the server rebuild pictures by searching for ones that give the same update?"

    def obstacle(self, record: Record) -> str | None:
        """Some tensor of the classifier must travel."""
        names = list(record.task.network(0).state_dict())
        if any(name in record.declared.tensors for name in names):
            return None
        return f"{names[0]} does not travel, nor does anything else of the classifier"

    def findings(self, scene: Scene) -> list[Finding]:
        """One picture, by the method's own client too, four in one step and in two, the run; a small smooth control."""
        record, public, targets = scene.record, to_unit(scene.public.inputs), scene.public.targets
        network = network_of(record, record.rounds[0].broadcast, scene.device)
        named = {name: some for name, some in network.named_parameters() if name in record.declared.tensors}
        rows, few = _rows(scene, SINGLE), _rows(scene, _BATCH)
        tries: dict[str, list[tuple[Mapping[str, Tensor], list[int], int]]] = {"single": [], "blind": [], "owned": []}
        for row in rows:
            seen = _sent(scene, _gradient(scene, network, [row], named.values()))
            tries["single"].append((dict(zip(named, seen, strict=True)), [row], row))
            if row in rows[:REHEARSED]:
                noise = _sent(scene, noise_like(seen, scene.seed + row))
                tries["blind"].append((dict(zip(named, noise, strict=True)), [row], row))
            own = own_step(scene, [row])
            tries["owned"].append(({name: own[name].to(scene.device) for name in named}, [row], row))
        if all(is_plain(own[0], plain[0]) for own, plain in zip(tries["owned"], tries["single"], strict=True)):
            tries["owned"] = []
        seen = _sent(scene, _gradient(scene, network, few, named.values()))
        tries["several"] = [(dict(zip(named, seen, strict=True)), few, 0)]
        every = [some for kind in tries.values() for some in kind]
        in_steps, stepped = self._in_steps(scene, network, list(named), few)

        def searched(place: int) -> Tensor:
            if place == len(every):
                return self._searched(scene, in_steps, stepped, targets[few], 0)
            gradients, pictured, number = every[place]
            return self._of_network(scene, network, gradients, targets[pictured], number)

        pictures = iter([found for _, found in side_by_side(range(len(every) + 1), searched, scene.device)])
        single, blind, owned, (several,) = ([next(pictures) for _ in kind] for kind in tries.values())
        two_steps = "four pictures, two steps of SGD of two each, everything known"
        found = [
            *self._rehearsed(scene, "one picture, one step of SGD, everything known", public[rows], torch.cat(single)),
            *(self._rehearsed(scene, OWN_STEP, public[rows], torch.cat(owned)) if owned else []),
            *self._rehearsed(scene, "four pictures, one step of SGD, everything known", public[few], several),
            *self._rehearsed(scene, two_steps, public[few], next(pictures)),
            *self._messages(scene),
        ]
        return self._beside(found, self._control(scene), _in_order(torch.cat(blind), public[rows[: len(blind)]]))

    def run(self, scene: Scene, record: Record, most: int) -> dict[int, Tensor]:
        """Pictures ``(n, c, s, s)`` by client, of the first messages; their gradients and labels are read off."""
        network, messages = network_of(record, record.rounds[0].broadcast, scene.device), self.read(scene, record, most)

        def searched(client: int) -> Tensor:
            return self._of_network(scene, network, *messages[client], client)

        return dict(side_by_side(list(messages), searched, scene.device))

    def read(self, scene: Scene, record: Record, most: int) -> dict[int, tuple[dict[str, Tensor], Tensor]]:
        """What the first messages of a record tell before any search.

        Args:
            scene: What the attacker has.
            record: The run's, or noise for it.
            most: Messages, at most.

        Returns:
            By client a gradient by name, on the scene's device: the mean over the steps of the round, made whole where
            it was pruned; and labels ``(n,)`` of its pictures, or of as many as are searched for: from the last layer's
            bias where it travels, else shared out evenly.
        """
        training, classes = record.config.training, len(record.task.classes)
        first, updates = _attacked(record, most)
        network = network_of(record, first.broadcast, scene.device)
        names = [name for name, _ in network.named_parameters() if name in record.declared.tensors]
        teller, share = LabelCounts(), rate(first.number - 1, record.config.rounds, training.decay_after)
        counted = {}
        if teller.obstacle(record) is None:
            counted = teller.run(record, teller.readers(record, scene.public, scene.device, scene.seed))
        messages: dict[int, tuple[dict[str, Tensor], Tensor]] = {}
        for client, update in updates.items():
            steps = steps_of(update.examples, training)
            size = min(_MOST, _behind(update, training, update.examples))
            wide = counted.get((first.number, client))
            counts = prior_counts(size, classes) if wide is None else apportioned(torch.from_numpy(wide), size)
            labels = torch.from_numpy(np.repeat(np.arange(classes), counts))
            scale = share * training.lr * sgd_weight(steps, training.momentum)
            before, after = ({name: some[name] for name in names} for some in (first.broadcast, update.tensors))
            seen = sgd_gradient(before, after, scale, training.weight_decay)
            messages[client] = ({name: some.to(scene.device) for name, some in seen.items()}, labels)
        return messages

    def _in_steps(
        self, scene: Scene, network: ClassifierNetwork, names: Sequence[str], rows: Sequence[int]
    ) -> tuple[GradientOf, list[Tensor]]:
        """What two steps on public pictures give away: what makes it, for a search to play, and what the server has."""
        training, number = scene.record.config.training, scene.record.rounds[0].number - 1
        lr = training.lr * rate(number, scene.record.config.rounds, training.decay_after)
        halves = training.model_copy(update={"batch": -(-len(rows) // 2)})
        gradient = stepped_gradient(network, names, halves, lr)
        x, labels = (some[rows].to(scene.device) for some in (scene.public.inputs, scene.public.targets))
        hard = one_hot(labels, len(scene.record.task.classes)).float()
        return gradient, _sent(scene, [some.detach() for some in gradient(to_unit(x), hard)])

    def _of_network(
        self, scene: Scene, network: ClassifierNetwork, seen: Mapping[str, Tensor], labels: Tensor, number: int
    ) -> Tensor:
        return self._searched(scene, *compact_gradient(network, seen), labels, number)

    def _searched(
        self, scene: Scene, gradient: GradientOf, seen: Sequence[Tensor], labels: Tensor, number: int
    ) -> Tensor:
        """Pictures ``(n, c, s, s)``, on the CPU, of a gradient on the scene's device; another number: another start.

        By cosine distance, as in Geiping et al.: how large the gradient behind several steps is, is known roughly; and
        along what public pictures have in common, in place of their total variation.
        """
        task, public = scene.record.task, _strangers(scene)
        shape, along = (len(labels), *public.shape[1:]), LikelyPictures(public, scene.device)
        found = dlg(
            gradient, seen, shape, len(task.classes), labels, distance=cosine_distance, along=along, steps=STEPS,
            restarts=1, seed=scene.seed * 100 + number,
        )  # fmt: skip
        scene.advance()
        return found.pictures.cpu()

    def _control(self, scene: Scene) -> tuple[float, float]:
        """PSNR in dB and SSIM in percent of a public picture out of a gradient that must give it and its label away."""
        task, row = scene.record.task, _rows(scene, 1)
        x = to_unit(scene.public.inputs[row])
        network = SmallSigmoidNetwork(task.channels, task.side, len(task.classes), scene.seed).to(scene.device)
        seen = _gradient(scene, network, row, network.parameters())
        # iDLG: activations are positive, so that the right class alone has a negative gradient.
        guess = torch.from_numpy(sign_rule(seen[-2].cpu(), 1)).argmax()[None]
        found = dlg(
            classifier_gradient(network), seen, (1, *x.shape[1:]), len(task.classes), guess, steps=CONTROL_STEPS,
            restarts=2, seed=scene.seed, advance=scene.advance,
        )  # fmt: skip
        return _in_order(found.pictures.cpu(), x)


class InversionOfGenerator(_Ladder):
    """Pictures out of the changes of PPIDSG's generator, by its own losses."""

    name = "gradient inversion of the generator"
    cost = 95.0
    needs = "the changes of the generator; public pictures"
    question = "Can the server rebuild pictures by searching for ones that give the generator the same update?"

    def obstacle(self, record: Record) -> str | None:
        """A generator must travel."""
        options = record.method.options
        return None if isinstance(options, PPIDSGOptions) and options.share else "no generator travels"

    def findings(self, scene: Scene) -> list[Finding]:
        """One step with all known, with nothing but G known, the client's own steps, and the run."""
        record, public, targets = scene.record, to_unit(scene.public.inputs), scene.public.targets
        options = record.method.options
        assert isinstance(options, PPIDSGOptions)
        rows = _rows(scene, REHEARSED)
        known, guessed = (played_gradient(scene, number) for number in (0, 1))
        tries: list[tuple[GradientOf, Sequence[Tensor], int]] = []
        for row in rows:
            x, labels = public[row : row + 1].to(scene.device), targets[row : row + 1]
            hard = one_hot(labels, len(record.task.classes)).float().to(scene.device)
            seen = list(known(x, hard))
            tries += [(known, seen, row), (guessed, seen, row), (known, played_steps(scene, row), row)]
            tries.append((known, noise_like(seen, scene.seed + row), row))

        def searched(place: int) -> Tensor:
            gradient, gradients, row = tries[place]
            return self._searched(scene, gradient, gradients, targets[row : row + 1], row)

        pictures = [found for _, found in side_by_side(range(len(tries)), searched, scene.device)]
        made = [pictures[place::4] for place in range(4)]
        steps = {1: "one step", 2: "two steps"}.get(options.generator_steps, f"{options.generator_steps} steps")
        rungs = (
            "one picture, one step of SGD; D, F, C and the key known",
            "the same; D, F, C and the key guessed",
            f"{steps} of Adam in place of one of SGD; D, F, C and the key known",
        )
        found = [
            line
            for rung, pictures in zip(rungs, made[:3], strict=True)
            for line in self._rehearsed(scene, rung, public[rows], torch.cat(pictures))
        ]
        noise = _in_order(torch.cat(made[3]), public[rows])
        return self._beside([*found, *self._messages(scene)], self._control(scene), noise)

    def run(self, scene: Scene, record: Record, most: int) -> dict[int, Tensor]:
        """Pictures ``(n, c, s, s)`` by client, of the first messages: D, F, C, the key and labels are guessed."""
        classes = len(record.task.classes)
        first, updates = _attacked(record, most)
        gradient, tries = played_gradient(scene, 2), {}
        # In the order of the gradients; a message has its own.
        names = list(Generator(record.task.channels).state_dict())
        for client, update in updates.items():
            counts = prior_counts(min(_MOST, _behind(update, record.config.training, _BATCH)), classes)
            seen = [(first.broadcast[name] - update.tensors[name]).to(scene.device) for name in names]
            labels = torch.from_numpy(np.repeat(np.arange(classes), counts))
            tries[client] = (seen, labels)

        def searched(client: int) -> Tensor:
            return self._searched(scene, gradient, *tries[client], client)

        return dict(side_by_side(list(tries), searched, scene.device))

    def _searched(
        self, scene: Scene, gradient: GradientOf, seen: Sequence[Tensor], labels: Tensor, number: int
    ) -> Tensor:
        """Pictures ``(n, c, s, s)``, on the CPU, of a gradient on the scene's device; another number: another start."""
        classes, seed = len(scene.record.task.classes), scene.seed * 100 + number
        made = search(gradient, seen, labels, classes, _strangers(scene), steps=GENERATOR_STEPS, seed=seed)
        scene.advance()
        return made.cpu()

    def _control(self, scene: Scene) -> tuple[float, float]:
        """PSNR in dB and SSIM in percent of a public picture, by the same losses, of small and smooth networks.

        The cipher is one of the method's; D and C after F are the network of the DLG paper.
        """
        record, row = scene.record, _rows(scene, 1)
        task, options = record.task, record.method.options
        assert isinstance(options, PPIDSGOptions)
        x, labels, classes = to_unit(scene.public.inputs[row]), scene.public.targets[row], len(task.classes)
        sharp, rounded = (
            smooth_gradient(
                task.channels, task.side, classes, partial(scrambled, played_table(scene, 0)), options.semantic,
                options.classes, corner, scene.seed, scene.device,
            )
            for corner in (0.0, CORNER)
        )  # fmt: skip
        seen = list(sharp(x.to(scene.device), one_hot(labels, classes).float().to(scene.device)))
        found = dlg(
            rounded, seen, (1, *x.shape[1:]), classes, labels, steps=CONTROL_STEPS,
            restarts=1, seed=scene.seed, advance=scene.advance,
        )  # fmt: skip
        return _in_order(found.pictures.cpu(), x)
