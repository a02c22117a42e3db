"""The peer, breaching: its environment, its pictures out of gradients, and the script that runs in there.

    python peer_breaching.py gradients.safetensors pictures.safetensors

breaching needs a torchvision that fits its torch, so it lives in a virtual environment of its own, and this file
imports nothing of Veilmark. ``gradients.safetensors`` holds, for each picture ``n``, ``weights.n.k`` and
``gradients.n.k`` of the k-th parameter of the DLG paper's network for 32 px in colour, and ``labels (n,)``; its
metadata ``attacks`` is JSON, name to ``config`` (one of breaching's own), ``overrides`` of it, and ``labelled``:
whether the label is told. ``pictures.safetensors`` becomes ``<name>.pictures (n, 3, 32, 32)`` in [-1, 1] and
``<name>.seconds (n,)``, CPU time; its metadata holds the versions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from peer_environment import call, environment

PEER = "breaching==0.1.2"
BUILT_ON = ("torch==2.14.1", "torchvision==0.29.1", "hydra-core==1.3.7", "scipy==1.17.1", "safetensors==0.8.0")
"""What its optimising attacks import. It asks for lpips as well, which they do not."""
SIDE = 32
WARM_UP = 5
"""Steps before those that are timed: TorchScript compiles in them."""


def make_environment(folder: Path) -> Path:
    """The peer's virtual environment, of this very Python, made if it is not there; returns its Python.

    Raises:
        RuntimeError: If it cannot be made; the message holds the end of pip's output.
    """
    return environment(folder, BUILT_ON, ["--no-deps", PEER])


def run_peer(
    python: Path,
    weights: Sequence[Sequence[Tensor]],
    gradients: Sequence[Sequence[Tensor]],
    labels: Tensor,
    attacks: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Runs this file in the peer's environment.

    Args:
        python: The environment's Python.
        weights: Of each picture's network, parameter by parameter.
        gradients: Of the loss of each picture, likewise.
        labels: ``(n,)`` int64.
        attacks: As above.

    Returns:
        What ``pictures.safetensors`` holds; the versions.

    Raises:
        RuntimeError: If the script fails; the message holds the end of its output.
    """
    kinds = {"weights": weights, "gradients": gradients}
    tensors = {
        f"{kind}.{number}.{place}": tensor.detach().clone()
        for kind, all_of_them in kinds.items()
        for number, own in enumerate(all_of_them)
        for place, tensor in enumerate(own)
    }
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "gradients.safetensors", Path(folder) / "pictures.safetensors"
        save_file({**tensors, "labels": labels}, given, {"attacks": json.dumps(attacks)})
        call([str(python), __file__, str(given), str(answer)])
        with safe_open(answer, "pt") as file:  # type: ignore[no-untyped-call]
            return load_file(answer), file.metadata()


def find_pictures(
    tensors: Mapping[str, Tensor], attacks: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`run_peer` returns, computed here: only where breaching is installed."""
    import breaching  # type: ignore[import-not-found]
    import torchvision  # type: ignore[import-not-found]
    from breaching.cases.models import construct_model  # type: ignore[import-not-found]
    from omegaconf import OmegaConf  # type: ignore[import-not-found]

    classes = len(tensors["weights.0.7"])
    # With mean and deviation of a half the peer's bounds, 0 and 1 before they are normalised, are ours.
    about = OmegaConf.create({
        "modality": "vision", "task": "classification", "classes": classes, "shape": [3, SIDE, SIDE],
        "name": "given", "mean": [0.5] * 3, "std": [0.5] * 3,
    })  # fmt: skip
    network, loss = construct_model("lenet_zhu", about, pretrained=False)
    places = range(len(list(network.parameters())))

    def attacked(number: int, config: Any, labelled: bool) -> Tensor:
        torch.manual_seed(number)
        weights, gradients = ([tensors[f"{kind}.{number}.{k}"] for k in places] for kind in ("weights", "gradients"))
        user = {
            "num_data_points": 1, "labels": tensors["labels"][number : number + 1] if labelled else None,
            "local_hyperparams": None,
        }  # fmt: skip
        server = [{"parameters": weights, "buffers": None, "metadata": about}]
        shared = [{"gradients": gradients, "buffers": None, "metadata": user}]
        found, _ = breaching.attacks.prepare_attack(network, loss, config).reconstruct(server, shared, {})
        return found["data"]

    answers: dict[str, Tensor] = {}
    for name, attack in attacks.items():
        config = breaching.get_attack_config(attack["config"], overrides=list(attack["overrides"]))
        short = config.copy()
        short.optim.max_iterations = WARM_UP
        for _ in range(3):
            attacked(0, short, attack["labelled"])
        pictures, seconds = [], []
        for number in range(len(tensors["labels"])):
            began = time.process_time()
            pictures.append(attacked(number, config, attack["labelled"]).clamp(-1, 1))
            seconds.append(time.process_time() - began)
        answers |= {f"{name}.pictures": torch.cat(pictures), f"{name}.seconds": torch.tensor(seconds)}
    return answers, {"breaching": PEER, "torch": torch.__version__, "torchvision": torchvision.__version__}


def main() -> None:
    # Of its TorchScript and hydra: true, and nothing to be done here.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gradients", type=Path)
    parser.add_argument("pictures", type=Path)
    args = parser.parse_args()
    with safe_open(args.gradients, "pt") as file:
        attacks = json.loads(file.metadata()["attacks"])
    answers, about = find_pictures(load_file(args.gradients), attacks)
    save_file(answers, args.pictures, about)


if __name__ == "__main__":
    main()
