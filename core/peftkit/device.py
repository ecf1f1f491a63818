"""The device and precision that a run uses, and the memory it took."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import own_parameters


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; `auto` is CUDA where there is one."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise PeftkitError("train.device is 'cuda', but torch finds no CUDA device here: use 'auto' or 'cpu'.")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return `bf16` or `fp32`; `auto` is bf16 autocast on a CUDA device that computes in it, fp32 elsewhere."""
    fit = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if wanted == "bf16" and not fit:
        raise PeftkitError("train.precision is 'bf16', but this CUDA device does not compute in bfloat16: use 'fp32'.")
    if wanted == "auto":
        return "bf16" if device.type == "cuda" and fit else "fp32"
    return wanted


def autocast(device: torch.device, precision: str, cached: bool = True) -> torch.autocast:
    """Return the context in which forward passes run; `cached` weights are cast once in it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=cached)


def mixes(model: nn.Module) -> bool:
    """Say whether bf16 computation has to cast: some weight of the model, adapters apart, is held in fp32."""
    return any(parameter.dtype == torch.float32 for _, parameter in own_parameters(model))


def peak_memory(device: torch.device) -> int:
    """Measure the peak memory in bytes: tensors on a CUDA device, the whole process (resident) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage where it can be helped: a process begins with the peak of the one that started it.
    size = _status("VmHWM")
    return size if size is not None else _peak_usage()


def resident_memory() -> int:
    """Measure the bytes that this process has in memory now; its peak where only that is known."""
    size = _status("VmRSS")
    return size if size is not None else _peak_usage()


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().split("\n") if line.startswith(key))
    return int(line.split()[1]) * 1024


def _peak_usage() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
