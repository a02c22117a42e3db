"""Which device and which precision a computation gets."""

import torch

from veilmark.run.devices import choose_precision


def test_bfloat16_is_chosen_only_where_the_processor_multiplies_in_it(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision("auto", cpu) == "32-true"
    assert choose_precision("bf16-mixed", cpu) == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision("auto", cpu) == "bf16-mixed"
