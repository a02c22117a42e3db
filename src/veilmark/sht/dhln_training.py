"""Training DHLN from a data set to released weights: the job behind ``veilmark train dhln-ytf68``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import Crop
from veilmark.faces.datasets import Face, FaceSet, load_faces
from veilmark.faces.datasets.protocol import Published
from veilmark.run.checkpoints import read_tensors
from veilmark.run.config import dump
from veilmark.run.errors import ConfigError, DataError, WeightsError
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.progress import say
from veilmark.run.seeds import rng_for
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict
from veilmark.sht.losses import Batch, DHLNLoss, Weights, claim_loss
from veilmark.sht.pretrained import weights_folder
from veilmark.sht.protocol import ReferenceFaces, prepare_faces, quick_figures, score_hallucination, scored_faces
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.schedule import Schedule
from veilmark.sht.training import Trainer, make_fabric


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
    size: int = 128
    trunk_stride: int = 8
    map_stride: int = 4
    stages: int = 2
    structure_widths: tuple[int, ...] = (80, 128, 128)
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


class DHLNTraining(LandmarkTraining):
    """The config of a training of DHLN alone."""

    kind: Literal["dhln"] = "dhln"


@dataclass(frozen=True)
class Trained:
    """The end of a training.

    Attributes:
        weights: Folder written by ``save_pretrained``.
        figures: The last validation.
        skipped: Pictures that could not be read, with the reason.
    """

    weights: Path
    figures: dict[str, dict[str, float]]
    skipped: dict[str, str]


def mean_shape(cache: FaceCache) -> Tensor:
    """Mean landmarks of cached faces as shares of the crop's side, ``(k, 2)``."""
    shapes = []
    for number in range(len(cache)):
        cached = cache[number]
        if cached.points is not None:
            crop = Crop.from_box(cached.box)
            shapes.append(crop.to_crop(cached.points) / crop.size)
    return torch.from_numpy(np.mean(shapes, axis=0)).float()


def fit_calibration(model: DHLN, faces: ReferenceFaces, sizes: tuple[int, ...]) -> None:
    """Fits the two numbers of the calibration of ``expected_error`` on people that no training saw.

    The claim ``exp(a + b log c)`` is fitted by the same proper score as in training, over all sizes.

    Args:
        model: The network; its calibration is replaced.
        faces: Faces of other people than the training's.
        sizes: Face sizes in pixels.
    """
    calibration = model.error.calibration
    calibration.copy_(torch.tensor([0.0, 1.0]))
    claims, distances = [], []
    for size in sizes:
        prediction = predict(model, faces.shrunk(size))
        seen = np.ones(prediction.expected_error.shape, dtype=np.bool_) if faces.visible is None else faces.visible
        claims.append(prediction.expected_error[seen])
        distances.append(np.linalg.norm(prediction.points - faces.points, axis=2)[seen])
    log_claim = torch.from_numpy(np.concatenate(claims)).log()
    distance = torch.from_numpy(np.concatenate(distances))
    fitted = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fitted], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        claim = torch.exp(fitted[0] + fitted[1] * log_claim)
        loss = claim_loss(claim, distance).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    calibration.copy_(fitted.detach().float())


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


def start_from(model: nn.Module, weights: str) -> None:
    """Takes over the tensors of other weights that fit, and says how many did.

    Raises:
        WeightsError: If there are no such weights, or fewer than half of the network's tensors are among them.
    """
    tensors, _ = read_tensors(weights_folder(weights) / "model.safetensors")
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and tensor.shape == own[name].shape}
    if 2 * len(fitting) < len(own):
        raise WeightsError(
            f"init: {len(fitting)} of this network's {len(own)} tensors fit those of {weights!r}; use weights of the "
            "same network and size"
        )
    model.load_state_dict(fitting, strict=False)
    say(f"starting from {weights}: {len(fitting)} of {len(own)} tensors")


