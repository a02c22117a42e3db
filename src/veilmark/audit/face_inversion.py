"""Faces out of the messages of a landmark federation, by searching for those that would give the same update."""

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
    rehearsed_round,
    rows_of,
    sharp_faces,
)
from veilmark.audit.gradient_inversion import GradientOf, cosine_inversion, psnr
from veilmark.audit.record import Record, ThreatModel
from veilmark.audit.waves import Waves
from veilmark.faces.finders import HaarFinder
from veilmark.federation.samples import SHOWN
from veilmark.federation.tasks.task import Data
from veilmark.landmarks.nme import face_nme
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.checkpoints import Tensors
from veilmark.sht.inference import predict
from veilmark.sht.losses import DHLNLoss
from veilmark.sht.pretrained import Detector, load_detector

STEPS = 80
"""Of a search."""
SMOOTHNESS = 0.02
"""Weight of the total variation."""
REHEARSED = 2
"""Public faces on a rung."""
CLIENTS = 2
"""Messages of the first recorded round that are attacked."""
RIGHT = 10.0
"""NME in percent below which landmarks count as found."""


class FaceInversion(Attack):
    """Faces whose update would have the direction of the one that was sent (after Geiping et al. 2020).

    The search begins at the mean of public faces and goes along cosine waves, with total variation: it found more of a
    face in as many steps than from noise, along the principal components of public faces, or pixel by pixel. What a
    message of a whole round is searched for is one face, the one that stands for all. The score is likeness to the true
    one beside likeness of the nearest other person; whether the packaged detector, which no client has a part in, finds
    the true landmarks on it; and whether a face finder sees a face. The mean that the search begins at is one already.
    """

    name = "faces from updates"
    threat_model = ThreatModel.server
    needs = "the changes of what travels; public faces"
    question = "Can the server rebuild a face by searching for one that gives the same update?"

    def obstacle(self, record: Record) -> str | None:
        """Something must travel."""
        return None if record.declared.tensors else "nothing travels"

    def findings(self, scene: Scene) -> list[Finding]:
        """A step of a whole detector, of the method with all known, with secrets guessed; a client's round; the run."""
        record, task = scene.record, scene.record.faces
        known, others = halves(scene.public)
        faces, points = sharp_faces(task, others), landmarks_of(task, others)
        broadcast = record.rounds[0].broadcast
        network = face_network(record, broadcast, device=scene.device)
        names = [name for name, _ in network.named_parameters() if name in record.declared.tensors]
        mean = landmarks_of(task, known).mean(dim=0)
        # Private parts that the attacker draws anew: of another network, with the share in place.
        guessed = face_network(record, broadcast, device=scene.device)
        for name, parameter in guessed.named_parameters():
            if name not in names:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(scene.seed))
                parameter.data += noise.to(scene.device) * parameter.data.std(correction=0)
        # What is known to give a face away, for a control: a whole DHLN at its start.
        whole = task.network(record.config.seed).to(scene.device)
        every = [name for name, _ in whole.named_parameters()]
        controlled = names != every
        single: list[list[Tensor]] = [[], [], [], []]
        rows = [int(row) for row in np.linspace(0, len(faces) - 1, REHEARSED)]
        for row in rows:
            x, where = (2 * faces[row : row + 1] - 1).to(scene.device), points[row : row + 1]
            gradient = _gradient(scene, network, names, where)
            seen = [some.detach() for some in gradient(x, torch.ones(1, 1))]
            tries = [
                (gradient, seen),
                (_gradient(scene, guessed, names, mean[None]), seen),
                (gradient, _noise(seen, scene.seed + row)),
            ]
            if controlled:
                easy = _gradient(scene, whole, every, where)
                tries.append((easy, [some.detach() for some in easy(x, torch.ones(1, 1))]))
            # Without a control of its own the easiest rung is one.
            for made, (function, target) in zip(single, tries, strict=False):
                made.append(self._searched(scene, function, target))
        person = people_of(others)[0]
        own = rows_of(others, [person])
        sent = rehearsed_round(scene, record.rounds[0], own, 0)
        gradient = _gradient(scene, network, names, mean[None])
        played = self._searched(scene, gradient, _moved(scene, broadcast, sent, names))
        rungs = [
            ("one face, one step of SGD, landmarks and all networks known", single[0]),
            ("the same; landmarks and what does not travel guessed", single[1]),
        ]
        if controlled:
            rungs.insert(0, ("the same of a whole DHLN at its start, which must give the face away", single[3]))
        found: list[Finding] = []
        for rung, alone in rungs:
            scene.show(rung, 2 * faces[rows] - 1, torch.cat(alone))
            pairs = [
                (picture, faces[row : row + 1], points[row : row + 1]) for picture, row in zip(alone, rows, strict=True)
            ]
            found += self._scored(scene, rung, known, pairs)
        pairs = [(played, sharp_faces(task, own), landmarks_of(task, own))]
        found += self._scored(scene, "a client's own round, on the faces of one person", known, pairs)
        messages = [
            (made, sharp_faces(task, scene.truth.owners[client]), landmarks_of(task, scene.truth.owners[client]))
            for client, made in self.run(scene).items()
        ]
        found += self._scored(scene, REAL, known, messages)
        made_of_noise = [
            (made, faces[row : row + 1], points[row : row + 1]) for made, row in zip(single[2], rows, strict=True)
        ]
        blind = self._scored(scene, "noise", known, made_of_noise)
        return [
            line
            for metric, negative in ((line.metric, line.value) for line in blind)
            for line in with_controls(
                [some for some in found if some.metric == metric],
                next(some.value for some in found if some.metric == metric),
                negative,
            )
        ]

    def run(self, scene: Scene) -> dict[int, Tensor]:
        """A face ``(1, 3, s, s)`` in [-1, 1] by client: the whole round is taken for one step."""
        record, task = scene.record, scene.record.faces
        known, _ = halves(scene.public)
        first = record.rounds[0]
        network = face_network(record, first.broadcast, device=scene.device)
        names = [name for name, _ in network.named_parameters() if name in record.declared.tensors]
        mean = landmarks_of(task, known).mean(dim=0)[None]
        gradient = _gradient(scene, network, names, mean)
        made = {}
        for client, update in list(first.updates.items())[:CLIENTS]:
            seen = _moved(scene, first.broadcast, update.tensors, names)
            made[client] = self._searched(scene, gradient, seen)
        return made

    def _searched(self, scene: Scene, gradient: GradientOf, seen: Sequence[Tensor]) -> Tensor:
        """A face ``(1, 3, s, s)`` in [-1, 1], on the CPU, of a gradient on the scene's device."""
        task = scene.record.faces
        side = task.config.network.size
        known, _ = halves(scene.public)
        nobody = torch.zeros(1, dtype=torch.int64)
        found = cosine_inversion(
            gradient, seen, (1, 3, side, side), nobody, 1, steps=STEPS, smoothness=SMOOTHNESS,
            waves=Waves(side, side, scene.device), start=2 * sharp_faces(task, known).mean(dim=0) - 1,
        )  # fmt: skip
        scene.advance()
        return found.pictures.cpu()

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
        public = sharp_faces(task, known)
        values, chances, made_best, true_best, where_best, near_best = [], [], [], [], [], []
        for made, true, where in pairs:
            alike = torch.stack([psnr(picture.expand_as(true), 2 * true - 1) for picture in made])
            guess, face = divmod(int(alike.argmax()), alike.shape[1])
            others = torch.stack([psnr(some.expand_as(true), 2 * true - 1) for some in 2 * public - 1])
            values.append(float(alike[guess, face]))
            chances.append(float(others.max()))
            made_best.append(made[guess])
            true_best.append(true[face])
            where_best.append(where[face])
            near_best.append(2 * public[int(others.amax(dim=1).argmax())] - 1)
        if rung == REAL:
            scene.show(rung, 2 * torch.stack(true_best[:SHOWN]) - 1, torch.stack(made_best[:SHOWN]))
        found = [self._finding(scene, rung, "PSNR of the nearest face", "dB", values, float(np.mean(chances)))]
        right = _landmarks_right(scene, torch.stack(made_best), torch.stack(where_best))
        by_chance = float(np.mean(_landmarks_right(scene, torch.stack(near_best), torch.stack(where_best))))
        found.append(self._finding(scene, rung, f"faces with landmarks within {RIGHT:.0f} %", "%", right, by_chance))
        begun = 2 * public.mean(dim=0, keepdim=True) - 1
        seen = _faces_found(torch.stack(made_best))
        found.append(self._finding(scene, rung, "pictures with a face in them", "%", seen, _faces_found(begun)[0]))
        return found


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


def _moved(scene: Scene, before: Mapping[str, Tensor], after: Tensors, names: Sequence[str]) -> list[Tensor]:
    return [(before[name] - after[name]).to(scene.device) for name in names]


def _noise(like: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(some.shape, generator=generator).to(some.device) * some.std(correction=0) for some in like]


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
