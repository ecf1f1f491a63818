"""The device and precision that a run uses, and the memory it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from peftkit import machine
from peftkit.errors import PeftkitError
from peftkit.layout import GROUPS, Layout, own_parameters


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto` or a kind of it; `auto` is torch's accelerator where that is one of them.

    Raises PeftkitError for a device that is not there.
    """
    if wanted == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        wanted = found.type if found is not None and found.type in ACCELERATORS else "cpu"
    elif wanted != "cpu" and not getattr(torch, wanted).is_available():
        here = [kind for kind in ACCELERATORS if getattr(torch, kind).is_available()]
        raise PeftkitError(
            f"train.device is '{wanted}', but torch finds no {ACCELERATORS[wanted]} here: use "
            f"{' or '.join(map(repr, ['auto', 'cpu', *here]))}."
        )
    return torch.device(wanted)


class Precision(NamedTuple):
    """What activations are computed in, and what a person should know of it."""

    name: str
    """`fp32`, `bf16` or `fp16`."""
    notice: str | None = None


def choose_precision(wanted: str, device: torch.device, model: nn.Module) -> Precision:
    """Return the precision for `auto` or a name; `auto` is what the device is quick at.

    A GPU computes in bf16 where it has it, and one with matrix units for halves alone in fp16. On a processor with
    instructions for bf16 a product as large as those of `model` is measured in both, so that the answer hangs on the
    machine: a run keeps it in its checkpoints. Models below 50 million weights in linear maps are computed in fp32
    there. Raises PeftkitError for bf16 where the device has none.
    """
    if wanted == "auto":
        chosen = AUTOMATIC[device.type](model) if device.type in AUTOMATIC else Precision("fp32")
    elif wanted == "bf16" and device.type != "cpu" and not HAVE_BF16[device.type]():
        raise PeftkitError(
            f"train.precision is 'bf16', but this {ACCELERATORS[device.type]} does not compute in bfloat16: use 'fp16' "
            "or 'fp32'."
        )
    else:
        chosen = Precision(wanted, SLOW if wanted == "bf16" and device.type == "cpu" and not _quick_cpu() else None)
    if device.type in UNTRIED:
        told = f"on {device.type} the computations of peftkit run by torch's own operations, and were never tried"
        return Precision(chosen.name, told if chosen.notice is None else f"{chosen.notice}; {told}")
    return chosen


def usual_precision(device: torch.device) -> Precision:
    """Return what `auto` takes on `device` for a model of common size, with the reason.

    On a processor with instructions for bf16 a product with a weight [2048, 2048] is measured.
    """
    if device.type != "cpu":
        return choose_precision("auto", device, nn.Module())
    if not _quick_cpu():
        return Precision("fp32", "this processor has no instructions for bfloat16 (AMX, AVX512-BF16)")
    chosen = _measured(2048, 2048)
    return Precision(chosen.name, f"{chosen.notice}; a model below {SMALL:,} weights in linear maps takes fp32")


def _of_cuda(model: nn.Module) -> Precision:
    if HAVE_BF16["cuda"]():
        return Precision("bf16")
    # From Volta on there are matrix units for halves; before, they are no quicker than fp32.
    return Precision("fp16") if torch.cuda.get_device_capability() >= (7, 0) else Precision("fp32")


def _of_xpu(model: nn.Module) -> Precision:
    return Precision("bf16" if HAVE_BF16["xpu"]() else "fp16")


def _of_cpu(model: nn.Module) -> Precision:
    if not _quick_cpu():
        return Precision("fp32")
    sites = [site for site in Layout(model).linears if site.role in GROUPS["linear"]]
    if sum(site.inputs * site.outputs for site in sites) < SMALL:
        return Precision("fp32")
    inputs, outputs = max(((site.inputs, site.outputs) for site in sites), key=lambda sizes: sizes[0] * sizes[1])
    return _measured(min(inputs, WIDEST), min(outputs, WIDEST))


def _measured(inputs: int, outputs: int) -> Precision:
    full, half = product_seconds(inputs, outputs, torch.get_num_threads())
    name = "bf16" if half < MARGIN * full else "fp32"
    times = f"{_milliseconds(half)} in bf16 and {_milliseconds(full)} in fp32"
    return Precision(
        name, f"precision {name}: a product of {ROWS} tokens with a weight [{outputs}, {inputs}] takes {times}"
    )


def _milliseconds(seconds: float) -> str:
    """Write a time with two digits that count, and never with an exponent."""
    return f"{float(f'{1000 * seconds:.2g}'):g} ms"


@cache
def product_seconds(inputs: int, outputs: int, threads: int) -> tuple[float, float]:
    """Measure a product of 512 tokens with a weight [outputs, inputs] in fp32 and in bf16, in seconds, the best of 4.

    No random number is drawn.
    """
    kinds = (torch.float32, torch.bfloat16)
    pairs = [(torch.ones(ROWS, inputs, dtype=kind), torch.ones(outputs, inputs, dtype=kind)) for kind in kinds]
    times: list[list[float]] = [[], []]
    for _ in range(5):
        for (x, weight), taken in zip(pairs, times, strict=True):
            began = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            taken.append(time.perf_counter() - began)
    # The first of each is slower: kernels are made and memory is taken.
    full, half = (min(taken[1:]) for taken in times)
    return full, half


def _quick_cpu() -> bool:
    """Say whether the processor has instructions for bfloat16."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


ACCELERATORS = {"cuda": "CUDA device", "mps": "Apple GPU", "xpu": "Intel GPU"}
"""The kinds of devices beside the processor, in words."""
UNTRIED = ("mps", "xpu")
COMPUTED = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What matrices are cast to, by the precision; in `fp32` nothing is."""
HAVE_BF16: dict[str, Callable[[], bool]] = {
    # What is emulated is slower than fp32.
    "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
    "mps": lambda: torch.backends.mps.is_macos_or_newer(14, 0),
    "xpu": lambda: torch.xpu.is_bf16_supported(),
}
AUTOMATIC: dict[str, Callable[[nn.Module], Precision]] = {"cpu": _of_cpu, "cuda": _of_cuda, "xpu": _of_xpu}
SMALL = 50_000_000
"""Weights in linear maps below which a model is computed in fp32 on a processor: a step takes no time, and numbers that
are the same on every machine are worth more."""
ROWS, MARGIN = 512, 0.8
"""Tokens of the product that is measured, and the share of the time in fp32 that bf16 has to stay below."""
WIDEST = 8192
"""The most inputs and outputs of the product: a larger one takes memory and says no more."""
SLOW = (
    "precision bf16: this processor has no instructions for bfloat16 (AMX, AVX512-BF16), and a step may take many "
    "times as long as in fp32: set train.precision=fp32"
)


def autocast(device: torch.device, precision: str, cached: bool = True) -> torch.autocast:
    """Return the context in which forward passes run; `cached` weights are cast once in it."""
    dtype = COMPUTED.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=cached)


def mixes(model: nn.Module) -> bool:
    """Say whether computation in halves has to cast: some weight of the model, adapters apart, is held in fp32."""
    return any(parameter.dtype == torch.float32 for _, parameter in own_parameters(model))


def peak_memory(device: torch.device) -> int:
    """Measure the peak memory in bytes: tensors on a GPU (what is held now on Apple's), the whole process on a CPU."""
    if device.type in ACCELERATORS:
        module: Any = getattr(torch, device.type)
        return module.driver_allocated_memory() if device.type == "mps" else module.max_memory_allocated(device)
    return machine.peak_memory()