class Detector:
    """DHLN and all that its training needs: the first stage of every training.

    Args:
        config: The resolved config.
        sets: The faces.
        run: The run folder, held by the caller.
        cache: Where prepared faces are kept.
    """

    def __init__(self, config: LandmarkTraining, sets: TrainingSets, run: RunFolder, cache: Path) -> None:
        self.config, self.sets, self.run, self.cache_folder = config, sets, run, cache
        torch.manual_seed(config.seed)
        self.model = DHLN(**config.network.model_dump())
        if config.init is not None:
            start_from(self.model, config.init)
        size = self.model.size
        self.train_cache = prepare_faces(sets.labelled, cache, config.data.train, size)
        self.select_cache = prepare_faces(sets.others, cache, config.data.select or "held-out faces", size)
        self.reference: ReferenceFaces | None = None
        if sets.labels:
            self.model.mean_shape.copy_(mean_shape(self.train_cache))
            kind = "inter_ocular" if sets.protocol is None else sets.protocol.usual
            self.reference = ReferenceFaces.from_cache(self.select_cache, size, kind)
        self.samples = TrainingFaces(self.train_cache, config.samples, self.model.scheme, size, config.seed)
        self.loss = DHLNLoss(config.losses, self.model.scheme, size, self.model.map_stride)

    def validate(self, network: nn.Module) -> dict[str, dict[str, float]]:
        """Figures on other people."""
        if self.reference is not None:
            return quick_figures(network, self.reference, self.config.validate_sizes, self.config.network.detail)
        sizes = [size for size in self.config.validate_sizes if size < self.model.size]
        rows = score_hallucination(network, self.select_cache, sizes, mirror=False)
        return {
            str(row["size"]): {"psnr": row["psnr_rgb"], "psnr_gain": row["psnr_rgb"] - row["bicubic_psnr_rgb"]}
            for row in rows
        }

    def trainer(self, fabric: Fabric, stage: str = "last") -> Trainer[DHLN, Batch]:
        """The trainer of the first stage."""
        return Trainer(
            self.run,
            self.model,
            self.loss,
            self.samples,
            self.config.schedule,
            self.validate,
            fabric=fabric,
            stage=stage,
        )

    def release(self, trained: DHLN, seconds: float, summary: dict[str, Any]) -> Trained:
        """Calibrates, writes the weights in half precision, and the summary."""
        if self.reference is not None:
            fit_calibration(trained, self.reference, self.config.validate_sizes)
        figures = self.validate(trained)
        weights = self.run.path / "weights"
        trained.half().save_pretrained(weights)
        skipped = self.train_cache.skipped | self.select_cache.skipped
        written = {
            "recipe": self.config.model_dump(mode="json"),
            "parameters": sum(p.numel() for p in trained.parameters()),
            "faces": len(self.train_cache),
            "people": len(self.sets.people),
            "seconds": round(seconds, 1),
            "validation": figures,
            **summary,
            "skipped": skipped,
        }
        write_json(self.run.path / "summary.json", written)
        return Trained(weights, figures, skipped)


def go_on(trainer: Trainer[Any, Any]) -> None:
    """Goes back to the stage's checkpoint, if there is one, and says so."""
    if trainer.restore():
        say(f"{trainer.stage}: going on from step {trainer.step} of {trainer.steps}")


def train_dhln(
    config: DHLNTraining, data: Path, run: RunFolder, cache: Path, resume: bool, fabric: Fabric | None = None
) -> Trained | None:
    """Trains, calibrates and writes the weights.

    Args:
        config: The resolved config.
        data: Folder of the data set.
        run: The run folder, held by the caller where it is the first process.
        cache: Where prepared faces are kept.
        resume: Whether to go on from the run folder's checkpoint.
        fabric: Devices and processes, launched once data and run folder are known to fit; one by default.

    Returns:
        The end of the training in the first process, None in the others.

    Raises:
        VeilmarkError: If the data or the run folder does not fit; nothing has been trained then.
    """
    fabric = fabric or make_fabric(config.schedule)
    sets = open_sets(config, data)
    if fabric.is_global_zero:
        run.start(dump(config), resume)
    fabric.launch()
    # The first process makes the caches, the others read them.
    with fabric.rank_zero_first():
        detector = Detector(config, sets, run, cache)
    trainer = detector.trainer(fabric)
    if resume:
        go_on(trainer)
    trained = trainer.fit()
    return detector.release(trained, trainer.seconds, {}) if fabric.is_global_zero else None
