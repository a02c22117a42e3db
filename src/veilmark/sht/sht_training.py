"""Training SHT: first the detector, then detector and pose transfer together. ``veilmark train sht-ytf68``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.fabric import Fabric
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from veilmark.faces.cache import FaceCache
from veilmark.faces.datasets import Face, load_faces
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.config import dump
from veilmark.run.errors import ConfigError
from veilmark.run.folder import RunFolder
from veilmark.run.progress import say
from veilmark.run.seeds import rng_for
from veilmark.sht.dhln import DHLN
from veilmark.sht.dhln_training import Detector, Trained, go_on, start_from
from veilmark.sht.discriminators import Discriminators
from veilmark.sht.fptn import FPTN
from veilmark.sht.inference import predict
from veilmark.sht.joint import SHT, JointBatch, JointLoss, JointWeights, add_pseudo_labels
from veilmark.sht.joint_samples import JointSamples, PairConfig
from veilmark.sht.pairs import choose_pairs
from veilmark.sht.protocol import ReferenceFaces, prepare_faces
from veilmark.sht.schedule import Schedule
from veilmark.sht.training import Trainer, make_fabric
from veilmark.sht.training_sets import LandmarkTraining, open_sets
from veilmark.sht.transfer_sheet import TransferSheet
from veilmark.sht.unlabelled import UnlabelledConfig, gather


class FPTNConfig(BaseModel):
    """The keyword arguments of :class:`veilmark.sht.fptn.FPTN`, beside those that DHLN decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stride: int = 8
    channels: int = Field(64, ge=16)
    blocks: int = Field(3, ge=1)
    painter_width: int = Field(32, ge=16)


class SHTTraining(LandmarkTraining):
    """The config of a whole training of SHT.

    Attributes:
        unlabelled: Which faces without labels take part.
        pairs: Which faces make a pair.
        fptn: The pose transfer network.
        init_transfer: Weights of FPTN to start from: a packaged name or a folder; tensors that fit are taken.
        joint: How much the losses on pairs count.
        joint_schedule: How long and how fast the joint stage is; ``schedule`` is the detector's.
    """

    kind: Literal["sht"] = "sht"
    unlabelled: UnlabelledConfig = UnlabelledConfig()
    pairs: PairConfig = PairConfig()
    fptn: FPTNConfig = FPTNConfig()
    init_transfer: str | None = None
    joint: JointWeights = JointWeights()
    joint_schedule: Schedule = Schedule()


def _without_labels(config: SHTTraining, withheld: list[Face]) -> list[Face]:
    """The faces that take part without labels.

    Raises:
        ConfigError: If the recipe asks for some and there is none.
    """
    asked = config.unlabelled
    if not asked.use:
        if asked.folder is not None:
            raise ConfigError("unlabelled.folder is given, but unlabelled.use is false; add --set unlabelled.use=true")
        return []
    if asked.folder is None:
        if not withheld:
            raise ConfigError(
                f"unlabelled.use is true, but {config.data.layout}/{config.data.train} has no unlabelled face; name "
                "another set with --set unlabelled.folder=DIR, unlabelled.layout=LAYOUT and unlabelled.split=SPLIT, "
                "or go on with labelled faces alone: --set unlabelled.use=false"
            )
        return withheld
    if asked.layout is None or asked.split is None:
        raise ConfigError("unlabelled.folder needs unlabelled.layout and unlabelled.split beside it")
    other = load_faces(asked.layout, asked.folder, asked.split)
    return other.unlabelled + other.labelled


class Drift:
    """How far the joint stage has moved the landmarks since it began, on people that no training saw.

    Transfer asks for consistency only: landmarks that slide together would satisfy it.

    Args:
        faces: The faces.
        size: Their size in pixels.
    """

    def __init__(self, faces: ReferenceFaces, size: int) -> None:
        self.small, self.faces = faces.shrunk(size), faces
        self.start: NDArray[np.float64] | None = None

    def begin(self, model: DHLN) -> None:
        """Remembers where the detector's landmarks are."""
        self.start = predict(model, self.small, mirror=False).points
        a, b = get_scheme(model.scheme).inter_ocular
        # The floor of the training's loss: profile faces, whose eyes nearly meet, must not rule the mean.
        apart = np.linalg.norm(self.faces.points[:, a] - self.faces.points[:, b], axis=1)
        self.unit = np.maximum(apart, 0.15)[:, None]

    def figures(self, model: DHLN) -> dict[str, float]:
        """``drift``: mean distance moved; ``common_drift``: what all faces have in common of it. Percent.

        Percent of the inter-ocular distance, means over the points.
        """
        if self.start is None:
            raise RuntimeError("begin() has not been called")
        moves = (predict(model, self.small, mirror=False).points - self.start) / self.unit[..., None]
        return {
            "drift": 100 * float(np.linalg.norm(moves, axis=2).mean()),
            "common_drift": 100 * float(np.linalg.norm(moves.mean(axis=0), axis=1).mean()),
        }


