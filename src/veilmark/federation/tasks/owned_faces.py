"""Who owns which faces: whole people, dealt to clients, from a folder or by the renderer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from veilmark.faces.crop import MARGIN, REFERENCE_SIZE, Crop
from veilmark.faces.datasets import LAYOUTS, Face, load_faces
from veilmark.faces.images import ImageError, read_image
from veilmark.faces.synthetic import draw_identity, render_face
from veilmark.federation.tasks.task import Data
from veilmark.landmarks.conversion import conversion
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.errors import ConfigError
from veilmark.run.progress import say
from veilmark.run.seeds import rng_for
from veilmark.sht.losses import Weights
from veilmark.sht.samples import SampleConfig
from veilmark.sht.training_sets import NetworkConfig
from veilmark.sht.unlabelled import UnlabelledConfig, find_boxes

ROOM = 1.5
"""Side of what a client keeps of a picture over the side of the crop: room for augmented crops."""

SYNTHETIC = "synthetic"
"""The layout that needs no files: faces by the renderer."""

OF_PEOPLE = ("ytf68", "folder")
"""Layouts with landmarks that say who is in a picture; ``folder`` by a sub-folder for each person. In the others each
face counts as a person, which is right for intervals, and wrong for whoever owns people."""

_OTHERS, _ASIDE = 1_000_000, 2_000_000
"""Numbers of the first synthetic person whom no client has, and of the first who is not scored either."""

_ASKED = 24
"""Rendered people that are public, and as many strangers, at least: audits ask about each of them."""

_RENDERED = "ibug68"
"""Scheme of rendered faces."""

_FOUND = Path(".cache/veilmark")
"""Where found boxes are kept, as those of ``veilmark train``: they depend on the pictures alone, and take long."""

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
        boxes: Where the crops of clients without labels come from. ``found``: from a face finder, which sees no
            annotation; pictures without a found face are left out, and pictures without landmarks take part. Faces
            that are rendered are never searched for. ``annotated``: from the landmarks, as those of the others.
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
    boxes: Literal["found", "annotated"] = "found"
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
        points: ``(k, 2)`` landmarks in pixels of ``picture``; NaN where nobody knows them.
        crop: ``(128, 128, 3)`` uint8, the crop that is scored; of test faces, and of all that are rendered.
    """

    name: str
    person: str
    picture: NDArray[np.uint8]
    points: NDArray[np.float32]
    crop: NDArray[np.uint8] | None = None


Owned = TypeVar("Owned", Face, Frame)


def labelled_clients(config: LandmarksConfig, clients: int, seed: int) -> set[int]:
    """Numbers of the clients that have labels: ``config.labelled`` of them, one at least, drawn by the seed."""
    count = max(1, round(config.labelled * clients))
    return set(rng_for(seed, 62).permutation(clients)[:count].tolist())


