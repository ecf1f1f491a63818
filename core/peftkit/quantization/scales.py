"""The scales of a quantized weight: as they are, or quantized themselves (double quantization).

Dettmers et al. 2023, arXiv:2305.14314, section 3: the mean is taken off, and blocks of 256 scales are stored in 8 bits.
The 8-bit values are the dynamic ones of Dettmers et al. 2021, arXiv:2110.02861, as bitsandbytes builds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK = 256
"""Scales that share one scale of their own."""


def _dynamic_values() -> Tensor:
    """Return the 256 signed values of the dynamic 8-bit code, in rising order and in fp32.

    For each of 7 exponents, the mid-points of evenly spaced boundaries in [0.1, 1], one twice as fine as the last.
    """
    positive = []
    for exponent in range(7):
        boundaries = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        positive.append(10.0 ** (exponent - 6) * ((boundaries[:-1] + boundaries[1:]) / 2))
    values = torch.cat(positive)
    return torch.cat([values, -values, torch.tensor([0.0, 1.0])]).sort().values


# Made at import: what is made while a plan counts with tensors that hold nothing would hold nothing for ever.
DYNAMIC = _dynamic_values()


_THERE: dict[torch.device, Tensor] = {}


def dynamic(like: Tensor) -> Tensor:
    """Return the dynamic code on the device of `like`; a GPU is sent it once, as sending waits for the GPU."""
    if type(like) is not Tensor or not like.is_cuda:
        return DYNAMIC.to(like.device)
    if like.device not in _THERE:
        _THERE[like.device] = DYNAMIC.to(like.device)
    return _THERE[like.device]


def nearest(values: Tensor, code: Tensor) -> Tensor:
    """Return the position in the rising `code` nearest to each value, the lower one half-way, as uint8."""
    return torch.bucketize(values, (code[1:] + code[:-1]) / 2, out_int32=True).to(torch.uint8)


def largest(rows: Tensor) -> Tensor:
    """Return the largest absolute value of each row [n, size], without a copy of them."""
    low, high = torch.aminmax(rows, dim=1)
    return torch.maximum(-low, high)


def encode(scales: Tensor, double_quant: bool) -> dict[str, Tensor]:
    """Return the tensors that keep the scales [n], in fp32 unless `double_quant`."""
    if not double_quant:
        return {"scale": scales}
    mean = scales.mean()
    rows = blocks(scales - mean)
    peak = largest(rows)
    code = dynamic(scales)
    codes = nearest(rows / peak.clamp(min=torch.finfo(torch.float32).tiny)[:, None], code)
    return {"scale_code": codes.flatten()[: scales.numel()], "scale_scale": peak, "scale_mean": mean.view(1)}


def decode(parts: Mapping[str, Tensor], operators: Any = None) -> Tensor:
    """Return the scales [n] in fp32; `operators` are those of bitsandbytes, where they are to do it."""
    if "scale" in parts:
        return parts["scale"]
    codes = parts["scale_code"]
    if operators is not None:
        code = dynamic(codes)
        return operators.dequantize_blockwise(codes, parts["scale_scale"], code, BLOCK, torch.float32).add_(
            parts["scale_mean"]
        )
    values = dynamic(codes)[codes.long()]
    return (blocks(values) * parts["scale_scale"][:, None]).flatten()[: codes.numel()] + parts["scale_mean"]


def blocks(values: Tensor, size: int = BLOCK) -> Tensor:
    """Return values [n] in rows [ceil(n / size), size], the last one filled with zeros."""
    missing = -values.numel() % size
    return torch.cat([values, values.new_zeros(missing)]).view(-1, size) if missing else values.view(-1, size)
