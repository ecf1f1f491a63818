"""Storage formats in sizes that suit tiny models, and the one that methods of a trait are tested on."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any

import torch

from peftkit.method import METHODS
from peftkit.models.quantize import Quantization, quantize, unpack
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS, Quantizer

SIZES: dict[str, dict[str, Any]] = {"nf4": {"block_size": 16}, "fp4": {"block_size": 32, "double_quant": False}}
SIZES |= {"nf3": {}, "nf2": {}, "int8": {"outliers": 0.1}, "int4": {"group_size": 16}, "int2": {"group_size": 0}}
SIZES |= {"int3": {"group_size": 8, "symmetric": True}, "bcq4": {"group_size": 8}, "bcq3": {}, "bcq2": {}}
SIZES |= {"gptq": {"bits": 4, "group_size": 16}, "awq": {"bits": 4, "group_size": 16}}
"""Options of formats for layers of 32 inputs; of one without, blocks and groups are of 16."""


def small(name: str) -> Quantizer:
    """Build a format with options for layers of 32 inputs."""
    sizes = {field.name: 16 for field in fields(QUANTIZERS[name]) if field.name in ("block_size", "group_size")}
    return QUANTIZERS[name].from_options(SIZES.get(name, sizes))


def needed(names: Iterable[str]) -> Quantizer | None:
    """Return a format that has what these methods need of a storage, of about 3 bits; None where any will do.

    Raises LookupError where no format has it all.
    """
    traits = {trait for name in names if (trait := METHODS[name].needs) is not None}
    if not traits:
        return None
    able = [small(name) for name, cls in QUANTIZERS.items() if traits <= small(name).traits]
    if not able:
        raise LookupError(f"no format has {' and '.join(sorted(traits))}")
    # Whole numbers of many bits make noise in scales large, and with it the rounding of fp32.
    return min(able, key=lambda quantizer: abs(quantizer.bits - 3))


def section(names: Iterable[str]) -> dict[str, Any] | str:
    """Return what a recipe says of the storage that these methods need."""
    quantizer = needed(names)
    return "none" if quantizer is None else {"format": quantizer.name, **quantizer.options()}


@cache
def looked_at(trait: str | None, architecture: str, packed: bool = False) -> Any:
    """Return a model for checks, which leave it as it is; methods that need one trait share it.

    Where they need none it is dense, or `packed` in nf4.
    """
    model = tiny(architecture)
    quantizer = needed([name for name, cls in METHODS.items() if cls.needs == trait][:1])
    if quantizer is not None or packed:
        quantize(model, Quantization(quantizer or QUANTIZERS["nf4"]()))
    return model


def stored(names: Iterable[str], architecture: str = "llama", **changes: Any) -> Any:
    """Build a tiny model, stored as these methods need it."""
    model = tiny(architecture, **changes)
    quantizer = needed(names)
    if quantizer is not None:
        quantize(model, Quantization(quantizer))
    return model


def dequantized(model: Any) -> Any:
    """Return a copy of a model in which packed weights are plain ones."""
    twin = copy.deepcopy(model)
    with torch.device("meta"):
        outline = type(model)(model.config)
    unpack(twin, outline)
    return twin
