"""Codes of 1, 2, 3, 4 or 8 bits in bytes, the first code in the highest bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

GROUPS = {1: (8, 1), 2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}
"""For each width: how many codes make a whole number of bytes, and that number."""

PIECE = 1 << 20
"""Weights that are packed at a time, so that what packing needs beside a large layer stays small."""


def pieces(rows: Tensor) -> Iterator[slice]:
    """Return slices of `rows` [n, size] of about PIECE weights that each fill whole bytes; all at once without data."""
    count = max(8, PIECE // rows.shape[1] // 8 * 8)
    count = rows.shape[0] if rows.is_meta else count
    return (slice(begin, begin + count) for begin in range(0, rows.shape[0], count))


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that `count` codes take."""
    codes, size = GROUPS[bits]
    return -(-count // codes) * size


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [n], each below 2^bits, into bytes [packed_size(n, bits)]; the end is filled with zeros."""
    if bits == 8:
        return codes.contiguous()
    count, size = GROUPS[bits]
    missing = -codes.numel() % count
    if missing:
        codes = torch.cat([codes, codes.new_zeros(missing)])
    words = codes.view(-1, count)
    # One byte holds the codes of a group of one byte.
    words = words if size == 1 else words.int()
    word = words[:, 0]
    for index in range(1, count):
        word = (word << bits) | words[:, index]
    if size == 1:
        return word
    return torch.stack([(word >> (8 * (size - 1 - index))) & 255 for index in range(size)], 1).to(torch.uint8).flatten()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes [count] of packed bytes, as uint8."""
    if bits == 8:
        return packed[:count]
    codes, size = GROUPS[bits]
    rows = packed.view(-1, size).int()
    word = rows[:, 0]
    for index in range(1, size):
        word = (word << 8) | rows[:, index]
    shifts = torch.arange(codes - 1, -1, -1, device=packed.device, dtype=torch.int32) * bits
    return ((word[:, None] >> shifts) & (2**bits - 1)).to(torch.uint8).flatten()[:count]


def table(code: Tensor, bits: int) -> Tensor:
    """Return what each byte stands for: values [256, 8 / bits], by the values of the codes [2^bits]."""
    every = torch.arange(256, dtype=torch.uint8, device=code.device)
    return code[unpack(every, bits, 256 * 8 // bits).long()].view(256, -1)
