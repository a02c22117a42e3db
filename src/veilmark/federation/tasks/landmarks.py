"""Facial landmarks from small faces, learned by owners of whole people.

A client owns people, never single frames: frames of one person are alike, and a person in two places would be known to
both. Everything is scored on people whom no client has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import MARGIN, REFERENCE_SIZE
from veilmark.faces.datasets import Face
from veilmark.faces.degrade import shrink
from veilmark.federation.tasks.owned_faces import (
    ROOM,
    SYNTHETIC,
    Frame,
    LandmarksConfig,
    as_data,
    labelled_clients,
    load_people,
    rendered_faces,
)
from veilmark.federation.tasks.task import Data, Learner, Task
from veilmark.landmarks.metrics import psnr
from veilmark.landmarks.nme import face_nme
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training
from veilmark.run.seeds import rng_for
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict
from veilmark.sht.losses import DHLNLoss
from veilmark.sht.samples import TrainingFaces

Network = TypeVar("Network", bound=nn.Module)

SIZES = (16, 32, 128)
"""Face sizes in pixels at which clients are scored; the first one's NME stands in every table."""

GENERATING = ("detail", "paint", "finish", "guide", "generator")
"""How the names of the tensors begin that faces without labels teach: DHLN's detail stream, or a generator."""

HEADS = ("heatmap.", "detector.heatmap.")
"""How the names of the heatmap heads' tensors begin: where they travel, the whole detector does."""

_AT_ONCE = 128
"""Faces that are scored at the same time."""


def faces_in_memory(data: Data, names: Sequence[str]) -> FaceCache:
    """An owner's examples as training draws from them.

    Args:
        data: Inputs ``(n, 3, p, p)``; targets ``(n, k, 2)`` in pixels of them, NaN where there is no label.
        names: Names of the frames.
    """
    pictures = data.inputs.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    targets = data.targets.cpu().numpy()
    side = pictures.shape[1]
    # The box whose crop at the usual margin is the middle of the picture.
    low, high = side / 2 - side / ROOM / MARGIN / 2, side / 2 + side / ROOM / MARGIN / 2
    faces, table = [], []
    for number, (name, points) in enumerate(zip(names, targets, strict=True)):
        faces.append(Face(Path(name), name, None if np.isnan(points).any() else points))
        where: dict[str, float] = {"face": number, "start": number * 3 * side**2, "height": side, "width": side}
        table.append(where | {"left": 0, "top": 0, "scale": 1.0, "x0": low, "y0": low, "x1": high, "y1": high})
    return FaceCache(faces, pixels=pictures.ravel(), table=table)


