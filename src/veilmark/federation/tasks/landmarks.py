"""Facial landmarks from small faces, learned by owners of whole people.

A client owns people, never single frames: frames of one person are alike, and a person in two places would be known to
both. Everything is scored on people whom no client has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import MARGIN, REFERENCE_SIZE, Crop
from veilmark.faces.datasets import LAYOUTS, Face, load_faces
from veilmark.faces.degrade import shrink
from veilmark.faces.images import ImageError, read_image
from veilmark.faces.synthetic import draw_identity, render_face
from veilmark.federation.tasks.task import Data, Learner, Task
from veilmark.landmarks.conversion import conversion
from veilmark.landmarks.metrics import psnr
from veilmark.landmarks.nme import face_nme
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training
from veilmark.run.seeds import rng_for
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict
from veilmark.sht.losses import DHLNLoss, Weights
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.training_sets import NetworkConfig

Network = TypeVar("Network", bound=nn.Module)

SIZES = (16, 32, 128)
"""Face sizes in pixels at which clients are scored; the first one's NME stands in every table."""

ROOM = 1.5
"""Side of what a client keeps of a picture over the side of the crop: room for augmented crops."""

GENERATING = ("detail", "paint", "finish", "guide", "generator")
"""How the names of the tensors begin that faces without labels teach: DHLN's detail stream, or a generator."""

HEADS = ("heatmap.", "detector.heatmap.")
"""How the names of the heatmap heads' tensors begin: where they travel, the whole detector does."""

SYNTHETIC = "synthetic"
"""The layout that needs no files: faces by the renderer."""

OF_PEOPLE = ("ytf68", "folder")
"""Layouts with landmarks that say who is in a picture; ``folder`` by a sub-folder for each person. In the others each
face counts as a person, which is right for intervals, and wrong for whoever owns people."""

_AT_ONCE = 128
"""Faces that are scored at the same time."""

_OTHERS, _ASIDE = 1_000_000, 2_000_000
"""Numbers of the first synthetic person whom no client has, and of the first who is not scored either."""

_ASKED = 24
"""Rendered people that are public, and as many strangers, at least: audits ask about each of them."""

_RENDERED = "ibug68"
"""Scheme of rendered faces."""

_PICTURE = 160
"""Side of a rendered picture in pixels; the face is about 45 % of it."""

SMALL = NetworkConfig(
    size=64,
    trunk_stride=4,
    map_stride=2,
    stages=2,
    structure_widths=(48, 64, 96),
    detail_widths=(32, 48),
    painter_width=16,
)
"""A DHLN that trains in minutes on a core."""


