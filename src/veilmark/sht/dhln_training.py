"""Training DHLN from a data set to released weights: the job behind ``veilmark train dhln-ytf68``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import Crop
from veilmark.faces.datasets import Face, load_faces
from veilmark.run.config import dump
from veilmark.run.errors import DataError
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.progress import progress_bar, say
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict
from veilmark.sht.losses import DHLNLoss, Weights, claim_loss
from veilmark.sht.protocol import ReferenceFaces, quick_figures
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.training import Schedule, Trainer


class DataConfig(BaseModel):
    """Which faces are learned from, and which choose and calibrate.

    Attributes:
        layout: Published layout of the data folder.
        train: Split that is learned from.
        select: Split of other people: validation during training, and the calibration of the expected error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: str = "ytf68"
    train: str = "train"
    select: str = "select"


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
    detail: bool = True
    heatmap_guidance: bool = True
    detail_guidance: bool = True


class DHLNTraining(BaseModel):
    """The config of a training of DHLN."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["dhln"] = "dhln"
    seed: int = 0
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    samples: SampleConfig = SampleConfig()
    losses: Weights = Weights()
    schedule: Schedule = Schedule()
    validate_sizes: tuple[int, ...] = (16, 32, 128)


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


def prepare(faces: list[Face], folder: Path, what: str) -> FaceCache:
    """The cache of labelled faces, with a progress bar while it is made.

    Raises:
        DataError: If no picture could be read.
    """
    boxes = np.stack([face.box for face in faces])
    with progress_bar("pictures") as bar:
        task = bar.add_task(f"preparing {what}", total=len(faces), note="")
        cache = FaceCache.prepare(faces, boxes, folder, lambda: bar.advance(task))
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


def train_dhln(config: DHLNTraining, data: Path, run: RunFolder, cache: Path, resume: bool) -> Trained:
    """Trains, calibrates and writes the weights.

    Args:
        config: The resolved config.
        data: Folder of the data set.
        run: The run folder, held by the caller.
        cache: Where prepared faces are kept.
        resume: Whether to go on from the run folder's checkpoint.

    Raises:
        VeilmarkError: If the data or the run folder does not fit; nothing has been trained then.
    """
    learned = load_faces(config.data.layout, data, config.data.train)
    others = load_faces(config.data.layout, data, config.data.select)
    shared = set(learned.people) & set(others.people)
    if shared:
        raise DataError(
            f"{len(shared)} people are in both {config.data.train!r} and {config.data.select!r} "
            f"(first: {min(shared)}); validation needs people that training does not see"
        )
    torch.manual_seed(config.seed)
    model = DHLN(**config.network.model_dump())
    run.start(dump(config), resume)
    train_cache = prepare(learned.labelled, cache, config.data.train)
    select_cache = prepare(others.labelled, cache, config.data.select)
    model.mean_shape.copy_(mean_shape(train_cache))
    reference = ReferenceFaces.from_cache(select_cache, model.size)
    faces = TrainingFaces(train_cache, config.samples, model.scheme, model.size, config.seed)

    def validate(network: nn.Module) -> dict[str, dict[str, float]]:
        return quick_figures(network, reference, config.validate_sizes, config.network.detail)

    trainer = Trainer(
        run,
        model,
        DHLNLoss(config.losses, model.scheme, model.size, model.map_stride),
        faces,
        config.schedule,
        validate,
    )
    if resume and trainer.restore():
        say(f"going on from step {trainer.step} of {trainer.steps}")
    trained = trainer.fit()
    fit_calibration(trained, reference, config.validate_sizes)
    figures = validate(trained)
    weights = run.path / "weights"
    trained.half().save_pretrained(weights)
    skipped = train_cache.skipped | select_cache.skipped
    write_json(
        run.path / "summary.json",
        {
            "recipe": config.model_dump(mode="json"),
            "parameters": sum(p.numel() for p in trained.parameters()),
            "faces": len(train_cache),
            "people": len(learned.people),
            "seconds": round(trainer.seconds, 1),
            "validation": figures,
            "skipped": skipped,
        },
    )
    return Trained(weights, figures, skipped)
