"""Faces out of the messages of a landmark federation, by searching for those that would give the same update.

Of a pruned update (``gc``) that is asked where something was sent, and the ladder's steps are pruned as clients prune.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veilmark.audit.attack import REAL, Attack, Finding, Scene, with_controls
from veilmark.audit.faces import (
    face_batch,
    face_network,
    halves,
    landmarks_of,
    people_of,
    rehearsed_client,
    rehearsed_message,
    rows_of,
    sharp_faces,
    trained,
)
from veilmark.audit.gradient_inversion import GradientOf, cosine_inversion, noise_like, psnr, ssim
from veilmark.audit.record import Record, RecordedRound, ThreatModel
from veilmark.audit.waves import Waves
from veilmark.faces.finders import HaarFinder
from veilmark.federation.engine import side_by_side
from veilmark.federation.samples import SHOWN
from veilmark.federation.tasks.task import Data
from veilmark.landmarks.nme import face_nme
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.checkpoints import Tensors
from veilmark.sht.inference import predict
from veilmark.sht.losses import DHLNLoss
from veilmark.sht.pretrained import Detector, load_detector

STEPS, RATE = 120, 0.2
"""Of a search, and how far it goes in one."""
SMOOTHNESS = 0.02
"""Weight of the total variation."""
REHEARSED = 2
"""Public faces on a rung."""
BEHIND = 60
"""Steps in which the attacker learns what does not travel, behind the share of the last recorded round."""
_NOISE = "noise"
_KNOWN = "one face, one step of SGD, landmarks and all networks known"
"""The rung that must succeed: on the method's own networks."""
_Step = tuple[GradientOf, Sequence[Tensor]]
"""How a gradient is made, and the one that was seen."""
_Shared = tuple[Detector, list[str]]
"""A network with a round's share in place, and the names of what travels of it."""
RIGHT = 10.0
"""NME in percent below which landmarks count as found."""


