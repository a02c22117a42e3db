"""The floor of DHLN: a plain two-stack hourglass, trained for the same time on the same faces.

Two million parameters, 32 x 32 maps, expectation decoding, L1 on the points of both stacks; the same data,
augmentation, optimiser, moving average and loop as DHLN. One network for all sizes.

    python benchmarks/plain_hourglass.py --data ytf68 --epochs 25 --out runs/hourglass
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from veilmark.faces.augment import Augmentation
from veilmark.faces.datasets import load_faces
from veilmark.landmarks.heatmaps import decode
from veilmark.landmarks.schemes import get_scheme
from veilmark.run.checkpoints import write_tensors
from veilmark.run.config import dump
from veilmark.run.folder import RunFolder, write_json
from veilmark.sht.dhln import DHLNOutput, Stage
from veilmark.sht.dhln_training import DHLNTraining
from veilmark.sht.layers import Norm, enlarge
from veilmark.sht.losses import Batch, Losses
from veilmark.sht.protocol import ReferenceFaces, prepare_faces, quick_figures, score_sizes
from veilmark.sht.samples import SampleConfig, TrainingFaces
from veilmark.sht.training import Schedule, Trainer

WIDTH = 160

SAMPLES = SampleConfig(augmentation=Augmentation(rotation=12, colour=1, cover=0.2), no_face=0.08)
"""The augmentation with which the first weights of DHLN were trained, beside which this floor stands."""


class Bottleneck(nn.Module):
    """Pre-activation bottleneck residual of the original hourglass (Newell et al. 2016), with GroupNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.Sequential(
            Norm(channels), nn.ReLU(), nn.Conv2d(channels, half, 1),
            Norm(half), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1),
            Norm(half), nn.ReLU(), nn.Conv2d(half, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        y: Tensor = x + self.layers(x)
        return y


class Stack(nn.Module):
    """One hourglass: pooling down, nearest-neighbour up, a residual beside and after each level."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.beside, self.before, self.after = (Bottleneck(channels) for _ in range(3))
        self.inside: nn.Module = Stack(channels, depth - 1) if depth > 1 else Bottleneck(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps features to features of the same shape."""
        low = self.after(self.inside(self.before(nn.functional.max_pool2d(x, 2))))
        y: Tensor = self.beside(x) + nn.functional.interpolate(low, scale_factor=2.0)
        return y


class PlainHourglass(nn.Module):
    """Two stacks on 32 x 32 maps; answers in the form of DHLN, without faces and without claims."""

    def __init__(self, scheme: str = "ibug68", size: int = 128) -> None:
        super().__init__()
        self.scheme, self.size = scheme, size
        k = len(get_scheme(scheme))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3), Bottleneck(64), nn.MaxPool2d(2), nn.Conv2d(64, WIDTH, 1)
        )
        self.stacks = nn.ModuleList(Stack(WIDTH, 3) for _ in range(2))
        self.features = nn.ModuleList(
            nn.Sequential(Bottleneck(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), Norm(WIDTH), nn.ReLU()) for _ in range(2)
        )
        self.maps = nn.ModuleList(nn.Conv2d(WIDTH, k, 1) for _ in range(2))
        self.again = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(k, WIDTH, 1)])

    def forward(self, faces: Tensor, hallucinate: bool = False) -> DHLNOutput:
        """Landmarks of faces of any side."""
        grid = enlarge(faces, self.size)
        x = self.stem((4 * (grid - 0.5)).contiguous(memory_format=torch.channels_last))
        stages = []
        for t, stack in enumerate(self.stacks):
            y = self.features[t](stack(x))
            logits = self.maps[t](y)
            points, spread, _ = decode(logits, self.size / logits.shape[-1])
            stages.append(Stage(logits, points, spread, None))
            if t == 0:
                x = x + self.again[0](y) + self.again[1](logits)
        return DHLNOutput(stages, spread.detach(), spread.new_zeros(len(faces)))


class PointLoss:
    """L1 on the points of both stacks, over the inter-ocular distance."""

    def __init__(self, scheme: str, size: int) -> None:
        self.size, self.eyes = size, get_scheme(scheme).inter_ocular

    def __call__(self, output: DHLNOutput, batch: Batch) -> Losses:
        """The loss of one batch."""
        counted = (batch.labelled & batch.is_face).float()
        a, b = self.eyes
        inter_ocular = (batch.points[:, a] - batch.points[:, b]).norm(dim=1).clamp_min(0.15 * self.size)
        share = counted / counted.sum().clamp_min(1) / inter_ocular / 0.05
        losses = [(share * (s.points - batch.points).abs().mean(dim=(1, 2))).sum() for s in output.stages]
        return Losses(losses[0] + losses[1], {"points": losses[1].detach()})


def main(
    data: Annotated[Path, typer.Option(help="Folder in the ytf68 layout.")],
    epochs: Annotated[int, typer.Option(help="Passes over the faces; choose them to match DHLN's seconds.")],
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/hourglass"),
    cache: Path = Path(".cache/veilmark"),
    split: Annotated[str, typer.Option(help="Split that is scored at the end.")] = "report",
    lr: float = 2.5e-3,
    threads: int = 1,
    resume: bool = False,
) -> None:
    """Trains the plain hourglass and writes its figures."""
    schedule = Schedule(epochs=epochs, lr=lr, ema=0.998, threads=threads)
    config = DHLNTraining(schedule=schedule, samples=SAMPLES)
    run = RunFolder(out)
    with run.hold():
        run.start(dump(schedule), resume)
        learned, others = load_faces("ytf68", data, "train"), load_faces("ytf68", data, "select")
        train_cache = prepare_faces(learned.labelled, cache, "train")
        select_cache = prepare_faces(others.labelled, cache, "select")
        torch.manual_seed(config.seed)
        model = PlainHourglass()
        faces = TrainingFaces(train_cache, config.samples, model.scheme, model.size, config.seed)
        reference = ReferenceFaces.from_cache(select_cache)
        trainer = Trainer(
            run, model, PointLoss(model.scheme, model.size), faces, schedule,
            lambda network: quick_figures(network, reference, (16, 32, 128), hallucinate=False),
        )  # fmt: skip
        if resume:
            trainer.restore()
        trained = trainer.fit()
        write_tensors(out / "weights" / "model.safetensors", dict(trained.state_dict()))
        scored = load_faces("ytf68", data, split)
        rows = score_sizes(
            trained, ReferenceFaces.from_cache(prepare_faces(scored.labelled, cache, split)), (16, 24, 32, 48, 64, 128)
        )
        parameters = sum(p.numel() for p in trained.parameters())
        write_json(
            out / "summary.json",
            {"method": "plain hourglass", "parameters": parameters, "split": split, "epochs": epochs,
             "seconds": round(trainer.seconds, 1), "landmarks": rows},
        )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
