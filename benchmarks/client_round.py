"""How fast a client of PPIDSG is, where its time goes, and what each saving gives. One thread, CPU time.

    OMP_NUM_THREADS=1 python benchmarks/client_round.py

The plain step below does what the published code does: gradients of D, F and C in G's steps, F's decoder there, F's
gradients in C's step, a forward pass of G for each of D, F and C, and every convolution as it comes. Leaving one thing
out at a time is a variant; leaving all of them out is what the package does, to the same weights. *Published* has F in
the published code's widths as well. Variants take turns in one process, so that
whatever else the machine does meets all of them. Figures go to ``benchmarks/results/client_round.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import conv2d

from veilmark.ppidsg.cipher import Cipher
from veilmark.ppidsg.client_training import ClientConfig, PPIDSGClient, frozen, to_unit
from veilmark.ppidsg.head_step import head_step
from veilmark.ppidsg.losses import (
    adversarial_loss,
    class_loss,
    discriminator_loss,
    reconstruction_loss,
    semantic_loss,
)
from veilmark.ppidsg.networks import FEATURES, Extractor
from veilmark.ppidsg.secret import Secret
from veilmark.run.checkpoints import Tensors
from veilmark.run.devices import choose_precision
from veilmark.run.folder import write_json
from veilmark.run.local_training import Training, sgd
from veilmark.run.progress import console, progress_bar, say

RESULTS = Path(__file__).parent / "results" / "client_round.json"

SHAPES = {"mnist": (1, 28), "cifar10": (3, 32)}
"""Channels and pixels of a side."""

WASTE = {
    "gradients": "gradients of D, F and C in G's steps",
    "decoder": "F's decoder in G's steps",
    "features": "F's gradients in C's step",
    "forward": "G's forward pass once more for each of D, F and C",
    "direct": "G's blocks and last layer, and F, as direct convolutions",
    "written": "C's gradient written down before it is added",
}
"""Work whose result is thrown away, is there already, or can be had for less."""

PUBLISHED = "published: all of it, and F as wide as in the published code"

OTHER = {"channels_last": "channels last in memory"}
"""Other ways to compute the same."""

HALVED = "as the package does it, precision: bf16-mixed"


class PublishedExtractor(Extractor):
    """F with the channels and the batch normalisation of the published code: twice the multiplications of ours."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        encoder: list[nn.Module] = []
        for enter, leave, halve in ((channels, 64, False), (64, 64, True), (64, 128, False), (128, FEATURES, True)):
            encoder += [nn.Conv2d(enter, leave, 3, padding=1), nn.BatchNorm2d(leave), nn.ReLU(inplace=True)]
            encoder += [nn.MaxPool2d(2)] if halve else []
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(FEATURES, 64, 4, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(64, channels, 4, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(n, 128, s/4, s/4)``, layer by layer."""
        features: Tensor = self.encoder(x)
        return features


class PlainClient(PPIDSGClient):
    """A client whose step is written out, with or without each piece of waste.

    Attributes:
        waste: Keys of ``WASTE`` and ``OTHER``, or ``wide``; ``halved`` for the package's own step in bfloat16.
        parts: CPU-seconds by part of the step.
    """

    waste: frozenset[str] = frozenset()

    def take_extractors(self, channels: int) -> None:
        """Keeps an extractor of the published widths beside its own."""
        wide = PublishedExtractor(channels)
        self.extractors = {
            False: (self.extractor, self.optimizers["extractor"]),
            True: (wide, sgd(wide, self.training, 1.0)),
        }

    def begin(self, waste: frozenset[str]) -> None:
        """Says what it wastes from now on."""
        self.waste, self.parts = waste - {"halved"}, defaultdict[str, float](float)
        self.halved = "halved" in waste
        self.extractor, self.optimizers["extractor"] = self.extractors["wide" in waste]
        layout = torch.channels_last if "channels_last" in waste else torch.contiguous_format
        for network in (self.generator, self.discriminator, self.extractor):
            network.to(memory_format=layout)  # type: ignore[call-overload]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what happens inside to a part."""
        began = time.process_time()
        yield
        self.parts[name] += time.process_time() - began

    def _step(self, rows: Tensor, rng: np.random.Generator, classes: float, shared: Tensors) -> dict[str, float]:
        if not self.waste:
            return super()._step(rows, rng, classes, shared)
        config, waste = self.config, self.waste
        x, y, labels = to_unit(self.pictures[rows]), to_unit(self.scrambled[rows]), self.labels[rows]
        if "channels_last" in waste:
            x, y = (pictures.contiguous(memory_format=torch.channels_last) for pictures in (x, y))
        others = (self.discriminator, self.extractor, self.classifier)
        with nullcontext() if "gradients" in waste else frozen(*others):
            for _ in range(config.generator_steps):
                generated = self._generate(x)
                features = self._features(generated)
                if "decoder" in waste and isinstance(self.extractor, Extractor):
                    self.extractor.decoder(features)
                total = adversarial_loss(self.discriminator(generated))
                total = total + config.semantic * semantic_loss(generated, y)
                total = total + classes * class_loss(self.classifier(features), labels)
                self._descend(total, "generator")
        if "forward" in waste:
            for _ in range(3):
                self._generate(x)
        pictures, said = self.history.exchange(generated.detach(), labels, rng)
        self._learn_plainly(pictures, said)
        verdicts = self.discriminator(torch.cat([y, pictures]))
        self._descend(discriminator_loss(*verdicts.chunk(2)), "discriminator")
        return {}

    # The package's own parts, timed.
    def _generator_step(self, *words: Any) -> Any:
        with self.part("G's steps"):
            return super()._generator_step(*words)

    def _extractor_step(self, pictures: Tensor) -> dict[str, float]:
        with self.part("F's step"):
            return super()._extractor_step(pictures)

    def _classifier_step(self, pictures: Tensor, labels: Tensor) -> dict[str, float]:
        with self.part("C's step"):
            return super()._classifier_step(pictures, labels)

    def _discriminator_step(self, scrambled: Tensor, pictures: Tensor) -> float:
        with self.part("D's step"):
            return super()._discriminator_step(scrambled, pictures)

    def _learn_plainly(self, pictures: Tensor, labels: Tensor) -> None:
        assert isinstance(self.extractor, Extractor)
        again = self.extractor.decoder(self._features(pictures))
        self._descend(reconstruction_loss(again, pictures), "extractor")
        with nullcontext() if "features" in self.waste else torch.no_grad():
            features = self._features(pictures)
        if "written" not in self.waste and "features" not in self.waste:
            optimizer = self.optimizers["classifier"]
            assert isinstance(optimizer, torch.optim.SGD)
            head_step(self.classifier, optimizer, features, labels)
            return
        self._descend(class_loss(self.classifier(features), labels), "classifier")

    def _generate(self, x: Tensor) -> Tensor:
        if "direct" not in self.waste:
            return self.generator(x)
        *layers, last, squash = self.generator.layers
        for layer in layers:
            x = layer(x)
        found: Tensor = squash(conv2d(x, last.weight, last.bias, padding=3))
        return found

    def _features(self, x: Tensor) -> Tensor:
        direct = "direct" in self.waste and isinstance(self.extractor, Extractor)
        found: Tensor = self.extractor.encoder(x) if direct else self.extractor(x)
        return found

    def _descend(self, loss: Tensor, name: str) -> None:
        # Wasted gradients lie about; they must not be taken for those of this step.
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self._step_of(name)


def made_client(shape: str, images: int, batch: int, widths: tuple[int, int], seed: int = 0) -> PlainClient:
    """A client with random pictures: speed does not depend on what they show."""
    channels, side = SHAPES[shape]
    draw = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (images, channels, side, side), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 10, (images,), generator=draw)
    training = Training(batch=batch)
    made = PlainClient(
        pictures,
        labels,
        10,
        Cipher(Secret(bytes(32))),
        Secret(bytes(32)),
        ClientConfig(),
        training=training,
        head_widths=widths,
    )
    made.take_extractors(channels)
    made.begin(frozenset())
    return made


def variants(extra: bool) -> dict[str, frozenset[str]]:
    """What is measured, by name."""
    everything = frozenset(WASTE)
    found = {PUBLISHED: everything | {"wide"}, "plain: all of the waste": everything}
    found |= {f"plain without: {words}": everything - {name} for name, words in WASTE.items()}
    found["as the package does it"] = frozenset()
    if choose_precision("auto", torch.device("cpu")) == "bf16-mixed":
        found[HALVED] = frozenset({"halved"})
    if extra:
        found |= {f"as the package, but {words}": frozenset({name}) for name, words in OTHER.items()}
    return found


def measure(shape: str, images: int, batch: int, repeats: int, widths: tuple[int, int], extra: bool) -> dict[str, Any]:
    """Images per CPU-second of each variant, and the shares of the parts of a round.

    Args:
        shape: A key of ``SHAPES``.
        images: Images of the client: one pass is a round.
        batch: Images a step.
        repeats: Rounds of each variant; medians are given, the first is left out.
        widths: Of C's hidden layers.
        extra: Whether to try ``OTHER`` too.
    """
    client, shared = made_client(shape, images, batch, widths), {}
    shared = {name: value.clone() for name, value in client.generator.state_dict().items()}
    seconds: dict[str, list[float]] = defaultdict(list)
    parts: dict[str, float] = defaultdict(float)
    named = variants(extra)
    with progress_bar("rounds") as bar:
        task = bar.add_task(shape, total=(repeats + 1) * len(named), note="")
        for repeat in range(repeats + 1):
            for name, waste in named.items():
                client.begin(waste)
                began = time.process_time()
                client.train_round(shared, 0)
                spent = time.process_time() - began
                bar.advance(task)
                if repeat:
                    seconds[name].append(spent)
                if repeat and not waste:
                    for part, value in client.parts.items():
                        parts[part] += value
                    parts["restart of C, and the rest"] += spent - sum(client.parts.values())
    client.begin(frozenset())
    began = time.process_time()
    client.predict(client.pictures)
    scoring = images / (time.process_time() - began)
    rates = {name: images / float(np.median(values)) for name, values in seconds.items()}
    return {
        "images_per_second": rates,
        "ratio_to_published": {name: value / rates[PUBLISHED] for name, value in rates.items()},
        "ratio_to_plain": {name: value / rates["plain: all of the waste"] for name, value in rates.items()},
        "share_of_time": {name: value / sum(parts.values()) for name, value in parts.items()},
        "scored_per_second": scoring,
        "images": images,
        "batch": batch,
        "repeats": repeats,
    }


def peak_memory(shape: str, images: int, batch: int, widths: tuple[int, int], halved: bool) -> float:
    """The largest resident memory, in MB, of a process in which one client trains a round as the package does it."""
    words = [sys.executable, __file__, "--alone", shape, "--images", str(images), "--batch", str(batch)]
    words += ["--widths", *map(str, widths), *(["--halved"] if halved else [])]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def alone(shape: str, images: int, batch: int, widths: tuple[int, int], halved: bool) -> float:
    """A round in this process, and its largest resident memory in MB."""
    client = made_client(shape, images, batch, widths)
    client.halved = halved
    client.train_round({name: value.clone() for name, value in client.generator.state_dict().items()}, 0)
    client.predict(client.pictures)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def table(shape: str, found: dict[str, Any]) -> Table:
    """What was measured, for reading."""
    made = Table("variant", "images / CPU-second", "to published", "to plain", title=f"{shape}: one client, one core")
    for name, value in found["images_per_second"].items():
        made.add_row(
            name, f"{value:.1f}", *(f"{found[f'ratio_to_{base}'][name]:.2f}" for base in ("published", "plain"))
        )
    made.add_section()
    for name, value in found["share_of_time"].items():
        made.add_row(f"share of {name}", f"{100 * value:.1f} %")
    made.add_section()
    made.add_row("scored", f"{found['scored_per_second']:.1f}")
    made.add_row("peak memory of the process", f"{found['peak_rss_mb']:,.0f} MB")
    if "halved_peak_rss_mb" in found:
        made.add_row("the same, precision: bf16-mixed", f"{found['halved_peak_rss_mb']:,.0f} MB")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="default: both")
    parser.add_argument("--images", type=int, default=128, help="images of the client (default: 128)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: 64)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each variant (default: 5)")
    parser.add_argument("--widths", type=int, nargs=2, default=(4096, 1024), help="of C's layers (default: 4096 1024)")
    parser.add_argument("--extra", action="store_true", help="channels last too")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the figures")
    parser.add_argument("--alone", choices=list(SHAPES), help="play one round and print its peak memory; no figures")
    parser.add_argument("--halved", action="store_true", help="with --alone: in bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    widths = (args.widths[0], args.widths[1])
    if args.alone:
        sys.stdout.write(f"{alone(args.alone, args.images, args.batch, widths, args.halved)}\n")
        return
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {_processor()}, one thread",
        "shapes": {},
    }
    # Before the rest: a child's peak counts that of the process it was forked from, which is small as yet.
    precisions = {"peak_rss_mb": False} | ({"halved_peak_rss_mb": True} if HALVED in variants(False) else {})
    peaks = {
        shape: {
            name: peak_memory(shape, args.images, args.batch, widths, halved) for name, halved in precisions.items()
        }
        for shape in args.shapes
    }
    for shape in args.shapes:
        figures = measure(shape, args.images, args.batch, args.repeats, widths, args.extra)
        figures |= peaks[shape]
        found["shapes"][shape] = figures
        console.print(table(shape, figures))
    args.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.results, found)
    say(f"{json.dumps({k: found[k] for k in ('date', 'machine')})}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
