"""Training DHLN from a data set to released weights: the job behind ``veilmark train dhln-ytf68``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from veilmark.faces.cache import FaceCache
from veilmark.faces.crop import Crop
from veilmark.run.checkpoints import read_tensors
from veilmark.run.config import dump
from veilmark.run.errors import WeightsError
from veilmark.run.folder import RunFolder, write_json
from veilmark.run.progress import say
from veilmark.sht.dhln import DHLN
from veilmark.sht.inference import predict
from veilmark.sht.losses import Batch, DHLNLoss, claim_loss
from veilmark.sht.pretrained import weights_folder
from veilmark.sht.protocol import ReferenceFaces, prepare_faces, quick_figures, score_hallucination
from veilmark.sht.samples import TrainingFaces
from veilmark.sht.training import Trainer, make_fabric
from veilmark.sht.training_sets import LandmarkTraining, TrainingSets, open_sets


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
