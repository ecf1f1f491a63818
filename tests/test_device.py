"""Which device and precision a run takes: torch's accelerator, a measured product, and clear refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peftkit import device
from peftkit.device import Precision, choose_device, choose_precision
from peftkit.errors import PeftkitError
from peftkit.models.tiny import tiny

CPU, CUDA, XPU, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "xpu", "mps"))


def present(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Let torch find these accelerators, and no others."""
    found = torch.device(kinds[0]) if kinds else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    for kind in ("cuda", "mps", "xpu", "hpu"):
        if hasattr(torch, kind):
            monkeypatch.setattr(getattr(torch, kind), "is_available", lambda kind=kind: kind in kinds)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_takes_the_accelerator_that_torch_finds(kind, monkeypatch):
    present(monkeypatch, kind)
    assert choose_device("auto").type == kind
    assert choose_device(kind).type == kind
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("kinds", [(), ("hpu",)])
def test_auto_is_the_processor_without_one_and_beside_one_that_is_not_known(kinds, monkeypatch):
    present(monkeypatch, *kinds)
    assert choose_device("auto") == CPU


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    present(monkeypatch, "xpu")
    with pytest.raises(PeftkitError, match="'mps', but torch finds no Apple GPU here: use 'auto' or 'cpu' or 'xpu'"):
        choose_device("mps")
    present(monkeypatch)
    with pytest.raises(PeftkitError, match="'cuda', but torch finds no CUDA device here: use 'auto' or 'cpu'"):
        choose_device("cuda")


def model() -> nn.Module:
    return tiny("llama")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("native", "capability", "expected"), [(True, (9, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")]
)
def test_a_gpu_computes_in_halves_that_it_has(native, capability, expected, monkeypatch):
    # What is emulated does not count.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision("auto", CUDA, model()) == Precision(expected)
    if not native:
        with pytest.raises(PeftkitError, match="this CUDA device does not compute in bfloat16: use 'fp16' or 'fp32'"):
            choose_precision("bf16", CUDA, model())


def test_gpus_on_which_nothing_was_tried_say_so(monkeypatch):
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: True)
    name, notice = choose_precision("auto", XPU, model())
    assert name == "bf16"
    assert notice is not None
    assert "on xpu the computations of peftkit run by torch's own operations" in notice
    assert choose_precision("auto", MPS, model()).name == "fp32"
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
    with pytest.raises(PeftkitError, match="this Apple GPU does not compute in bfloat16"):
        choose_precision("bf16", MPS, model())


def able(monkeypatch: pytest.MonkeyPatch, **features: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)


def test_a_small_model_is_computed_in_fp32_on_every_processor(monkeypatch):
    able(monkeypatch, amx_bf16=True)

    def fail(*_: Any) -> Any:
        raise AssertionError("nothing is measured")

    monkeypatch.setattr(device, "product_seconds", fail)
    assert choose_precision("auto", CPU, model()) == Precision("fp32")


@pytest.mark.parametrize(("half", "expected"), [(0.2, "bf16"), (0.79, "bf16"), (0.81, "fp32"), (9.0, "fp32")])
@pytest.mark.parametrize("feature", ["amx_bf16", "avx512_bf16"])
def test_a_large_model_takes_what_a_product_of_its_size_is_quicker_in(half, expected, feature, monkeypatch):
    able(monkeypatch, **{feature: True})
    asked = []

    def seconds(*sizes: int) -> tuple[float, float]:
        asked.append(sizes)
        return 1.0, half

    monkeypatch.setattr(device, "product_seconds", seconds)
    monkeypatch.setattr(device, "SMALL", 1)
    name, notice = choose_precision("auto", CPU, model())
    assert name == expected
    assert notice is not None
    assert notice.startswith(f"precision {expected}: a product of 512 tokens with a weight [64, 32] takes")
    assert asked == [(32, 64, torch.get_num_threads())]


def test_without_instructions_for_it_bf16_is_not_taken_and_warned_of(monkeypatch):
    able(monkeypatch, avx2=True, avx512_f=True)
    monkeypatch.setattr(device, "SMALL", 1)
    assert choose_precision("auto", CPU, model()) == Precision("fp32")
    name, notice = choose_precision("bf16", CPU, model())
    assert name == "bf16"
    assert notice is not None
    assert "no instructions for bfloat16" in notice
    able(monkeypatch, avx512_bf16=True)
    assert choose_precision("bf16", CPU, model()) == Precision("bf16")


def test_a_product_is_measured_without_drawing_a_number():
    before = torch.get_rng_state()
    full, half = device.product_seconds(64, 32, 1)
    assert full > 0
    assert half > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_peak_of_a_gpu_is_what_it_tells(monkeypatch):
    monkeypatch.setattr(torch.xpu, "max_memory_allocated", lambda _: 7)
    monkeypatch.setattr(torch, "mps", SimpleNamespace(driver_allocated_memory=lambda: 5))
    assert device.peak_memory(XPU) == 7
    assert device.peak_memory(MPS) == 5
