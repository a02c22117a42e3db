"""Training DHLN from a data set to released weights: the job behind ``veilmark train dhln-ytf68``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import REFERENCE_SIZE, Crop
from veilmark.faces.datasets import Face, load_faces
from veilmark.run.checkpoints import read_tensors
from veilmark.run.config import dump
from veilmark.run.errors import ConfigError, DataError, WeightsError
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.progress import progress_bar, say
from veilmark.run.seeds import rng_for
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict
from veilmark.sht.losses import Batch, DHLNLoss, Weights, claim_loss
from veilmark.sht.pretrained import weights_folder
from veilmark.sht.protocol import ReferenceFaces, quick_figures
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.training import Schedule, Trainer


class DataConfig(BaseModel):
    """Which faces are learned from, and which choose and calibrate.

    Attributes:
        layout: Published layout of the data folder.
        train: Split that is learned from.
        select: Split of other people: validation during training, and the calibration of the expected error.
        labelled_people: Share of the training people whose labels are used; the others' faces have none then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: str = "ytf68"
    train: str = "train"
    select: str = "select"
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


def prepare(
    faces: list[Face],
    folder: Path,
    what: str,
    size: int = REFERENCE_SIZE,
    boxes: NDArray[np.float32] | None = None,
) -> FaceCache:
    """The cache of faces, with a progress bar while it is made.

    Args:
        faces: The faces.
        folder: Where caches lie.
        what: What they are called on the bar.
        size: Side of the largest crop that will be asked for.
        boxes: ``(n, 4)`` boxes in picture pixels, for faces without annotated ones.

    Raises:
        DataError: If no picture could be read.
    """
    if boxes is None:
        boxes = np.stack([face.box for face in faces])
    with progress_bar("pictures") as bar:
        task = bar.add_task(f"preparing {what}", total=len(faces), note="")
        cache = FaceCache.prepare(faces, boxes, folder, lambda: bar.advance(task), size)
        bar.update(task, completed=len(faces))
    if not len(cache):
        raise DataError(
            f"none of the {len(faces)} pictures of {what} could be read; the first: "
            f"{next(iter(cache.skipped.values()))}"
        )
    return cache


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
        claims.append(prediction.expected_error)
        distances.append(np.linalg.norm(prediction.points - faces.points, axis=2))
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
        labelled: Faces that are learned from.
        withheld: Faces of the same split that count as unlabelled: those without labels, and those of people
            whose labels are not used.
        others: Labelled faces of other people, for validation and calibration.
        people: People of the labelled faces.
    """

    labelled: list[Face]
    withheld: list[Face]
    others: list[Face]
    people: list[str]


def open_sets(config: LandmarkTraining, data: Path) -> TrainingSets:
    """Reads which faces there are.

    Raises:
        VeilmarkError: If the data does not fit, or the same people are in both splits.
    """
    learned = load_faces(config.data.layout, data, config.data.train)
    others = load_faces(config.data.layout, data, config.data.select)
    shared = set(learned.people) & set(others.people)
    if shared:
        raise DataError(
            f"{len(shared)} people are in both {config.data.train!r} and {config.data.select!r} "
            f"(first: {min(shared)}); validation needs people that training does not see"
        )
    for part in (learned, others):
        if not part.labelled:
            raise DataError(f"{part.layout}/{part.split} has no labelled face; a training needs some")
        if part.scheme != config.network.scheme:
            raise ConfigError(
                f"network.scheme is {config.network.scheme!r}, but {part.layout}/{part.split} is labelled in "
                f"{part.scheme!r}; use --set network.scheme={part.scheme}"
            )
    named = learned.people or sorted(face.name for face in learned.labelled)
    count = max(1, round(config.data.labelled_people * len(named)))
    kept = set(rng_for(config.seed, 7).permutation(named)[:count])
    labelled = [face for face in learned.labelled if (face.person or face.name) in kept]
    withheld = [replace(face, points=None) for face in learned.labelled if (face.person or face.name) not in kept]
    return TrainingSets(labelled, withheld + learned.unlabelled, others.labelled, sorted(kept))


def start_from(model: nn.Module, weights: str) -> None:
    """Takes over the tensors of other weights that fit, and says how many did.

    Raises:
        WeightsError: If there are no such weights, or none of their tensors fits.
    """
    tensors, _ = read_tensors(weights_folder(weights) / "model.safetensors")
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise WeightsError(f"init: no tensor of {weights!r} fits this network; use weights of the same network")
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
        self.train_cache = prepare(sets.labelled, cache, config.data.train, size)
        self.select_cache = prepare(sets.others, cache, config.data.select, size)
        self.model.mean_shape.copy_(mean_shape(self.train_cache))
        self.reference = ReferenceFaces.from_cache(self.select_cache, size)
        self.samples = TrainingFaces(self.train_cache, config.samples, self.model.scheme, size, config.seed)
        self.loss = DHLNLoss(config.losses, self.model.scheme, size, self.model.map_stride)

    def validate(self, network: nn.Module) -> dict[str, dict[str, float]]:
        """Figures on other people."""
        return quick_figures(network, self.reference, self.config.validate_sizes, self.config.network.detail)

    def trainer(self, fabric: Fabric | None, stage: str = "last") -> Trainer[DHLN, Batch]:
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
) -> Trained:
    """Trains, calibrates and writes the weights.

    Args:
        config: The resolved config.
        data: Folder of the data set.
        run: The run folder, held by the caller.
        cache: Where prepared faces are kept.
        resume: Whether to go on from the run folder's checkpoint.
        fabric: Devices and processes, launched by the caller; made from the schedule by default.

    Raises:
        VeilmarkError: If the data or the run folder does not fit; nothing has been trained then.
    """
    sets = open_sets(config, data)
    run.start(dump(config), resume)
    detector = Detector(config, sets, run, cache)
    trainer = detector.trainer(fabric)
    if resume:
        go_on(trainer)
    trained = trainer.fit()
    return detector.release(trained, trainer.seconds, {})