def load_people(
    config: LandmarksConfig, data: Path | None, clients: int, seed: int
) -> tuple[list[list[Frame]], list[Frame], dict[str, str]]:
    """Every owner's faces, and those of the people who are scored.

    Args:
        config: What to load.
        data: Folder of the set; None for synthetic faces.
        clients: How many owners.
        seed: Of the dealing.

    Returns:
        The owners' frames, the scored people's, and why other pictures could not be read.

    Raises:
        ConfigError: If the layout names no people, there are too few of them, too few with a found face, or schemes
            differ.
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
        parts = deal(config, _rendered(config, 0, needed), clients, seed)
        return parts, _rendered(config, _OTHERS, config.test_people), {}
    if data is None:
        raise ConfigError(f"layout {config.layout} is read from a folder: give it with --data")
    # Who is there is known from names: what does not fit is said before a picture is read.
    (train, unlabelled), (others, _) = (_listed(config, data, split) for split in (config.train, config.test))
    if shared := {face.person for face in train} & {face.person for face in others}:
        raise ConfigError(
            f"{min(map(str, shared))} is in {config.train!r} and in {config.test!r}; clients are scored on others"
        )
    deal(config, train, clients, seed)
    frames, skipped = _decoded(config, train, scored=False)
    test, also = _decoded(config, others, scored=True)
    parts = deal(config, frames, clients, seed)
    having = labelled_clients(config, clients, seed)
    if config.boxes == "found" and len(having) < clients:
        for number in sorted(set(range(clients)) - having):
            parts[number], unread = _found(config, number, parts[number], [*train, *unlabelled])
            skipped |= unread
    return parts, test, skipped | also


def with_landmarks(data: Data) -> Data:
    """The examples whose landmarks are known."""
    rows = (~data.targets.isnan().flatten(1).any(dim=1)).nonzero().flatten()
    return Data(data.inputs[rows], data.targets[rows], tuple(data.names[int(row)] for row in rows))


def load_aside(config: LandmarksConfig, data: Path | None) -> Data:
    """Faces of people whom neither a client nor the score has, with labels: public ones, for an audit.

    Args:
        config: What to load; its ``aside`` has the people.
        data: Folder of the set; None for synthetic faces.

    Raises:
        ConfigError: If a client or the score has one of them.
    """
    return as_data(_aside(config, data, max(_ASKED, config.test_people)), True)


def load_strangers(config: LandmarksConfig, data: Path | None) -> Data:
    """Faces of the people who are scored, as clients would have them: an audit asks about them beside members.

    Of synthetic faces there are more such people than are scored.
    """
    if config.layout == SYNTHETIC or data is None:
        frames = _rendered(config, _OTHERS, max(_ASKED, config.test_people))
    else:
        frames, _ = _decoded(config, _listed(config, data, config.test)[0], scored=True)
    return as_data(frames, True)


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
    owned = deal(config.model_copy(update={"people": None, "partition": "people", "alpha": None}), frames, count, seed)
    rng = rng_for(seed, 65)
    for some in owned:
        if len(some) < faces:
            raise ConfigError(f"{faces} faces for each of {count} newcomers: one would have {len(some)} of its people")
    return [as_data([some[row] for row in sorted(rng.permutation(len(some))[:faces])], True) for some in owned]


def _aside(config: LandmarksConfig, data: Path | None, people: int) -> list[Frame]:
    if config.layout == SYNTHETIC or data is None:
        return _rendered(config, _ASIDE, people)
    faces, _ = _listed(config, data, config.aside)
    for split in (config.train, config.test):
        if shared := {str(face.person) for face in faces} & set(load_faces(config.layout, data, split).people):
            raise ConfigError(
                f"data.aside = {config.aside}: {min(shared)} is in {split!r} too, but newcomers and the public people "
                "of an audit are others; name a split of its own people"
            )
    return _decoded(config, faces, scored=False)[0]


def as_data(frames: Sequence[Frame], labelled: bool) -> Data:
    """Frames as a task's examples.

    Args:
        frames: Faces, all as large.
        labelled: Whether they keep their landmarks.

    Returns:
        Inputs ``(n, 3, p, p)`` uint8; targets ``(n, k, 2)`` float32 in pixels of them, NaN without landmarks.
    """
    inputs = torch.from_numpy(np.stack([frame.picture for frame in frames])).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(np.stack([frame.points for frame in frames]).astype(np.float32))
    if not labelled:
        targets = torch.full_like(targets, float("nan"))
    return Data(inputs, targets, tuple(f"{frame.person}/{frame.name}".encode() for frame in frames))


def _frame(
    face: Face, picture: NDArray[np.uint8], size: int, scored: bool, box: NDArray[np.float64] | None = None
) -> Frame:
    """What an owner keeps of a face; around its own box unless another is given."""
    assert face.points is not None
    assert face.person is not None
    around = face.box if box is None else box
    wide = Crop.from_box(around, MARGIN * ROOM, round(ROOM * size))
    points = wide.to_crop(face.points).astype(np.float32)
    crop = Crop.from_box(around).sample(picture) if scored else None
    return Frame(face.name, face.person, wide.sample(picture), points, crop)


def _found(
    config: LandmarksConfig, number: int, part: Sequence[Frame], faces: Sequence[Face]
) -> tuple[list[Frame], dict[str, str]]:
    """All pictures of a client's people in which a finder sees a face, around its box.

    Args:
        config: Size and scheme.
        number: The client's.
        part: Its people's frames with landmarks.
        faces: Everybody's faces, with landmarks and without.

    Returns:
        The frames, without landmarks where nobody knows them, and why other pictures could not be read.

    Raises:
        ConfigError: If a face is found of fewer than two people.
    """
    people = {frame.person for frame in part}
    asked = sorted((face for face in faces if face.person in people), key=lambda face: (str(face.person), face.name))
    frames, skipped = [], {}
    nowhere = np.full((len(get_scheme(config.network.scheme)), 2), np.nan)
    for face, box in zip(asked, find_boxes(asked, UnlabelledConfig(), _FOUND), strict=True):
        try:
            picture = read_image(face.path)
        except ImageError as error:
            skipped[str(face.path)] = str(error)
            continue
        if box is not None:
            known = face if face.points is not None else replace(face, points=nowhere)
            frames.append(_frame(known, picture, config.network.size, scored=False, box=np.asarray(box)))
    if (seen := len({frame.person for frame in frames})) < 2:
        raise ConfigError(
            f"client {number} has no labels, and the finder sees a face of {seen} of its {len(people)} people; give "
            "pictures in which faces are larger, or take their boxes from the landmarks: --set data.boxes=annotated"
        )
    say(f"client {number} has no labels: a face found in {len(frames)} of {len(asked)} pictures")
    return frames, skipped


def _listed(config: LandmarksConfig, data: Path, split: str) -> tuple[list[Face], list[Face]]:
    """The faces of a split that have landmarks, all with a person, in the network's scheme; and those without any."""
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
    return found.in_scheme(config.network.scheme).labelled, found.unlabelled


def _decoded(config: LandmarksConfig, faces: Sequence[Face], scored: bool) -> tuple[list[Frame], dict[str, str]]:
    """Faces with their pictures, and why others could not be read."""
    frames, skipped = [], {}
    for face in faces:
        try:
            frames.append(_frame(face, read_image(face.path), config.network.size, scored))
        except ImageError as error:
            skipped[str(face.path)] = str(error)
    return frames, skipped


def rendered_faces(count: int) -> Tensor:
    """Crops ``(count, 3, 128, 128)`` uint8 of synthetic people whom nobody owns."""
    frames = [_drawn(REFERENCE_SIZE, 1, _ASIDE + number)[0] for number in range(count)]
    crops = np.stack([frame.crop for frame in frames if frame.crop is not None])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()


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


def deal(config: LandmarksConfig, frames: Sequence[Owned], clients: int, seed: int) -> list[list[Owned]]:
    """Whole people to clients, two at least to each.

    Args:
        config: How many people each may have, and how unlike clients' shares are.
        frames: Faces or frames, each with its person.
        clients: How many owners.
        seed: Of the dealing.

    Returns:
        The frames of each client, by person.

    Raises:
        ConfigError: If there are too few people.
    """
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