class FaceInversion(Attack):
    """Faces whose update would have the direction of the one that was sent (after Geiping et al. 2020).

    The search begins at the mean of public faces and goes along cosine waves, with total variation: it found more of a
    face in as many steps than from noise, along the principal components of public faces, or pixel by pixel. What a
    message of a whole round is searched for is one face, the one that stands for all. The score is likeness to the true
    one beside likeness of the nearest other person; whether the packaged detector finds the true landmarks on it, which
    no client has a part in, though it has learned the very pictures where they are YouTube Faces' training set; and
    whether a face finder sees a face. The mean that the search begins at is one already.

    The first recorded round and the last are attacked: a generator whose last layer starts small sends little in the
    first, and a network that has learned gives less away.
    """

    name = "faces from updates"
    cost = 86.0
    threat_model = ThreatModel.server
    needs = "the changes of what travels; public faces"
    question = "Can the server rebuild a face by searching for one that gives the same update?"

    def obstacle(self, record: Record) -> str | None:
        """Something must travel."""
        return None if record.declared.tensors else "nothing travels"

    def findings(self, scene: Scene) -> list[Finding]:
        """Steps on one face, with ever less known; a client's round that the attacker plays; the run; noise."""
        record, task = scene.record, scene.record.faces
        known, others = halves(scene.public)
        faces, points = sharp_faces(task, others), landmarks_of(task, others)
        rows = [int(row) for row in np.linspace(0, len(faces) - 1, REHEARSED)]
        own = rows_of(others, [people_of(others)[0]])
        shared = {seen.number: _shared_network(scene, seen) for seen in _attacked(record)}
        rungs = self._steps(scene, faces, points, rows, shared)
        first = record.rounds[0]
        network, names = shared[first.number]
        sent = rehearsed_message(scene, rehearsed_client(scene, own, 0), first)
        clients_round = "a client's own round, on the faces of one person"
        rungs[clients_round] = [
            (_gradient(scene, network, names, _guessed_landmarks(scene)), _moved(scene, first.broadcast, sent, names))
        ]
        pictures = iter(self._searched(scene, [step for steps in rungs.values() for step in steps]))
        made = {rung: [next(pictures) for _ in steps] for rung, steps in rungs.items()}
        noise = self._scored(scene, _NOISE, known, _pairs(made.pop(_NOISE), faces, points, rows))
        found: list[Finding] = []
        for rung, alone in made.items():
            pairs = _pairs(alone, faces, points, rows)
            if rung == clients_round:
                pairs = [(alone[0], sharp_faces(task, own), landmarks_of(task, own))]
            else:
                scene.show(rung, 2 * faces[rows[: len(alone)]] - 1, torch.cat(alone))
            found += self._scored(scene, rung, known, pairs)
        messages = []
        for picture, client in self._run(scene, shared):
            owned = scene.truth.owners[client]
            messages.append((picture, sharp_faces(task, owned), landmarks_of(task, owned)))
        found += self._scored(scene, REAL, known, messages)
        return [
            line
            for metric, negative in ((line.metric, line.value) for line in noise)
            for line in with_controls(
                [some for some in found if some.metric == metric],
                next(some.value for some in found if some.metric == metric and some.rung == _KNOWN),
                negative,
            )
        ]

    def _run(self, scene: Scene, shared: Mapping[int, _Shared]) -> list[tuple[Tensor, int]]:
        """A face ``(1, 3, s, s)`` in [-1, 1] and its sender, of the first recorded round, and of the last if another.

        The whole round is taken for one step.

        Args:
            scene: Of the attack.
            shared: Networks of these rounds, by number.
        """
        clients, steps = [], []
        for recorded in _attacked(scene.record):
            network, names = shared[recorded.number]
            gradient = _gradient(scene, network, names, _guessed_landmarks(scene))
            client, update = next(iter(recorded.updates.items()))
            clients.append(client)
            steps.append((gradient, _moved(scene, recorded.broadcast, update.tensors, names)))
        return list(zip(self._searched(scene, steps), clients, strict=True))

    def _steps(
        self, scene: Scene, faces: Tensor, points: Tensor, rows: Sequence[int], shared: Mapping[int, _Shared]
    ) -> dict[str, list[_Step]]:
        """Single steps of SGD on one face, easiest first, and noise in place of one.

        Args:
            scene: Of the attack.
            faces: In [0, 1].
            points: Their landmarks.
            rows: Which are rehearsed with.
            shared: Networks of the first recorded round and of the last, by number.

        Returns:
            Steps by rung, one for each row; the later share and noise have the first row only.
        """
        record, task = scene.record, scene.record.faces
        first, last = record.rounds[0], record.rounds[-1]
        network, names = shared[first.number]
        # Private parts that the attacker draws anew: of another network, with the share in place.
        guessed, _ = _shared_network(scene, first)
        for name, parameter in guessed.named_parameters():
            if name not in names:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(scene.seed))
                parameter.data += noise.to(scene.device) * parameter.data.std(correction=0)
        # What is known to give a face away, to compare with: a whole DHLN at its start, of which all is sent.
        whole = task.network(record.config.seed).to(scene.device)
        every = [name for name, _ in whole.named_parameters()]
        steps: dict[str, list[_Step]] = {}

        def step(rung: str, row: int, network: Detector, names: Sequence[str]) -> list[Tensor]:
            gradient = _gradient(scene, network, names, points[row : row + 1])
            sent = [
                some.detach() for some in gradient((2 * faces[row : row + 1] - 1).to(scene.device), torch.ones(1, 1))
            ]
            if network is not whole:
                sent = [record.method.sent_of(some) for some in sent]
            steps.setdefault(rung, []).append((gradient, sent))
            return sent

        for row in rows:
            if names != every or record.method.prunes:
                step("one step of a whole DHLN at its start, which must give the face away", row, whole, every)
            sent = step(_KNOWN, row, network, names)
            tried = _gradient(scene, guessed, names, _guessed_landmarks(scene))
            steps.setdefault("the same; landmarks and what does not travel guessed", []).append((tried, sent))
            if row == rows[0]:
                known = _gradient(scene, network, names, points[row : row + 1])
                blind = [record.method.sent_of(some) for some in noise_like(sent, scene.seed + row)]
                steps[_NOISE] = [(known, blind)]
        if last is not first:
            learned, _ = shared[last.number]
            step(f"one such step in round {last.number}, all known", rows[0], learned, names)
        return steps

    def _searched(self, scene: Scene, steps: Sequence[_Step]) -> list[Tensor]:
        """Faces ``(1, 3, s, s)`` in [-1, 1], on the CPU, of gradients on the scene's device, side by side."""
        task = scene.record.faces
        side = task.config.network.size
        known, _ = halves(scene.public)
        start = 2 * sharp_faces(task, known).mean(dim=0) - 1
        waves, nobody = Waves(side, side, scene.device), torch.zeros(1, dtype=torch.int64)

        def one(place: int) -> Tensor:
            gradient, seen = steps[place]
            asked = _where_sent(gradient, seen) if scene.record.method.prunes else gradient
            found = cosine_inversion(
                asked, seen, (1, 3, side, side), nobody, 1, steps=STEPS, lr=RATE, smoothness=SMOOTHNESS,
                waves=waves, start=start,
            )  # fmt: skip
            scene.advance()
            return found.pictures.cpu()

        return [picture for _, picture in side_by_side(range(len(steps)), one, scene.device)]

    def _scored(
        self, scene: Scene, rung: str, known: Data, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> list[Finding]:
        """By message: the pair that is most alike, and whether landmarks found on what was made are the true ones.

        Args:
            scene: Of the attack.
            rung: What the attacker had.
            known: Public faces: the nearest one is chance.
            pairs: Pictures that were made, in [-1, 1]; true faces in [0, 1], and their landmarks.
        """
        task = scene.record.faces
        public = 2 * sharp_faces(task, known) - 1
        values, chances, made_best, true_best, where_best, near_best = [], [], [], [], [], []
        for made, true, where in pairs:
            alike = torch.stack([psnr(picture.expand_as(true), 2 * true - 1) for picture in made])
            guess, face = divmod(int(alike.argmax()), alike.shape[1])
            others = torch.stack([psnr(some.expand_as(true), 2 * true - 1) for some in public])
            values.append(float(alike[guess, face]))
            chances.append(float(others.max()))
            made_best.append(made[guess])
            true_best.append(2 * true[face] - 1)
            where_best.append(where[face])
            near_best.append(public[int(others.amax(dim=1).argmax())])
        if rung == REAL:
            scene.show(rung, torch.stack(true_best[:SHOWN]), torch.stack(made_best[:SHOWN]))
        found = [self._finding(scene, rung, "PSNR of the nearest face", "dB", values, float(np.mean(chances)))]
        structure = [100 * ssim(true, made) for true, made in zip(true_best, made_best, strict=True)]
        nearest = 100 * float(np.mean([max(ssim(true, other) for other in public) for true in true_best]))
        found.append(self._finding(scene, rung, "SSIM of the nearest face", "%", structure, nearest))
        right = _landmarks_right(scene, torch.stack(made_best), torch.stack(where_best))
        by_chance = float(np.mean(_landmarks_right(scene, torch.stack(near_best), torch.stack(where_best))))
        found.append(self._finding(scene, rung, f"faces with landmarks within {RIGHT:.0f} %", "%", right, by_chance))
        begun = public.mean(dim=0, keepdim=True)
        seen = _faces_found(torch.stack(made_best))
        found.append(self._finding(scene, rung, "pictures with a face in them", "%", seen, _faces_found(begun)[0]))
        return found


def _pairs(
    made: Sequence[Tensor], faces: Tensor, points: Tensor, rows: Sequence[int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What was made beside the face that it should be, and that face's landmarks."""
    return [(some, faces[row : row + 1], points[row : row + 1]) for some, row in zip(made, rows, strict=False)]


def _attacked(record: Record) -> list[RecordedRound]:
    """The first recorded round, and the last, if that is another."""
    return list(dict.fromkeys((record.rounds[0], record.rounds[-1])))


def _shared_network(scene: Scene, recorded: RecordedRound) -> _Shared:
    """The network of a recorded round, as far as the attacker has it, and the names of what travels of it.

    What does not travel is at the public start, or, where the round is a later one, learned on public faces behind the
    share.
    """
    record = scene.record
    network = face_network(record, recorded.broadcast, device=scene.device)
    names = [name for name, _ in network.named_parameters() if name in record.declared.tensors]
    if recorded is not record.rounds[0]:
        known, _ = halves(scene.public)
        trained(scene, network, known, BEHIND, 70, frozen=set(recorded.broadcast))
    for parameter in network.parameters():
        parameter.requires_grad_()
    return network, names


def _guessed_landmarks(scene: Scene) -> Tensor:
    """The mean of public landmarks, ``(1, k, 2)``."""
    known, _ = halves(scene.public)
    return landmarks_of(scene.record.faces, known).mean(dim=0)[None]


def _gradient(scene: Scene, network: Detector, names: Sequence[str], points: Tensor) -> GradientOf:
    """The gradient of the shared tensors in a plain step on faces with these landmarks."""
    task = scene.record.faces
    config = task.config.network
    criterion = DHLNLoss(task.config.losses, config.scheme, config.size, config.map_stride)
    named = dict(network.named_parameters())
    wanted, points = [named[name] for name in names], points.to(scene.device)

    def gradient(pictures: Tensor, _: Tensor) -> Sequence[Tensor]:
        batch = face_batch(task, (pictures + 1) / 2, points)
        total = criterion(network(batch.grid), batch).total
        return torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True, materialize_grads=True)

    return gradient


def _where_sent(gradient: GradientOf, seen: Sequence[Tensor]) -> GradientOf:
    """A gradient compared where something was sent only: of the rest a pruned update says that it is small, no more."""
    places = [some != 0 for some in seen]

    def masked(pictures: Tensor, labels: Tensor) -> Sequence[Tensor]:
        return [some * place for some, place in zip(gradient(pictures, labels), places, strict=True)]

    return masked


def _moved(scene: Scene, before: Mapping[str, Tensor], after: Tensors, names: Sequence[str]) -> list[Tensor]:
    return [(before[name] - after[name]).to(scene.device) for name in names]


def _pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """Pictures in [-1, 1] as ``(n, h, w, 3)`` uint8."""
    pixels: NDArray[np.uint8] = (
        ((pictures + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    )
    return pixels


def _faces_found(made: Tensor) -> list[float]:
    """100 for each picture in which OpenCV's cascade sees a face, else 0."""
    finder, edge = HaarFinder(), made.shape[-1] // 2
    # The cascade needs something around a face; a crop has little.
    wide = np.pad(_pixels(made), ((0, 0), (edge, edge), (edge, edge), (0, 0)), mode="edge")
    return [100.0 * bool(len(finder.squares(picture)[0])) for picture in wide]


def _landmarks_right(scene: Scene, made: Tensor, points: Tensor) -> list[float]:
    """100 for each picture on which the packaged detector finds the true landmarks, else 0."""
    config = scene.record.faces.config.network
    detector = load_detector()
    if detector.scheme != config.scheme:
        return [0.0] * len(made)
    said = predict(detector, _pixels(made), mirror=False).points * config.size
    errors = face_nme(said, points.double().numpy(), get_scheme(config.scheme))
    return [100.0 * bool(error < RIGHT) for error in errors]
