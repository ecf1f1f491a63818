"""Who unpacks a weight: every way gives the same bits, and the quickest on this machine is found by measuring."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Unpack = Callable[[Mapping[str, Tensor], "tuple[int, int]", torch.dtype], Tensor]
SAMPLE = (1024, 1024)
"""The layer on which ways are measured."""
ROUNDS = 5


def choose(what: str, sample: Mapping[str, Tensor], dtype: torch.dtype, ways: Mapping[str, Unpack]) -> Unpack:
    """Return the quickest of `ways` to unpack `sample`, a layer of the size SAMPLE; the first is the reference.

    A way that fails here, or gives another bit than the reference, is left out. What is chosen is told to the log.
    """
    names = list(ways)
    expected = ways[names[0]](sample, SAMPLE, dtype)
    sound = [names[0], *(name for name in names[1:] if _agrees(ways[name], sample, dtype, expected))]
    times = _measure([ways[name] for name in sound], sample, dtype) if len(sound) > 1 else [0.0]
    best = min(range(len(sound)), key=times.__getitem__)
    told = ", ".join(f"{name} {1000 * took:.2f} ms" for name, took in zip(sound, times, strict=True))
    logging.getLogger("peftkit").info("%s to %s: %s (%s)", what, dtype, sound[best], told)
    return ways[sound[best]]


def _agrees(way: Unpack, sample: Mapping[str, Tensor], dtype: torch.dtype, expected: Tensor) -> bool:
    try:
        return torch.equal(way(sample, SAMPLE, dtype), expected)
    except Exception:  # a kernel that this machine cannot run may fail in every way
        return False


def _measure(ways: Sequence[Unpack], sample: Mapping[str, Tensor], dtype: torch.dtype) -> list[float]:
    """Return the shortest time of each way, in turns."""
    best = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for index, way in enumerate(ways):
            begin = time.perf_counter()
            result = way(sample, SAMPLE, dtype)
            if result.is_cuda:
                torch.cuda.synchronize()
            best[index] = min(best[index], time.perf_counter() - begin)
    return best


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
