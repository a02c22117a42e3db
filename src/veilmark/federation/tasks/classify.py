"""Classification of small pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from veilmark.federation.image_sets import LAYOUTS, ImageSet, load_image_set, resized
from veilmark.federation.partition import Partition, dirichlet, iid
from veilmark.federation.tasks.task import Data, Learner, Task
from veilmark.ppidsg.client_training import to_unit
from veilmark.ppidsg.losses import class_loss
from veilmark.ppidsg.networks import Classifier, Extractor, feature_count
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training
from veilmark.run.seeds import rng_for

Network = TypeVar("Network", bound=nn.Module)


class ClassifyConfig(BaseModel):
    """Data and network of the task.

    Attributes:
        layout: How the pictures are stored.
        per_client: Pictures of each client; none deals all of them.
        test: Test pictures that clients are scored on, drawn once for all seeds; none takes all.
        test_part: Which draw of so many: each has others, for a last look at what was chosen on an earlier one.
        partition: ``iid`` or ``dirichlet``.
        alpha: Concentration of the Dirichlet partition.
        head_widths: Widths of the classifier's two hidden layers.
        class_scores: Whether clients say of each class how much of the public test set is right; else of the whole set
            only, and their accuracy on their own mix is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: str = "digits"
    per_client: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)
    test_part: int = Field(0, ge=0)
    partition: str = "iid"
    alpha: float | None = None
    head_widths: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (4096, 1024)
    class_scores: bool = True

    @field_validator("layout")
    @classmethod
    def _layout(cls, layout: str) -> str:
        if layout not in LAYOUTS:
            raise ValueError(f"no image set of that name; known: {', '.join(LAYOUTS)}")
        return layout

    @field_validator("partition")
    @classmethod
    def _partition(cls, partition: str) -> str:
        if partition not in ("iid", "dirichlet"):
            raise ValueError("known: iid, dirichlet")
        return partition


class ClassifierNetwork(nn.Module):
    """F's encoder and C in one: what is trained where nothing is hidden.

    Args:
        channels: 1 or 3.
        side: Pixels.
        classes: Number of classes.
        head_widths: Widths of the hidden layers.
    """

    def __init__(self, channels: int, side: int, classes: int, head_widths: tuple[int, int]) -> None:
        super().__init__()
        self.extractor = Extractor(channels).encoder
        self.classifier = Classifier(feature_count(channels, side), classes, head_widths)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pictures in [-1, 1]."""
        logits: Tensor = self.classifier(self.extractor(x))
        return logits


class ClassifierLearner(Learner):
    """A classifier beside one owner's pictures.

    Args:
        model: The network.
        data: The pictures; targets are classes ``(n,)`` int64.
    """

    def __init__(self, model: nn.Module, data: Data) -> None:
        self.model, self.data, self.examples = model, data, len(data)

    def to(self, device: torch.device | str) -> ClassifierLearner:
        """This learner on another device."""
        self.model, self.data = self.model.to(device), self.data.to(device)
        return self

    def loss(self, rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy, and the share of right answers in percent."""
        labels = self.data.targets[rows]
        logits = self.model(to_unit(self.data.inputs[rows]))
        loss = class_loss(logits, labels)
        right = 100 * float((logits.argmax(dim=1) == labels).float().mean())
        return loss, {"loss": float(loss.detach()), "accuracy": right}

    def predict(self, inputs: Tensor) -> Tensor:
        """Classes ``(n,)``."""
        inputs = inputs.to(self.data.inputs.device)
        with torch.inference_mode():
            return torch.cat([self.model(to_unit(some)).argmax(dim=1) for some in torch.split(inputs, 256)]).cpu()