class LandmarksConfig(BaseModel):
    """Data and network of the task.

    Attributes:
        layout: A published layout that names people, or ``synthetic``.
        train: Split that clients learn from.
        test: Split of other people, on whom clients are scored.
        aside: Split of still other people: those of clients who join when the federation is over.
        people: People of each client at most; none deals all of them.
        partition: ``people``: each client has as many. ``dirichlet``: clients' frames are to each other as a draw of
            Dirichlet(alpha); people stay whole.
        alpha: Concentration of the Dirichlet partition.
        labelled: Share of the clients that have labels, one at least; the others have faces only.
        unlabelled: What a client without labels trains. ``generator``: the stream that hallucinates, or G. ``all``: the
            detector too, though nothing tells it where landmarks are: what little reaches it from the face's loss,
            AdamW makes as large as any other step, and an average with those who have labels suffers.
        frames: Frames of a synthetic person.
        test_people: Synthetic people whom no client has.
        network: DHLN's config; what is left out is that of ``SMALL``. Faces are hallucinated at its size.
        samples: How training faces are drawn.
        losses: How much each loss counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: str = SYNTHETIC
    train: str = "train"
    test: str = "report"
    aside: str = "select"
    people: int | None = Field(None, ge=2)
    partition: Literal["people", "dirichlet"] = "people"
    alpha: float | None = Field(None, gt=0)
    labelled: float = Field(1.0, gt=0, le=1)
    unlabelled: Literal["generator", "all"] = "generator"
    frames: int = Field(12, ge=2)
    test_people: int = Field(12, ge=1)
    network: NetworkConfig = SMALL
    samples: SampleConfig = SampleConfig()
    losses: Weights = Weights()

    @field_validator("network", mode="before")
    @classmethod
    def _network(cls, network: Any) -> Any:
        return SMALL.model_dump() | network if isinstance(network, dict) else network

    @field_validator("layout")
    @classmethod
    def _layout(cls, layout: str) -> str:
        known = f"{SYNTHETIC}, {', '.join(OF_PEOPLE)}"
        if layout not in (SYNTHETIC, *LAYOUTS):
            raise ValueError(f"no layout of that name; known: {known}")
        if layout not in (SYNTHETIC, *OF_PEOPLE):
            raise ValueError(f"it has no landmarks of named people, but clients own people; take one of: {known}")
        return layout


@dataclass(frozen=True)
class Frame:
    """A face and its surroundings, as an owner keeps it.

    Attributes:
        name: Of the frame.
        person: Who it is.
        picture: ``(p, p, 3)`` uint8, ``p = ROOM x network.size``: the crop contract's square with more margin.
        points: ``(k, 2)`` landmarks in pixels of ``picture``.
        crop: ``(128, 128, 3)`` uint8, the crop that is scored; of test faces, and of all that are rendered.
    """

    name: str
    person: str
    picture: NDArray[np.uint8]
    points: NDArray[np.float32]
    crop: NDArray[np.uint8] | None = None


Owned = TypeVar("Owned", Face, Frame)


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

    def summary(self, scores: dict[int, dict[str, list[float]]]) -> dict[str, Any]:
        """NME in percent of the clients with labels at the smallest size, at all sizes, PSNR, and the people's means.

        Clients without labels are in ``unlabelled``: some methods leave them without a detector.
        """
        order = sorted(scores)
        having = [number for number in order if scores[number]["labelled"][0]]
        without = [number for number in order if not scores[number]["labelled"][0]]

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
            "per_client": [float(np.mean(scores[number][first])) for number in order],
            "sizes": sizes,
            "psnr": over(order, f"psnr_{SIZES[0]}"),
            "unlabelled": over(without, first) if without else None,
            "people": people,
        }


def load_landmarks(
    config: LandmarksConfig, data: Path | None, clients: int, seed: int
) -> tuple[LandmarksTask, list[Data], dict[str, Any], dict[str, str]]:
    """The task and its owners' faces.

    Args:
        config: What to load.
        data: Folder of the set; None for synthetic faces.
        clients: How many owners.
        seed: Of the partition.

    Returns:
        The task, the owners' faces, what ``summary.json`` says of the partition, and what could not be read.

    Raises:
        ConfigError: If the layout names no people, there are too few of them, or schemes differ.
        DataError: If files are missing or damaged.
    """
    if (config.partition == "dirichlet") != (config.alpha is not None):
        raise ConfigError(
            f"partition = {config.partition}, alpha = {config.alpha}: dirichlet needs alpha, e.g. --set "
            "data.alpha=0.5, and people has none"
        )
    if config.layout == SYNTHETIC:
        if data is not None:
            raise ConfigError("layout synthetic is drawn, not read: leave out --data, or set data.layout")
        # Refuses a scheme that rendered faces do not have.
        conversion(_RENDERED, config.network.scheme)
        needed = clients * (config.people or 6)
        parts = _deal(config, _rendered(config, 0, needed), clients, seed)
        test = _rendered(config, _OTHERS, config.test_people)
        skipped: dict[str, str] = {}
    else:
        if data is None:
            raise ConfigError(f"layout {config.layout} is read from a folder: give it with --data")
        # Who is there is known from names: what does not fit is said before a picture is read.
        train, others = (_listed(config, data, split) for split in (config.train, config.test))
        if shared := {face.person for face in train} & {face.person for face in others}:
            raise ConfigError(
                f"{min(map(str, shared))} is in {config.train!r} and in {config.test!r}; clients are scored on others"
            )
        _deal(config, train, clients, seed)
        frames, skipped = _decoded(config, train, scored=False)
        test, also = _decoded(config, others, scored=True)
        skipped |= also
        parts = _deal(config, frames, clients, seed)
    count = max(1, round(config.labelled * clients))
    having = set(rng_for(seed, 62).permutation(clients)[:count].tolist())
    owners = [_as_data(part, number in having) for number, part in enumerate(parts)]
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


def load_aside(config: LandmarksConfig, data: Path | None) -> Data:
    """Faces of people whom neither a client nor the score has, with labels: public ones, for an audit.

    Args:
        config: What to load; its ``aside`` has the people.
        data: Folder of the set; None for synthetic faces.

    Raises:
        ConfigError: If a client or the score has one of them.
    """
    return _as_data(_aside(config, data, max(_ASKED, config.test_people)), True)


def load_strangers(config: LandmarksConfig, data: Path | None) -> Data:
    """Faces of the people who are scored, as clients would have them: an audit asks about them beside members.

    Of synthetic faces there are more such people than are scored.
    """
    if config.layout == SYNTHETIC or data is None:
        frames = _rendered(config, _OTHERS, max(_ASKED, config.test_people))
    else:
        frames, _ = _decoded(config, _listed(config, data, config.test), scored=True)
    return _as_data(frames, True)


def load_newcomers(config: LandmarksConfig, data: Path | None, count: int, faces: int, seed: int) -> list[Data]:
    """Owners who come when the federation is over, with few faces of people whom nobody else has.

    Args:
        config: What to load; its ``aside`` has the people.
        data: Folder of the set; None for synthetic faces.
        count: How many owners.
        faces: Faces of each, drawn from all frames of its people; all have labels.
        seed: Of the draw.

    Raises:
        ConfigError: If there are too few people or faces, or a client or the score has one of the people.
    """
    frames = _aside(config, data, max(2, -(-faces // config.frames)) * count)
    owned = _deal(config.model_copy(update={"people": None, "partition": "people", "alpha": None}), frames, count, seed)
    rng = rng_for(seed, 65)
    for some in owned:
        if len(some) < faces:
            raise ConfigError(f"{faces} faces for each of {count} newcomers: one would have {len(some)} of its people")
    return [_as_data([some[row] for row in sorted(rng.permutation(len(some))[:faces])], True) for some in owned]


def _aside(config: LandmarksConfig, data: Path | None, people: int) -> list[Frame]:
    if config.layout == SYNTHETIC or data is None:
        return _rendered(config, _ASIDE, people)
    faces = _listed(config, data, config.aside)
    for split in (config.train, config.test):
        if shared := {str(face.person) for face in faces} & set(load_faces(config.layout, data, split).people):
            raise ConfigError(
                f"data.aside = {config.aside}: {min(shared)} is in {split!r} too, but newcomers and the public people "
                "of an audit are others; name a split of its own people"
            )
    return _decoded(config, faces, scored=False)[0]


def _by_person(values: NDArray[np.float64], people: Sequence[str]) -> list[float]:
    """The mean of each person's faces, by name."""
    of: dict[str, list[float]] = {}
    for value, person in zip(values.tolist(), people, strict=True):
        of.setdefault(person, []).append(value)
    return [float(np.mean(of[person])) for person in sorted(of)]


