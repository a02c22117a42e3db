"""What several rooms' tests share: tiny synthetic data in the real layout, and a tiny network."""

from __future__ import annotations

import pytest
import torch

from veilmark.faces.synthetic import write_dataset
from veilmark.sht.dhln import DHLN

TINY = {"size": 64, "structure_widths": (16, 32, 32), "detail_widths": (16, 32)}


@pytest.fixture
def one_thread():
    """Tiny networks gain nothing from threads, and tests share the machine; sums are in one order on any."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def synthetic_ytf68(tmp_path_factory):
    """A ``ytf68`` folder of rendered faces: 4 people to train on, 2 others to choose by."""
    root = tmp_path_factory.mktemp("synthetic")
    write_dataset(root, "train", people=4, frames=2, unlabelled=1, size=96)
    write_dataset(root, "val", people=2, frames=2, first_person=250, size=96)
    return root


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A folder with the weights of a tiny, untrained network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    model = DHLN(**TINY)
    with torch.no_grad():
        # Trusts everything, so that what it says is reported.
        model.trust.bias.fill_(5.0)
    model.save_pretrained(folder)
    return folder
