"""Random choices that follow from a seed and are not saved: places in a matrix, masks, signs."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, *names: str) -> torch.Generator:
    """Return a generator of the CPU that follows from a seed and names, the same on every machine."""
    if not names:
        return torch.Generator("cpu").manual_seed(seed)
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def places(count: int, size: int, drawn: torch.Generator, device: torch.device) -> Tensor:
    """Return `count` different numbers below `size` in random order; on the meta device their shape alone."""
    if device.type == "meta":
        return torch.empty(count, dtype=torch.int64, device=device)
    return torch.randperm(size, generator=drawn, device="cpu")[:count].to(device)
