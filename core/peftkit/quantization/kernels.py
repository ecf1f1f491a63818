"""Who unpacks a weight: every way gives the same bits, and the quickest on this machine is found by measuring."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Unpack = Callable[[Mapping[str, Tensor], "tuple[int, int]", torch.dtype, "Tensor | None"], Tensor]
"""Packed tensors, the shape [out, in], the dtype and memory that may be written to: the weight, there or elsewhere."""
SAMPLE = (1024, 1024)
"""The layer on which ways are measured."""
ROUNDS = 5


def choose(what: str, sample: Mapping[str, Tensor], dtype: torch.dtype, ways: Mapping[str, Unpack]) -> Unpack:
    """Return the quickest of `ways` to unpack `sample`, a layer of the size SAMPLE; the first is the reference.

    A way that fails here, or gives another bit than the reference, is left out. What is chosen is told to the log.
    """
    names = list(ways)
    expected = ways[names[0]](sample, SAMPLE, dtype, None)
    sound = [names[0], *(name for name in names[1:] if _agrees(ways[name], sample, dtype, expected))]
    times = _measure([ways[name] for name in sound], sample, dtype) if len(sound) > 1 else [0.0]
    best = min(range(len(sound)), key=times.__getitem__)
    timings = ", ".join(f"{name} {1000 * took:.2f} ms" for name, took in zip(sound, times, strict=True))
    logging.getLogger("peftkit").info("%s to %s: %s (%s)", what, dtype, sound[best], timings)
    return ways[sound[best]]


def _agrees(way: Unpack, sample: Mapping[str, Tensor], dtype: torch.dtype, expected: Tensor) -> bool:
    try:
        room = torch.empty_like(expected)
        return torch.equal(way(sample, SAMPLE, dtype, room), expected)
    except Exception:  # a kernel that this machine cannot run may fail in every way
        return False


def _measure(ways: Sequence[Unpack], sample: Mapping[str, Tensor], dtype: torch.dtype) -> list[float]:
    """Return the shortest time of each way, in turns."""
    best = [float("inf")] * len(ways)
    room = scratch(SAMPLE, dtype, next(iter(sample.values())))
    for _ in range(ROUNDS):
        for index, way in enumerate(ways):
            begin = time.perf_counter()
            result = way(sample, SAMPLE, dtype, room)
            if result.is_cuda:
                torch.cuda.synchronize()
            best[index] = min(best[index], time.perf_counter() - begin)
    return best


def scratch(shape: tuple[int, int], dtype: torch.dtype, like: Tensor) -> Tensor | None:
    """Return memory for one weight [out, in], the same for every layer: the next weight overwrites it.

    Fresh memory of this size comes from the system page by page, which takes longer than unpacking. None on devices
    whose allocator keeps what is freed. Each thread has its own, and so has a mode whose tensors hold nothing, of which
    `like` then is one.
    """
    home: Any = _OWN if type(like) is Tensor else getattr(like, "fake_mode", None)
    if like.device.type != "cpu" or home is None:
        return None
    size = shape[0] * shape[1] * dtype.itemsize
    held = getattr(home, "scratch", None)
    if held is None or held.numel() < size:
        held = torch.empty(size, dtype=torch.uint8)
        if type(held) is type(like):  # not where a mode makes tensors without storage and `like` has some
            home.scratch = held
    return held[:size].view(dtype).view(shape)


_OWN = threading.local()


def into(format_name: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor, int, Tensor], Tensor] | None:
    """Return bitsandbytes' CPU function that unpacks (codes, scales, block size) into memory [out, in]; None without.

    Its public operator takes fresh memory each time. The function is not public: where it is missing or has changed,
    the operator is used.
    """
    if bitsandbytes() is None:
        return None
    from bitsandbytes import cextension, functional

    kind = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    name = f"cdequantize_blockwise_cpu_{format_name}_{kind}"
    if not hasattr(cextension.lib, name) or not hasattr(functional, "get_ptr"):
        return None
    function, pointer, number = getattr(cextension.lib, name), functional.get_ptr, ctypes.c_longlong

    def unpack(codes: Tensor, scales: Tensor, block_size: int, out: Tensor) -> Tensor:
        sizes = number(block_size), number(out.shape[0]), number(out.shape[1])
        function(pointer(codes), pointer(scales), pointer(out), *sizes)
        return out

    return unpack


@cache
def bitsandbytes() -> Any:
    """Return the operators of bitsandbytes, or None where it cannot be imported."""
    loud = logging.getLogger("bitsandbytes")
    level = loud.level
    loud.setLevel(logging.CRITICAL)
    try:
        import bitsandbytes as library

        return torch.ops.bitsandbytes if library else None
    except Exception:  # its native part may not load, in every way
        return None
    finally:
        loud.setLevel(level)
