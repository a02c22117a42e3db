"""What a training of a landmark network is told, and which faces it learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from veilmark.faces.datasets import Face, FaceSet, load_faces
from veilmark.faces.datasets.protocol import Published
from veilmark.run.errors import ConfigError, DataError
from veilmark.run.seeds import rng_for
from veilmark.sht.losses import Weights
from veilmark.sht.protocol import scored_faces
from veilmark.sht.samples import SampleConfig
from veilmark.sht.schedule import Schedule


class DataConfig(BaseModel):
    """Which faces are learned from, and which choose and calibrate.

    Attributes:
        layout: Published layout of the data folder.
        train: Split that is learned from.
        select: Split of other people: validation during training, and the calibration of the expected error.
            Null where the set has no such split: then ``held_out`` of the training people take that part.
        held_out: Share of the training people (of its pictures, where the set names no people) that are held out.
        labelled_people: Share of the training people whose labels are used; the others' faces have none then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: str = "ytf68"
    train: str = "train"
    select: str | None = "select"
    held_out: float = Field(0.0, ge=0, lt=1)
    labelled_people: float = Field(1.0, gt=0, le=1)


class NetworkConfig(BaseModel):
    """The keyword arguments of :class:`veilmark.sht.dhln.DHLN`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scheme: str = "ibug68"
    size: int = Field(128, ge=16)
    trunk_stride: int = 8
    map_stride: int = 4
    stages: int = 2
    structure_widths: tuple[int, ...] = Field((80, 128, 128), min_length=1)
    detail_widths: tuple[int, int] = (64, 96)
    painter_width: int = Field(32, ge=16)
    detail: bool = True
    heatmap_guidance: bool = True
    detail_guidance: bool = True


class LandmarkTraining(BaseModel):
    """What every training of a landmark network is told.

    Attributes:
        seed: Of the weights, and of every draw.
        init: Weights to start from: a packaged name or a folder; tensors that fit are taken.
        data: Which faces.
        network: The network.
        samples: How training faces are drawn.
        losses: How much each loss counts.
        schedule: How long and how fast.
        validate_sizes: Face sizes of the validations and of the calibration, in pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = 0
    init: str | None = None
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    samples: SampleConfig = SampleConfig()
    losses: Weights = Weights()
    schedule: Schedule = Schedule()
    validate_sizes: tuple[int, ...] = (16, 32, 128)


@dataclass(frozen=True)
class TrainingSets:
    """The faces of a training, read but not yet prepared.

    Attributes:
        labelled: Faces that are learned from; in a set without labels, faces that teach hallucination alone.
        withheld: Faces of the same split that count as unlabelled: those without labels, and those of people
            whose labels are not used.
        others: Labelled faces of other people, for validation and calibration.
        people: People of the labelled faces.
        protocol: How the set is scored, where it is a published one.
    """

    labelled: list[Face]
    withheld: list[Face]
    others: list[Face]
    people: list[str]
    protocol: Published | None = None

    @property
    def labels(self) -> bool:
        """Whether there is any label."""
        return self.labelled[0].points is not None


def open_sets(config: LandmarkTraining, data: Path) -> TrainingSets:
    """Reads which faces there are.

    Raises:
        VeilmarkError: If the data does not fit, or the same people are in both splits.
    """
    known = config.data
    if not config.schedule.epochs and config.init is None:
        raise ConfigError("schedule.epochs is 0 and init is null: nothing was learned yet; name weights to start from")
    if max(config.validate_sizes) > config.network.size:
        raise ConfigError(
            f"validate_sizes has {max(config.validate_sizes)}, but network.size is {config.network.size}; "
            "choose face sizes up to the network's"
        )
    learned, others = _two_parts(config, load_faces(known.layout, data, known.train), data)
    shared = set(learned.people) & set(others.people)
    if shared:
        raise DataError(
            f"{len(shared)} people are in both {known.train!r} and {known.select!r} "
            f"(first: {min(shared)}); validation needs people that training does not see"
        )
    if not learned.labelled:
        # A set of faces alone teaches hallucination alone.
        if not config.network.detail:
            raise ConfigError(
                f"{known.layout}/{known.train} has no landmarks, and network.detail is false: nothing can be learned; "
                "leave network.detail true, or give a labelled set as --data"
            )
        return TrainingSets(scored_faces(learned), [], scored_faces(others), learned.people, learned.protocol)
    named = learned.people or sorted(face.name for face in learned.labelled)
    count = max(1, round(config.data.labelled_people * len(named)))
    kept = set(rng_for(config.seed, 7).permutation(named)[:count])
    labelled = [face for face in learned.labelled if (face.person or face.name) in kept]
    withheld = [replace(face, points=None) for face in learned.labelled if (face.person or face.name) not in kept]
    return TrainingSets(labelled, withheld + learned.unlabelled, scored_faces(others), sorted(kept), learned.protocol)


def _two_parts(config: LandmarkTraining, learned: FaceSet, data: Path) -> tuple[FaceSet, FaceSet]:
    """The faces to learn from and those of other people, in the network's scheme."""
    known, scheme = config.data, config.network.scheme
    if (known.select is None) != (known.held_out > 0):
        raise ConfigError(
            f"data.select is {known.select!r} and data.held_out {known.held_out}; give a split, or null and a share"
        )
    learned = learned.in_scheme(scheme)
    if known.select is not None:
        return learned, load_faces(known.layout, data, known.select).in_scheme(scheme)
    everybody = sorted({face.person or face.name for face in learned.labelled + learned.unlabelled})
    count = max(1, round(known.held_out * len(everybody)))
    if count == len(everybody):
        raise ConfigError(
            f"data.held_out is {known.held_out}, which leaves none of {len(everybody)} people to learn from; "
            "choose a smaller share"
        )
    held = set(rng_for(config.seed, 8).permutation(everybody)[:count])

    def part(inside: bool) -> FaceSet:
        labelled, unlabelled = (
            [face for face in faces if ((face.person or face.name) in held) == inside]
            for faces in (learned.labelled, learned.unlabelled)
        )
        return replace(learned, labelled=labelled, unlabelled=unlabelled)

    return part(False), part(True)