def _has_labels(data: Data) -> bool:
    return not bool(data.targets.isnan().all())


def _as_data(frames: Sequence[Frame], labelled: bool) -> Data:
    inputs = torch.from_numpy(np.stack([frame.picture for frame in frames])).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(np.stack([frame.points for frame in frames]).astype(np.float32))
    if not labelled:
        targets = torch.full_like(targets, float("nan"))
    return Data(inputs, targets, tuple(f"{frame.person}/{frame.name}".encode() for frame in frames))


def _frame(face: Face, picture: NDArray[np.uint8], size: int, scored: bool) -> Frame:
    assert face.points is not None
    assert face.person is not None
    wide = Crop.from_box(face.box, MARGIN * ROOM, round(ROOM * size))
    points = wide.to_crop(face.points).astype(np.float32)
    crop = Crop.from_box(face.box).sample(picture) if scored else None
    return Frame(face.name, face.person, wide.sample(picture), points, crop)


def _listed(config: LandmarksConfig, data: Path, split: str) -> list[Face]:
    """The faces of a split that have landmarks, all with a person, in the network's scheme."""
    found = load_faces(config.layout, data, split)
    if not found.people:
        raise ConfigError(f"split {split!r} in {data} has no face with landmarks and a name; clients need both")
    if config.layout == "folder" and (alone := [face.name for face in found.labelled if "/" not in face.name]):
        raise ConfigError(
            f"{data / split / alone[0]} lies in no person's folder, but clients own people: put each person's pictures "
            f"into a folder of {data / split}"
        )
    if unknown := [face.name for face in found.labelled if face.person is None]:
        raise ConfigError(f"{unknown[0]} in {data}: the layout does not say who that is, and clients own people")
    return found.in_scheme(config.network.scheme).labelled