class Classify(Task):
    """Which class a picture belongs to.

    Args:
        config: Data and network.
        classes: Names of the classes.
        channels: 1 or 3.
        side: Pixels of a picture, after it was enlarged where it was small.
        test: Untouched test pictures.
        counts: ``(clients, classes)``: how many pictures of each class clients have, where that is known: a simulation
            knows, a server does not.
    """

    name = "classify"
    metrics = ("loss", "accuracy")
    score_name = "accuracy"
    score_words = "accuracy, %"

    def __init__(
        self,
        config: ClassifyConfig,
        classes: tuple[str, ...],
        channels: int,
        side: int,
        test: Data,
        counts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.config, self.classes, self.channels, self.side, self.test = config, classes, channels, side, test
        self.counts = counts
        self.head_widths, self.test_inputs = config.head_widths, test.inputs

    def description(self) -> dict[str, Any]:
        """Channels, side in pixels, names of the classes, widths of the head."""
        sizes = {"channels": self.channels, "side": self.side, "head_widths": list(self.head_widths)}
        return sizes | {"classes": list(self.classes)}

    def seeded(self, make: Callable[[], Network], seed: int) -> Network:
        """A network whose first weights depend on the seed only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng_for(seed, 23).integers(2**31)))
            return make()

    def network(self, seed: int) -> ClassifierNetwork:
        """The classifier that is trained where nothing is hidden."""
        return self.seeded(
            lambda: ClassifierNetwork(self.channels, self.side, len(self.classes), self.head_widths), seed
        )

    def learner(self, data: Data, training: Training, rounds: int, seed: int, number: int) -> ClassifierLearner:
        """The classifier with an owner's pictures."""
        return ClassifierLearner(self.network(seed), data)

    def scored(self) -> dict[str, int | None]:
        """The accuracy, and that of each class unless the config says otherwise."""
        return {"accuracy": 1, "of_classes": len(self.classes)} if self.config.class_scores else {"accuracy": 1}

    def score(self, answers: Tensor, own: Data) -> dict[str, list[float]]:
        """Accuracy in percent, on the whole test set and of each of its classes unless the config says otherwise.

        Nothing of the client's own examples is in it: weighted by their mix of classes, a figure a round would tell
        that mix to whoever can compute the accuracies himself, as the server of one model for all can. What networks
        that stay with a client are right about says something of the mix all the same: an audit asks how much.
        """
        labels = self.test.targets
        said = {"accuracy": [100 * float((answers == labels).sum()) / len(labels)]}
        if self.config.class_scores:
            said["of_classes"] = accuracy_of_classes(answers, labels, len(self.classes)).tolist()
        return said

    def summary(self, scores: dict[int, dict[str, list[float]]], clients: int) -> dict[str, Any]:
        """Accuracy in percent over the clients, of each, and on their own mixes where these and class scores are known.

        A class without test pictures is left out of a mix.
        """
        of_client = {number: score["accuracy"][0] for number, score in sorted(scores.items())}
        accuracy = list(of_client.values())
        own: list[float] = []
        there = np.bincount(self.test.targets.numpy(), minlength=len(self.classes)) > 0
        for number, score in scores.items():
            mix = there * np.asarray(self.counts[number] if self.counts is not None else 0, dtype=np.float64)
            if mix.any() and self.config.class_scores:
                own.append(float(mix @ np.asarray(score["of_classes"]) / mix.sum()))
        return {
            "mean": float(np.mean(accuracy)),
            "min": min(accuracy),
            "max": max(accuracy),
            "per_client": [of_client.get(number) for number in range(clients)],
            "own_distribution": float(np.mean(own)) if own else None,
        }


def accuracy_of_classes(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Accuracy in percent of each class.

    Args:
        answers: ``(n,)`` classes that were said.
        labels: ``(n,)`` those that are true.
        classes: How many there are.

    Returns:
        ``(classes,)``; 0 for a class that no label names.
    """
    right = torch.bincount(labels[answers == labels], minlength=classes)
    return 100 * right / torch.bincount(labels, minlength=classes).clamp(min=1)


def load_classify(
    config: ClassifyConfig, data: Path | None, clients: int, seed: int
) -> tuple[Classify, list[Data], dict[str, Any], dict[str, str]]:
    """The task and its owners' pictures.

    Args:
        config: What to load.
        data: Folder of the set; None for the bundled ones.
        clients: How many owners.
        seed: Of the partition.

    Returns:
        The task, the owners' pictures, what ``summary.json`` says of the partition, and what could not be read.

    Raises:
        ConfigError: If pictures do not suffice, or do not fit the networks.
        DataError: If files are missing or damaged.
    """
    train, test = (load_image_set(config.layout, data, split) for split in ("train", "test"))
    pictures = resized(train.images)
    channels, height, width = pictures.shape[1:]
    if height != width:
        raise ConfigError(f"pictures of {config.layout} are {width} x {height}; the networks take squares")
    # Refuses a side that the networks do not take before anything is dealt.
    feature_count(channels, height)
    if config.test is not None:
        if config.test > len(test):
            raise ConfigError(f"test = {config.test}: the set has {len(test)} test pictures; take fewer")
        parts = len(test) // config.test
        if config.test_part >= parts:
            raise ConfigError(
                f"test_part = {config.test_part}: of {len(test)} test pictures {parts} draws of {config.test} can be"
                f" made, 0 to {parts - 1}"
            )
        first = config.test_part * config.test
        test = test.take(np.sort(rng_for(0, 24).permutation(len(test))[first : first + config.test]))
    elif config.test_part:
        raise ConfigError(f"test_part = {config.test_part} needs test, the number of pictures of a part")
    kinds = [_kind(pictures), _kind(resized(test.images))]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"{data or config.layout}: training pictures are {kinds[0]}, test pictures {kinds[1]}; make them alike"
        )
    part = _deal(train, config, clients, seed)
    partition = part.summary(train.labels, train.classes)
    test_data = _as_data(test.images, test.labels, "test")
    task = Classify(config, train.classes, channels, height, test_data, partition["counts"])
    owners = [_as_data(pictures[rows], train.labels[rows], "train", rows.tolist()) for rows in part.clients]
    return task, owners, partition, train.skipped | test.skipped


def _kind(pictures: NDArray[np.uint8]) -> str:
    channels, height, width = pictures.shape[1:]
    return f"{'gray' if channels == 1 else 'RGB'}, {width} x {height}"


def without_owner(config: ClassifyConfig, data: Path | None, owners: Sequence[Data], most: int) -> Data | None:
    """Training pictures that no owner was dealt.

    Args:
        config: What was loaded.
        data: Folder of the set; None for the bundled ones.
        owners: Who has which pictures.
        most: How many at most; the same ones for every partition as far as they are free.

    Returns:
        Pictures drawn like the owners'; None if every picture has an owner.
    """
    train = load_image_set(config.layout, data, "train")
    owned = {name for owner in owners for name in owner.names}
    free = [row for row in rng_for(0, 26).permutation(len(train)).tolist() if f"train/{row}".encode() not in owned]
    rows = np.sort(np.array(free[:most], dtype=np.int64))
    return _as_data(train.images[rows], train.labels[rows], "train", rows.tolist()) if free else None


def _deal(train: ImageSet, config: ClassifyConfig, clients: int, seed: int) -> Partition:
    rng = rng_for(seed, 25)
    if config.partition == "iid":
        if config.alpha is not None:
            raise ConfigError(f"alpha = {config.alpha} belongs to partition = dirichlet; leave it out, or change that")
        return iid(train.labels, clients, config.per_client, rng)
    if config.alpha is None:
        raise ConfigError("partition = dirichlet needs alpha, e.g. --set data.alpha=0.5")
    return dirichlet(train.labels, clients, config.per_client, config.alpha, rng)


def _as_data(pictures: Any, labels: Any, split: str, rows: list[int] | None = None) -> Data:
    rows = list(range(len(pictures))) if rows is None else rows
    names = tuple(f"{split}/{row}".encode() for row in rows)
    return Data(torch.from_numpy(resized(pictures)), torch.from_numpy(labels), names)
