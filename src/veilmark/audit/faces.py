"""What attacks on landmark federations have in common: faces, networks with the shared part in place, rehearsals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from veilmark.audit.attack import Scene
from veilmark.audit.gradient_inversion import psnr
from veilmark.audit.record import Record, RecordedRound
from veilmark.federation.engine import side_by_side
from veilmark.federation.methods.fedavg import train_locally
from veilmark.federation.methods.keyed import KeyedOptions
from veilmark.federation.methods.method import Client, ClientView, Secrets
from veilmark.federation.methods.ppidsg_landmarks import PPIDSGLandmarksOptions
from veilmark.federation.tasks.landmarks import HEADS, SIZES, LandmarksTask
from veilmark.federation.tasks.task import Data
from veilmark.landmarks.nme import face_nme
from veilmark.landmarks.schemes import get_scheme
from veilmark.ppidsg.secret import SECRET_BYTES, Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.local_training import Training, adamw
from veilmark.run.seeds import rng_for
from veilmark.sht.losses import Batch
from veilmark.sht.pretrained import Detector

EACH = 4
"""Faces by which a person is known, at most."""

ASKED = 12
"""People of each client who are asked about, at most."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What :func:`trained` is told.

    Attributes:
        network: What learns.
        data: Public faces.
        steps: How many.
        number: Another number draws other batches.
        frozen: Names of tensors that stay as they are.
    """

    network: Detector
    data: Data
    steps: int
    number: int
    frozen: Collection[str] = ()


def face_network(record: Record, *shares: Tensors, device: torch.device | str = "cpu") -> Detector:
    """A client's network at the public start, with shared tensors in place.

    What starts from a client's secret starts here where the run's seed says: elsewhere.

    Args:
        record: What the server saw.
        shares: Tensors that replace those of the start; later ones win.
        device: Where it computes.
    """
    task, options, seed = record.faces, record.method.options, record.config.seed
    if isinstance(options, KeyedOptions | PPIDSGLandmarksOptions):
        network: Detector = options.network(task, seed)
    else:
        network = task.network(seed)
    for share in shares:
        network.load_state_dict(share, strict=False)
    return network.to(device)


def holds_heads(names: Collection[str]) -> bool:
    """Whether heatmap heads are among tensors of some names."""
    return any(name.startswith(HEADS) for name in names)


def sharp_faces(task: LandmarksTask, data: Data) -> Tensor:
    """The faces that would be hallucinated: ``(n, 3, size, size)`` in [0, 1], from owners' wider pictures."""
    side = task.config.network.size
    edge = (data.inputs.shape[-1] - side) // 2
    return data.inputs[..., edge : edge + side, edge : edge + side].float() / 255


def landmarks_of(task: LandmarksTask, data: Data) -> Tensor:
    """Their landmarks in pixels of the face, ``(n, k, 2)``."""
    return data.targets - (data.inputs.shape[-1] - task.config.network.size) / 2


def face_batch(task: LandmarksTask, faces: Tensor, points: Tensor) -> Batch:
    """Sharp faces as a training step has them: shrunk to the smallest size by area, and enlarged; differentiable."""
    side = task.config.network.size
    small = interpolate(faces, (SIZES[0], SIZES[0]), mode="area") if side > SIZES[0] else faces
    grid = interpolate(small, (side, side), mode="bicubic", align_corners=False)
    every = torch.ones(len(faces), dtype=torch.bool, device=faces.device)
    return Batch(grid, faces, points, every, every)


def people_of(data: Data) -> list[str]:
    """Who is on each face."""
    return [name.decode().split("/")[0] for name in data.names]


def rows_of(data: Data, people: Sequence[str], each: int | None = None) -> Data:
    """The faces of some people.

    Args:
        data: Faces.
        people: Whose.
        each: Faces of each at most, evenly over theirs; all by default.
    """
    rows: list[int] = []
    known = people_of(data)
    for person in people:
        own = [row for row, name in enumerate(known) if name == person]
        rows += own if each is None else [own[i] for i in np.unique(np.linspace(0, len(own) - 1, each).astype(int))]
    return Data(data.inputs[rows], data.targets[rows], tuple(data.names[row] for row in rows))


