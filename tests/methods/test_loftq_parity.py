"""LoftQ beside Hugging Face peft's: the same steps on the same rounding, and an error that is never above its.

Their `loftq_init` asks for a CUDA device by name; here that name is answered by the CPU, on which bitsandbytes packs as
well. Their 2-bit tables (`NFQuantizer`) were taken out in peft 0.20: 2 bits have no counterpart there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from peftkit.adaptation import attach
from peftkit.method import METHODS
from peftkit.methods.inits import loftq
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense

theirs = pytest.importorskip("peft.utils.loftq_utils", reason="Hugging Face peft is not installed")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes packs for Hugging Face peft's LoftQ")

RANKS = (1, 4, 16)
SHAPES = ((64, 128), (128, 64), (96, 192))
TOLERANCE = 1e-4
"""What an error may be above another, as a fraction: singular value decompositions differ in the last digits."""


class OnCPU(TorchFunctionMode):
    """Read `cuda` as `cpu` wherever a tensor is asked to move."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            args = tuple("cpu" if _is_cuda(value) else value for value in args)
            kwargs = {key: "cpu" if _is_cuda(value) else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _is_cuda(value: Any) -> bool:
    return value == "cuda" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cuda"


def their_start(weight: torch.Tensor, rank: int, iterations: int, bits: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q and B A of their function."""
    with OnCPU():
        stored, down, up = theirs.loftq_init(weight, num_bits=bits, reduced_rank=rank, num_iter=iterations)
    return stored.float(), up @ down


def their_rounded(weight: torch.Tensor) -> torch.Tensor:
    """Return what bitsandbytes' NF4 of 64-blocks keeps, as their function packs."""
    packed, state = bitsandbytes.functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    return bitsandbytes.functional.dequantize_4bit(packed, state)


def their_rounded_8bit(weight: torch.Tensor) -> torch.Tensor:
    codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.to(torch.float16))
    return bitsandbytes.functional.int8_vectorwise_dequant(codes, scales)


def our_start(weight: torch.Tensor, rank: int, rounded: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Q and B A of our init on a format that rounds as told."""
    out, width = weight.shape
    pair = {"A": torch.zeros(rank, width), "B": torch.zeros(out, rank), "scale": 2.0}
    adapter = SimpleNamespace(**pair, exact=False, has_original=True, rounded=rounded, site=SimpleNamespace(id="layer"))
    down, up, taken_down, taken_up = loftq.loftq(adapter, weight)
    return rounded(weight - taken_up @ taken_down), 2.0 * up @ down


def normal(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def error(weight: torch.Tensor, stored: torch.Tensor, product: torch.Tensor) -> float:
    return float(torch.linalg.norm(weight - stored - product))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", RANKS)
def test_the_low_rank_step_on_the_same_residual_is_the_same(shape: tuple[int, int], rank: int) -> None:
    weight = normal(shape)
    residual = weight - their_rounded(weight)
    found = theirs._low_rank_decomposition(residual, reduced_rank=rank)
    adapter = SimpleNamespace(A=torch.zeros(rank, shape[1]), scale=4.0)
    down, up = loftq.principal(adapter, *loftq.decompose(residual, rank))
    torch.testing.assert_close(4.0 * up @ down, found["L"] @ found["R"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("bits", "rounded"), [(4, their_rounded), (8, their_rounded_8bit)])
def test_one_iteration_on_the_same_rounding_is_theirs(
    bits: int, rounded: Any, rank: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loftq, "ITERATIONS", 1)
    weight = normal(shape)
    stored, product = their_start(weight, rank, 1, bits)
    mine, own = our_start(weight, rank, rounded)
    torch.testing.assert_close(mine, stored, atol=1e-7, rtol=0)
    torch.testing.assert_close(own, product, atol=1e-6, rtol=0)
    assert product.abs().max() > 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [1, 3, loftq.ITERATIONS])
def test_after_more_iterations_the_error_is_never_above_theirs(
    iterations: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs is the last iterate, ours the best one."""
    monkeypatch.setattr(loftq, "ITERATIONS", iterations)
    for seed in range(3):
        weight = normal(shape, seed)
        ours = error(weight, *our_start(weight, 8, their_rounded))
        assert ours <= error(weight, *their_start(weight, 8, iterations)) * (1 + TOLERANCE)
        assert ours < torch.linalg.norm(weight - their_rounded(weight))


def test_a_model_in_our_nf4_starts_as_theirs_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through the format and the adapter themselves: NF4 without double quantization is their storage."""
    monkeypatch.setattr(loftq, "ITERATIONS", 1)
    model = tiny("llama", hidden_size=64, intermediate_size=128)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    quantize(model, Quantization(QUANTIZERS["nf4"].from_options({"block_size": 64, "double_quant": False})))
    method = METHODS["lora"].from_options({"targets": "linear", "rank": 4, "init": "loftq"})
    adaptation = attach(model, [method])
    for adapter in adaptation.parts[0].adapters.values():
        weight = plain[f"{adapter.site.path}.weight"]
        stored, product = their_start(weight, 4, 1)
        mine, own = dense(adapter.site.module), adapter.delta(weight).detach()
        torch.testing.assert_close(mine, stored, atol=1e-6, rtol=0)
        torch.testing.assert_close(own, product, atol=1e-5, rtol=0)
        assert error(weight, mine, own) <= error(weight, stored, product) * (1 + TOLERANCE)


def test_two_bits_have_no_counterpart_there() -> None:
    if hasattr(theirs, "NFQuantizer"):
        pytest.skip("this peft is older than 0.20 and still has tables of its own for 2 bits")
    with pytest.raises(ValueError, match="nf4 and int8"):
        their_start(normal((64, 128)), 8, 1, bits=2)
