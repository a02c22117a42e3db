"""Checkpoints: what is written comes back bit for bit, and nothing but safetensors is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from veilmark.run.checkpoints import pack_optimizer, read_tensors, unpack_optimizer, write_tensors
from veilmark.run.errors import WeightsError


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, -0.0, float("inf")]),
        torch.arange(6, dtype=torch.float64).reshape(2, 3) / 7,
        torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        torch.tensor(7),  # a number
        torch.zeros(0, 3),  # nothing in it
        torch.tensor([1, 2], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        nn.Parameter(torch.ones(2)),  # with a gradient's history
    ],
)
def test_tensors_and_metadata_come_back(tmp_path: Path, tensor: Tensor) -> None:
    path = tmp_path / "new" / "a.safetensors"
    write_tensors(path, {"net.0.weight": tensor}, {"step": "3", "name": "ü"})
    tensors, metadata = read_tensors(path)
    assert list(tensors) == ["net.0.weight"]
    assert tensors["net.0.weight"].dtype == tensor.dtype
    assert torch.equal(tensors["net.0.weight"], tensor)
    assert metadata == {"step": "3", "name": "ü"}
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_metadata_may_be_left_out(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    assert read_tensors(tmp_path / "a.safetensors")[1] == {}


class Payload:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])  # the name must not matter
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_and_not_run(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path, mark = tmp_path / f"weights{suffix}", tmp_path / "was run"
    torch.save({"a": Payload(str(mark))}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="pickle") as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",  # empty
        lambda data: data[:4],  # within the length of the header
        lambda data: data[:20],  # within the header
        lambda data: data[:-1],  # the last byte is missing
        lambda data: data + b"x",  # one byte too many
        lambda data: b"\xff" * 8 + data[8:],  # a header longer than the file
        lambda data: data[:8] + b"x" + data[9:],  # a header that is no JSON
        lambda data: b"<html>404 Not Found</html>",  # a failed download
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.arange(100.0), "b": torch.ones(3, 3)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors does not exist"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError) as caught:
        read_tensors(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)})

    def killed(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("veilmark.run.checkpoints.save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            write_tensors(path, {"a": torch.zeros(3)})
    assert torch.equal(read_tensors(path)[0]["a"], torch.ones(3))


def _network() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    groups = [{"params": network[0].parameters(), "weight_decay": 0.1}, {"params": network[2].parameters()}]
    return network, torch.optim.AdamW(groups, lr=0.05)


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(inputs).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("with_state", "same"), [(True, True), (False, False)])
def test_training_goes_on_to_the_same_bits(tmp_path: Path, with_state: bool, same: bool) -> None:
    unbroken, optimizer = _network()
    _train(unbroken, optimizer, range(0, 3))
    write_tensors(tmp_path / "network.safetensors", dict(unbroken.state_dict()))
    write_tensors(tmp_path / "optimizer.safetensors", pack_optimizer(optimizer))
    _train(unbroken, optimizer, range(3, 6))

    resumed, fresh = _network()
    resumed.load_state_dict(read_tensors(tmp_path / "network.safetensors")[0])
    if with_state:
        unpack_optimizer(fresh, read_tensors(tmp_path / "optimizer.safetensors")[0])
    _train(resumed, fresh, range(3, 6))
    ends = zip(unbroken.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in ends) is same


def test_an_optimizer_without_state_packs_to_nothing_and_keeps_its_settings() -> None:
    _, optimizer = _network()
    assert pack_optimizer(optimizer) == {}
    unpack_optimizer(optimizer, {})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.01]