def halves(data: Data) -> tuple[Data, Data]:
    """Public faces: those of one half of the people, whom an attacker knows, and of the other, to rehearse with."""
    people = sorted(set(people_of(data)))
    return rows_of(data, people[: len(people) // 2]), rows_of(data, people[len(people) // 2 :])


def rehearsed_client(scene: Scene, data: Data, number: int) -> Client:
    """A client whom the attacker plays, with secrets of its own; all that it plays share one secret of a federation.

    Args:
        scene: Of the attack.
        data: Public faces: the client's.
        number: Another number is another client.
    """
    record = scene.record
    federation, own = (Secret(rng_for(scene.seed, 67, *words).bytes(SECRET_BYTES)) for words in ((0, 0), (number, 1)))
    view = ClientView(
        record.config.clients + number, record.faces, data, record.config.training, record.config.rounds,
        record.config.seed, Secrets(federation, own), scene.device,
    )  # fmt: skip
    return record.method.client(view)


def rehearsed_message(scene: Scene, client: Client, seen: RecordedRound) -> Tensors:
    """What a client of :func:`rehearsed_client` would have sent in a round, as the server has it.

    Args:
        scene: Of the attack.
        client: It learns, and remembers the rounds before.
        seen: The round.
    """
    record = scene.record
    update = client.train_round(seen.broadcast, seen.number - 1)
    scene.advance()
    return record.method.server(record.server).rebuilt(seen.broadcast, update.tensors)


def trained(
    scene: Scene, network: Detector, data: Data, steps: int, number: int, frozen: Collection[str] = ()
) -> Detector:
    """A network after some steps on public faces, by AdamW, whatever the run's clients take.

    Args:
        scene: Of the attack.
        network: What learns, on the scene's device; it is changed.
        data: Public faces.
        steps: How many.
        number: Another number draws other batches.
        frozen: Names of tensors that stay as they are.
    """
    learner = scene.record.faces.learner_of(network, data, scene.seed, number).to(scene.device)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    batch = min(scene.record.config.training.batch, len(data))
    training = Training(batch=batch, optimizer="adamw", lr=2e-3, weight_decay=0.02, local_steps=steps, clip=1.0)
    if len(frozen) < len(network.state_dict()):
        train_locally(learner, training, 1, scene.seed, 1000 + number, 0, adamw(network, training))
    scene.advance()
    return network


def trained_side_by_side(scene: Scene, lessons: Sequence[Lesson]) -> list[Detector]:
    """Several networks after :func:`trained`, as many at a time as PyTorch has threads."""

    def one(place: int) -> Detector:
        lesson = lessons[place]
        return trained(scene, lesson.network, lesson.data, lesson.steps, lesson.number, lesson.frozen)

    return [network for _, network in side_by_side(range(len(lessons)), one, scene.device)]


def fit_by_person(
    record: Record, network: Detector, data: Data, known: Collection[str], *, face: bool = True
) -> dict[str, dict[str, float]]:
    """How well a network fits each person's faces, shrunk to the smallest size: larger is better.

    Args:
        record: What the server saw.
        network: What is asked.
        data: Faces of several people, with landmarks.
        known: Names of its tensors that are in the asker's hands.
        face: Whether to ask what is hallucinated.

    Returns:
        By what was asked, the mean over each person's faces: ``landmarks``, where heatmap heads are known, minus the
        logarithm of the NME, as faces that are hard for every network have errors that vary more; ``face``, the PSNR
        in dB of what is hallucinated.
    """
    errors, likeness = _asked(record, network, data)
    found = {"landmarks": _means(data, (-np.log(errors)).tolist())} if holds_heads(known) else {}
    if likeness and face:
        found["face"] = _means(data, likeness)
    return found


def landmark_errors(record: Record, network: Detector, data: Data) -> dict[str, float]:
    """NME in percent of each person's faces, shrunk to the smallest size."""
    return _means(data, _asked(record, network, data)[0])


def _asked(record: Record, network: Detector, data: Data) -> tuple[list[float], list[float]]:
    task = record.faces
    scheme = get_scheme(task.config.network.scheme)
    errors: list[float] = []
    likeness: list[float] = []
    network.eval()
    device = next(network.parameters()).device
    pairs = zip(torch.split(sharp_faces(task, data), 32), torch.split(landmarks_of(task, data), 32), strict=True)
    with torch.inference_mode():
        for faces, points in pairs:
            output = network(face_batch(task, faces.to(device), points).grid)
            errors += face_nme(output.points.double().cpu().numpy(), points.double().numpy(), scheme).tolist()
            if output.face is not None:
                likeness += psnr(2 * output.face.clamp(0, 1).cpu() - 1, 2 * faces - 1).tolist()
    return errors, likeness


def _means(data: Data, values: Sequence[float]) -> dict[str, float]:
    of: dict[str, list[float]] = {}
    for person, value in zip(people_of(data), values, strict=True):
        of.setdefault(person, []).append(value)
    return {person: float(np.mean(some)) for person, some in of.items()}


def as_array(values: dict[str, float], people: Sequence[str]) -> NDArray[np.float64]:
    """Values in the order of the people."""
    return np.array([values[person] for person in people])
