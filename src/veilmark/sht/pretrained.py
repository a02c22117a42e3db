"""Weights by name, folder or hub id: checked before they are used, never a pickle."""

from __future__ import annotations

import inspect
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from veilmark.run.checkpoints import read_tensors
from veilmark.run.errors import ConfigError, WeightsError
from veilmark.sht.dhln import DHLN
from veilmark.sht.fptn import FPTN
from veilmark.sht.generated_detector import GeneratedDetector

DEFAULT_WEIGHTS = "dhln-ytf68"
"""The packaged weights of DHLN that are used when none are named."""

DEFAULT_TRANSFER = "fptn-ytf68"
"""The packaged weights of FPTN that are used when none are named."""

HUB = "hub:"
"""Prefix by which a user asks for the Hugging Face hub: ``hub:owner/name``."""

_PICKLES = {".pth", ".pt", ".bin", ".ckpt", ".pkl"}

Detector = DHLN | GeneratedDetector
"""Networks that find landmarks: those that are trained in one place, and those of a federation's clients."""

Network = TypeVar("Network", DHLN, FPTN, GeneratedDetector)


def packaged_weights(network: type[DHLN] | type[FPTN] | None = None) -> list[str]:
    """Names of the weights that arrive with the package.

    Args:
        network: Only those of this network, by which their names begin: ``dhln-``, ``fptn-``. All by default.
    """
    folder = files("veilmark") / "sht" / "weights"
    start = "" if network is None else f"{network.__name__.lower()}-"
    names = (entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())
    return sorted(name for name in names if name.startswith(start))


def weights_folder(weights: str | Path, network: type[DHLN] | type[FPTN] | None = None) -> Path:
    """The folder that a user's ``--weights`` names.

    Args:
        weights: Name of packaged weights, a folder, or ``hub:owner/name``.
        network: Whose weights the message lists, where there are none of that name.

    Raises:
        WeightsError: If there is nothing of that name, or it is a pickle.
    """
    name = str(weights)
    if name in packaged_weights():
        return Path(str(files("veilmark") / "sht" / "weights" / name))
    if name.startswith(HUB):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            wanted = ["config.json", "*.safetensors"]
            return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=wanted))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise WeightsError(f"{name} could not be fetched from the hub: {error}") from None
    path = Path(name)
    if path.suffix.lower() in _PICKLES:
        raise WeightsError(
            f"{path} is a pickle, which may run any code when loaded: refused; give a folder with "
            "config.json and model.safetensors"
        )
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        raise WeightsError(
            f"no weights {name!r}; packaged: {', '.join(packaged_weights(network)) or 'none'}; otherwise give a folder "
            f"with config.json and model.safetensors, or {HUB}owner/name"
        )
    return path


def load_detector(weights: str | Path = DEFAULT_WEIGHTS) -> Detector:
    """A network that finds landmarks: DHLN, or one with a generator in front (``veilmark export-client``).

    Raises:
        WeightsError: As :func:`load_dhln`.
    """
    config = weights_folder(weights, DHLN) / "config.json"
    try:
        generated = "network" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, TypeError):
        # Said by the loader, with what is wrong.
        generated = False
    return _load(GeneratedDetector, weights) if generated else load_dhln(weights)


def load_dhln(weights: str | Path = DEFAULT_WEIGHTS) -> DHLN:
    """DHLN from packaged weights, a folder or the hub, in evaluation mode on the CPU.

    Raises:
        WeightsError: If a file is missing, a pickle, or of another architecture: the message names the key.
    """
    return _load(DHLN, weights)


def load_fptn(weights: str | Path = DEFAULT_TRANSFER) -> FPTN:
    """FPTN from packaged weights, a folder or the hub, in evaluation mode on the CPU.

    Raises:
        WeightsError: As :func:`load_dhln`.
    """
    return _load(FPTN, weights)


def _load(network: type[Network], weights: str | Path) -> Network:
    """A network from weights whose every key, shape and value has been checked."""
    folder = weights_folder(weights, FPTN if network is FPTN else DHLN)
    config_path, tensors_path = folder / "config.json", folder / "model.safetensors"
    if not config_path.is_file():
        raise WeightsError(f"{config_path} does not exist; expected a folder written by save_pretrained")
    if not tensors_path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _PICKLES)
        also = f" ({', '.join(pickles)} there is a pickle and is never loaded)" if pickles else ""
        raise WeightsError(f"{tensors_path} does not exist{also}")
    try:
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{config_path} is not JSON: {error}") from None
    known = set(inspect.signature(network.__init__).parameters) - {"self"}
    unknown = sorted(set(config) - known)
    if unknown:
        raise WeightsError(
            f"{config_path}: {unknown[0]!r} is not an option of {network.__name__}; these weights are of another "
            "network"
        )
    try:
        model = network(**config)
    except (ConfigError, TypeError) as error:
        raise WeightsError(f"{config_path}: {error}") from None
    tensors, _ = read_tensors(tensors_path)
    expected = model.state_dict()
    for key in sorted(set(tensors) ^ set(expected)):
        where = "has no tensor" if key in expected else "has an extra tensor"
        raise WeightsError(f"{tensors_path} {where} {key!r}: these weights are of another architecture")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise WeightsError(
                f"{tensors_path}: {key!r} has shape {tuple(tensor.shape)}, {config_path} asks for "
                f"{tuple(expected[key].shape)}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{tensors_path}: {key!r} holds a value that is not finite")
    model.load_state_dict(tensors)
    return model.eval()