def _decoded(config: LandmarksConfig, faces: Sequence[Face], scored: bool) -> tuple[list[Frame], dict[str, str]]:
    """Faces with their pictures, and why others could not be read."""
    frames, skipped = [], {}
    for face in faces:
        try:
            frames.append(_frame(face, read_image(face.path), config.network.size, scored))
        except ImageError as error:
            skipped[str(face.path)] = str(error)
    return frames, skipped


def _rendered(config: LandmarksConfig, first: int, people: int) -> list[Frame]:
    """Synthetic people by number: the same in every run."""
    numbers = range(first, first + people)
    return [frame for number in numbers for frame in _drawn(config.network.size, config.frames, number)]


@lru_cache(maxsize=256)
def _drawn(size: int, each: int, number: int) -> tuple[Frame, ...]:
    """One synthetic person; drawn once for the runs that a process compares, and for their audits."""
    rng = rng_for(0, 63, number)
    identity, scene = draw_identity(rng), int(rng.integers(2**63))
    frames = []
    for frame in range(each):
        face = render_face(rng, _PICTURE, identity=identity, scene=scene)
        name = f"person{number}_{frame}"
        frames.append(_frame(Face(Path(name), name, face.points, f"person{number}"), face.image, size, True))
    return tuple(frames)


def _deal(config: LandmarksConfig, frames: Sequence[Owned], clients: int, seed: int) -> list[list[Owned]]:
    """Whole people to clients, two at least to each."""
    of: dict[str, list[Owned]] = {}
    for frame in frames:
        of.setdefault(str(frame.person), []).append(frame)
    rng = rng_for(seed, 64)
    order = [sorted(of)[place] for place in rng.permutation(len(of))]
    if config.people is not None:
        if config.people * clients > len(order):
            most = len(order) // clients
            raise ConfigError(
                f"people = {config.people} for each of {clients} clients: the split has {len(order)}; take at most "
                + (f"{most}" if most >= 2 else f"{len(order) // 2} clients, of 2 people each")
            )
        order = order[: config.people * clients]
    if len(order) < 2 * clients:
        raise ConfigError(
            f"{len(order)} people for {clients} clients: each needs two, or its update speaks of one person; take at "
            f"most {len(order) // 2} clients"
        )
    total = sum(len(of[person]) for person in order)
    shares = np.full(clients, 1 / clients) if config.alpha is None else rng.dirichlet(np.full(clients, config.alpha))
    owned: list[list[str]] = [[] for _ in range(clients)]
    for place, person in enumerate(order):
        owner = place % clients
        if config.alpha is not None and place >= 2 * clients:
            have = np.array([sum(len(of[name]) for name in names) for names in owned])
            owner = int(np.argmax(shares * total - have))
        owned[owner].append(person)
    return [[frame for name in sorted(names) for frame in of[name]] for names in owned]