class LandmarkLearner(Learner):
    """A landmark network beside one owner's faces.

    Args:
        model: A network that answers with :class:`veilmark.sht.dhln.DHLNOutput`.
        data: The faces; see :func:`faces_in_memory`.
        config: How faces are drawn, how losses are weighed.
        seed: Of augmentation, with the draws of each step.

    Raises:
        ConfigError: If there are no labels, and nothing to train without.
    """

    def __init__(self, model: nn.Module, data: Data, config: LandmarksConfig, seed: int) -> None:
        network = config.network
        self.model, self.data, self.examples = model, data, len(data)
        names = [name.decode() for name in data.names]
        cache = faces_in_memory(data, names)
        self.samples = TrainingFaces(cache, config.samples, network.scheme, network.size, seed)
        self.criterion = DHLNLoss(config.losses, network.scheme, network.size, network.map_stride)
        self.device = torch.device("cpu")
        if config.unlabelled == "generator" and not _has_labels(data):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(GENERATING))
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ConfigError(
                    f"data.labelled = {config.labelled}, data.network.detail = {config.network.detail}: a client "
                    "without labels would have nothing to train; keep the detail stream, or take data.labelled=1"
                )

    def to(self, device: torch.device | str) -> LandmarkLearner:
        """This learner on another device; faces are cut out on the CPU."""
        self.model, self.device = self.model.to(device), torch.device(device)
        return self

    def batch(self, rows: Tensor, rng: np.random.Generator) -> Any:
        """Augmented, degraded faces: a :class:`veilmark.sht.losses.Batch` on the learner's device."""
        return self.samples.batch(int(rng.integers(2**31)), rows.numpy()).to(self.device)

    def loss(self, rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The losses of SHT; faces without labels teach hallucination only."""
        batch = self.batch(rows, rng)
        losses = self.criterion(self.model(batch.grid), batch)
        parts = {name: float(losses.parts[name]) for name in LandmarksTask.metrics if name != "loss"}
        return losses.total, {"loss": float(losses.total.detach())} | parts

    def predict(self, inputs: Tensor) -> Tensor:
        """Answers to crops of 128 px, shrunk to each of ``SIZES``.

        Returns:
            ``(n, len(SIZES) * k * 2 + 1)`` float64: landmarks as shares of the crop's side at each size, then the PSNR
            in dB of the face hallucinated from the smallest; NaN for a network that hallucinates none.
        """
        crops = inputs.permute(0, 2, 3, 1).cpu().numpy()
        columns: list[NDArray[np.float64]] = []
        likeness = np.full((len(crops), 1), np.nan)
        for size in SIZES:
            small = np.stack([shrink(crop, size) for crop in crops])
            said = predict(self.model, small, mirror=False, hallucinate=size == SIZES[0], batch=_AT_ONCE)
            columns.append(said.points.reshape(len(crops), -1))
            if said.faces is not None:
                true = [shrink(crop, said.faces.shape[1]) for crop in crops]
                likeness = np.array([[psnr(face, seen)] for face, seen in zip(said.faces, true, strict=True)])
        return torch.from_numpy(np.concatenate([*columns, likeness], axis=1))

    def views(self, inputs: Tensor) -> dict[str, Tensor]:
        """The smallest face that is scored, and the face hallucinated from it, both as large as the inputs."""
        crops = inputs.permute(0, 2, 3, 1).cpu().numpy()
        small = np.stack([shrink(crop, SIZES[0]) for crop in crops])
        said = predict(self.model, small, mirror=False, hallucinate=True)
        shown = {f"{SIZES[0]} px": small}
        if said.faces is not None:
            shown["hallucinated"] = said.faces

        def enlarged(pictures: NDArray[np.uint8]) -> Tensor:
            side = (crops.shape[2], crops.shape[1])
            grown = [cv2.resize(picture, side, interpolation=cv2.INTER_NEAREST) for picture in pictures]
            return torch.from_numpy(np.stack(grown)).permute(0, 3, 1, 2)

        return {name: enlarged(pictures) for name, pictures in shown.items()}


class LandmarksTask(Task):
    """Where the landmarks of a small face are.

    Args:
        config: Data and network.
        test: Faces of people whom no client has; none where only the networks are of interest.
    """

    name = "landmarks"
    metrics = ("loss", "points", "heatmaps", "face")
    score_name = "nme"
    score_words = f"NME at {SIZES[0]} px, %"
    less_is_better = True
    shown_words = "The faces are rendered, of nobody."

    def __init__(self, config: LandmarksConfig, test: Sequence[Frame]) -> None:
        self.config, self.people = config, [frame.person for frame in test]
        crops = [frame.crop for frame in test if frame.crop is not None]
        self.test_inputs = torch.zeros(0, 3, REFERENCE_SIZE, REFERENCE_SIZE, dtype=torch.uint8)
        self.points = np.zeros((0, len(get_scheme(config.network.scheme)), 2))
        if crops:
            self.test_inputs = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
            side = config.network.size
            edge = (test[0].picture.shape[0] - side) / 2
            self.points = np.stack([(frame.points - edge) / side for frame in test]).astype(np.float64)

    def shown(self, count: int) -> Tensor:
        """Rendered faces: whoever is scored may be a patient, and a page goes to other people."""
        if self.config.layout == SYNTHETIC and len(self.test_inputs):
            return super().shown(count)
        return rendered_faces(count)

    def description(self) -> dict[str, Any]:
        """DHLN's config."""
        return self.config.network.model_dump(mode="json")

    def seeded(self, make: Callable[[], Network], seed: int) -> Network:
        """A network whose first weights depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng_for(seed, 60).integers(2**31)))
            return make()

    def network(self, seed: int) -> DHLN:
        """DHLN."""
        return self.seeded(lambda: DHLN(**self.config.network.model_dump()), seed)

    def learner(self, data: Data, training: Training, rounds: int, seed: int, number: int) -> LandmarkLearner:
        """DHLN with an owner's faces."""
        return self.learner_of(self.network(seed), data, seed, number)

    def learner_of(self, model: nn.Module, data: Data, seed: int, number: int) -> LandmarkLearner:
        """Another network with an owner's faces."""
        return LandmarkLearner(model, data, self.config, int(rng_for(seed, 61, number).integers(2**31)))

    def mean_shape(self, data: Data) -> NDArray[np.float64] | None:
        """The mean face of an owner as shares of the crop, ``(k, 2)``; None without labels."""
        if not _has_labels(data):
            return None
        side = self.config.network.size
        edge = (data.inputs.shape[-1] - side) / 2
        shape: NDArray[np.float64] = (data.targets.double().mean(dim=0).numpy() - edge) / side
        return shape

    def scored(self) -> dict[str, int | None]:
        """Whether it has labels, and a figure of each test person for each size."""
        return {"labelled": 1, **{f"nme_{size}": None for size in SIZES}, f"psnr_{SIZES[0]}": None}

    def score(self, answers: Tensor, own: Data) -> dict[str, list[float]]:
        """NME in percent of each test person at each size, PSNR in dB at the smallest, and whether it has labels."""
        said, scheme = answers.numpy(), get_scheme(self.config.network.scheme)
        width = 2 * len(scheme)
        found: dict[str, list[float]] = {"labelled": [float(_has_labels(own))]}
        for place, size in enumerate(SIZES):
            points = said[:, place * width : (place + 1) * width].reshape(len(said), -1, 2)
            errors = face_nme(REFERENCE_SIZE * points, REFERENCE_SIZE * self.points, scheme)
            found[f"nme_{size}"] = _by_person(errors, self.people)
        found[f"psnr_{SIZES[0]}"] = _by_person(said[:, -1], self.people)
        return found

    def in_mean(self, score: dict[str, list[float]]) -> bool:
        """Only of clients with labels."""
        return bool(score["labelled"][0])

    def summary(self, scores: dict[int, dict[str, list[float]]], clients: int) -> dict[str, Any]:
        """NME in percent of the clients with labels at the smallest size, at all sizes, PSNR, and the people's means.

        Clients without labels are in ``unlabelled``: some methods leave them without a detector.
        """
        order = sorted(scores)
        having = [number for number in order if self.in_mean(scores[number])]
        without = [number for number in order if not self.in_mean(scores[number])]

        def over(numbers: Sequence[int], name: str) -> dict[str, float]:
            means = [float(np.mean(scores[number][name])) for number in numbers]
            return {"mean": float(np.mean(means)), "min": min(means), "max": max(means)}

        sizes = {str(size): over(having, f"nme_{size}") for size in SIZES}
        first = f"nme_{SIZES[0]}"
        people = {
            name: np.mean([scores[number][name] for number in having], axis=0).tolist()
            for name in (*(f"nme_{size}" for size in SIZES), f"psnr_{SIZES[0]}")
        }
        return {
            **sizes[str(SIZES[0])],
            "per_client": [
                float(np.mean(scores[number][first])) if number in scores else None for number in range(clients)
            ],
            "sizes": sizes,
            "psnr": over(order, f"psnr_{SIZES[0]}"),
            "unlabelled": over(without, first) if without else None,
            "people": people,
        }


def load_landmarks(
    config: LandmarksConfig, data: Path | None, clients: int, seed: int, truth: bool = False
) -> tuple[LandmarksTask, list[Data], dict[str, Any], dict[str, str]]:
    """The task and its owners' faces.

    Args:
        config: What to load.
        data: Folder of the set; None for synthetic faces.
        clients: How many owners.
        seed: Of the partition.
        truth: Whether owners without labels come with the landmarks of their faces, as far as anybody knows them: for
            the scorer of an audit.

    Returns:
        The task, the owners' faces, what ``summary.json`` says of the partition, and what could not be read.

    Raises:
        ConfigError: If the layout names no people, there are too few of them, or schemes differ.
        DataError: If files are missing or damaged.
    """
    parts, test, skipped = load_people(config, data, clients, seed)
    having = labelled_clients(config, clients, seed)
    owners = [as_data(part, truth or number in having) for number, part in enumerate(parts)]
    counts = [
        [len({frame.person for frame in part}), len(part), len(part) if number in having else 0]
        for number, part in enumerate(parts)
    ]
    partition = {
        "kind": config.partition,
        "alpha": config.alpha,
        "sizes": [len(part) for part in parts],
        "classes": ["people", "frames", "with labels"],
        "counts": counts,
    }
    return LandmarksTask(config, test), owners, partition, skipped


def _by_person(values: NDArray[np.float64], people: Sequence[str]) -> list[float]:
    """The mean of each person's faces, by name."""
    of: dict[str, list[float]] = {}
    for value, person in zip(values.tolist(), people, strict=True):
        of.setdefault(person, []).append(value)
    return [float(np.mean(of[person])) for person in sorted(of)]


def _has_labels(data: Data) -> bool:
    return not bool(data.targets.isnan().all())