def train_sht(
    config: SHTTraining, data: Path, run: RunFolder, cache: Path, resume: bool, fabric: Fabric | None = None
) -> Trained | None:
    """Trains the detector, then detector and transfer together, and writes the weights of both.

    Args:
        config: The resolved config.
        data: Folder of the data set.
        run: The run folder, held by the caller where it is the first process.
        cache: Where prepared faces are kept.
        resume: Whether to go on from the run folder's checkpoints.
        fabric: Devices and processes, launched once data and run folder are known to fit; one by default.

    Returns:
        The end of the training in the first process, None in the others.

    Raises:
        VeilmarkError: If the data, the stages or the run folder do not fit; nothing has been trained then.
    """
    if not config.network.detail:
        raise ConfigError("network.detail is false, but the joint stage transfers hallucinated faces; train kind dhln")
    fabric = fabric or make_fabric(config.schedule)
    sets = open_sets(config, data)
    if not sets.labels:
        raise ConfigError(
            f"{config.data.layout}/{config.data.train} has no landmarks; the joint stage carries a labelled batch in "
            "every step: give a labelled set as --data, and this one as --set unlabelled.folder=DIR"
        )
    others = _without_labels(config, sets.withheld)
    # Refuses now what could make no pair later.
    choose_pairs(sets.labelled + others, config.pairs.kind, rng_for(config.seed, 4))
    if fabric.is_global_zero:
        run.start(dump(config), resume)
    fabric.launch()
    # The first process makes the caches, the others read them.
    with fabric.rank_zero_first():
        detector = Detector(config, sets, run, cache)
    first = detector.trainer(fabric, stage="detector")
    if resume:
        go_on(first)
    warm = first.fit()

    caches: list[FaceCache] = [detector.train_cache]
    figures: dict[str, float] = {}
    if others:
        with fabric.rank_zero_first():
            gathered = gather(others, warm, config.unlabelled, cache)
            figures = gathered.figures
            say(f"unlabelled faces: {figures['kept']:.0f} % of {len(others)} pictures pass the gate")
            if gathered.faces:
                size = detector.model.size
                caches.append(prepare_faces(gathered.faces, cache, "unlabelled faces", size, gathered.boxes))

    fptn = FPTN(detector.model.scheme, detector.model.size, **config.fptn.model_dump())
    if config.init_transfer is not None:
        start_from(fptn, config.init_transfer)
    model = SHT(warm.requires_grad_(True), fptn)
    if detector.reference is None:
        raise ConfigError(f"{config.data.layout}/{config.data.select} has no landmarks to validate on")
    drift = Drift(detector.reference, min(config.validate_sizes))
    drift.begin(warm)
    sheet = TransferSheet(detector.reference, min(config.validate_sizes), run.path / "transfers")

    def validate(network: SHT) -> dict[str, dict[str, float]]:
        rows = detector.validate(network.dhln)
        rows[str(min(config.validate_sizes))] |= drift.figures(network.dhln)
        rows[str(min(config.validate_sizes))] |= sheet.draw(network, joint.first_step + joint.step)
        return rows

    points = len(get_scheme(detector.model.scheme))
    loss = JointLoss(detector.loss, config.joint, Discriminators(points, detector.model.size))
    limit = config.joint.confident
    enrich: Callable[[SHT, JointBatch], JointBatch] | None = None
    if config.joint.teacher:

        def enrich(average: SHT, batch: JointBatch) -> JointBatch:
            return add_pseudo_labels(average, batch, limit)

    joint: Trainer[SHT, JointBatch] = Trainer(
        run,
        model,
        loss,
        JointSamples(detector.samples, caches, config.pairs),
        config.joint_schedule,
        validate,
        fabric=fabric,
        stage="joint",
        first_step=first.steps,
        critic=loss if config.joint.adversarial else None,
        enrich=enrich,
    )
    if resume:
        go_on(joint)
    trained = joint.fit()
    if not fabric.is_global_zero:
        return None
    transfer = run.path / "weights-transfer"
    trained.fptn.half().save_pretrained(transfer)
    summary: dict[str, Any] = {
        "unlabelled": figures,
        "pairs": config.pairs.kind,
        "transfer_parameters": sum(p.numel() for p in trained.fptn.parameters()),
        "drift": drift.figures(trained.dhln),
    }
    return detector.release(trained.dhln, first.seconds + joint.seconds, summary)
