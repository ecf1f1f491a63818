"""Attention along a tree on a GPU: all runs of queries in one call of torch's flash kernel for rows of many lengths.

The kernel is FlashAttention-2 (Dao 2023, arXiv:2307.08691), which torch calls private outside its padded attention.
Queries that follow each other on one path are a run, whose keys are that path; a run reads keys of its own, so that
what several paths have in common is copied for each. Both passes give the same bits each time: the kernel's backward
pass is asked for that, and what came to the copies of a key is added up in one order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic
from torch import Tensor

from peftkit.kernels.tree import Block, Tree, goes_on
from peftkit.kernels.tree_plan import Plan

_FORWARD: Any = getattr(torch.ops.aten, "_flash_attention_forward", None)
_BACKWARD: Any = getattr(torch.ops.aten, "_flash_attention_backward", None)
LARGEST = 256
"""The largest size of a head that the kernel takes."""


@dataclass(frozen=True)
class Runs:
    """R runs of queries with their keys, as the kernel wants them."""

    queries: Tensor
    """[R + 1] int32: where each run's queries begin among the flat tokens, and the end of the last."""
    keys: Tensor
    """[R + 1] int32: the same among the keys of all runs."""
    longest: tuple[int, int]
    """The most queries and the most keys of a run."""
    copied: Copied | None
    """Where the keys come from; None where all keys stand in order, once."""


@dataclass(frozen=True)
class Copied:
    """How the keys of all runs are copies of S keys: those in front, and the tokens'."""

    index: Tensor
    """[K] long: the key that each one is."""
    firsts: Tensor
    """[S] long: where the first copy of each key stands."""
    shared: Tensor
    """[M] long: the keys that have more copies than one."""
    places: Tensor
    """[M, C] long: where their copies stand; any place where a key has fewer than C."""
    present: Tensor
    """[M, C] of 1, and 0 where a key has fewer copies."""

    def to(self, device: torch.device) -> Copied:
        """Return it with its tensors on `device`."""
        return Copied(*(getattr(self, field.name).to(device) for field in fields(self)))


def runs(blocks: Sequence[Block], first: int, device: torch.device) -> Runs:
    """Put blocks that go on where another ended into one run, and `first` keys in front of every run's own."""
    paths: list[np.ndarray] = []
    lengths: list[int] = []
    for block in blocks:
        if paths and goes_on(paths[-1], block):
            lengths[-1] += block.length
            paths[-1] = block.keys
        else:
            lengths.append(block.length)
            paths.append(block.keys)
    front = np.arange(first)
    index = np.concatenate([part for path in paths for part in (front, path + first)])
    count = sum(lengths) + first
    plain = len(index) == count and bool((index == np.arange(count)).all())
    sizes = [len(path) + first for path in paths]
    copied = None if plain else copies(index, count).to(device)
    return Runs(_edges(lengths, device), _edges(sizes, device), (max(lengths), max(sizes)), copied)


def copies(index: np.ndarray, count: int) -> Copied:
    """Say where the copies of each of `count` keys stand in `index` [K], which has all of them."""
    order, times = np.argsort(index, kind="stable"), np.bincount(index, minlength=count)
    starts = np.cumsum(times) - times
    shared = np.flatnonzero(times > 1)
    most = np.arange(times.max())
    present = most < times[shared][:, None]
    places = order[starts[shared][:, None] + most * present]
    found = index, order[starts], shared, places, present.astype(np.float32)
    return Copied(*map(torch.from_numpy, found))


def run_over(queries: int, first: int, device: torch.device) -> Runs:
    """Put all queries into one run over the `first` keys alone."""
    return Runs(_edges([queries], device), _edges([first], device), (queries, first), None)


def runs_of(tree: Tree, first: int) -> Runs:
    """Return the runs of a tree, made once for each number of keys in front."""
    kept = _kept(tree)
    if first not in kept:
        kept[first] = runs(tree.blocks, first, tree.ids.device)
    return kept[first]


def _kept(tree: Tree) -> dict[int, Runs]:
    return tree.__dict__.setdefault("runs", {})


def _edges(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(device)


def possible(q: Tensor, v: Tensor, plan: Plan, first: int, cap: float | None) -> bool:
    """Say whether the kernel can do it: half precision on CUDA, no cap, no window over keys in front."""
    there = _FORWARD is not None and _BACKWARD is not None and q.device.type == "cuda"
    fits = q.shape[-1] == v.shape[-1] <= LARGEST and q.shape[-1] % 8 == 0
    half = q.dtype in (torch.bfloat16, torch.float16)
    return there and fits and half and cap is None and (plan.window is None or not first)


def forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, first: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return y [N, heads, size] and the logarithms of the softmaxes' sums of q [heads, N, size].

    k and v are [groups, first + N or first, size]: each token sees the `first` keys and those of its path.
    """
    text = k.shape[1] > first
    runs = _runs(plan, first, text)
    given = _flat(q), _rows(k, runs), _rows(v, runs), *_edges_of(runs)
    y, totals, *_ = _FORWARD(*given, 0.0, text, False, scale=scale, **_window(plan))
    return y, totals


def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, totals: Tensor, plan: Plan, first: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from that of y [N, heads, size], all in the shapes of `forward`."""
    text = k.shape[1] > first
    runs = _runs(plan, first, text)
    keys, values = (_rows(x, runs) for x in (k, v))
    given = dy.contiguous(), _flat(q), keys, values, y, totals, *_edges_of(runs)
    undrawn = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
    with _repeatable():
        dq, *others = _BACKWARD(*given, 0.0, text, *undrawn, scale=scale, **_window(plan))
    dk, dv = (_gathered(part, runs) for part in others)
    return dq.transpose(0, 1), dk, dv


def _runs(plan: Plan, first: int, text: bool) -> Runs:
    return runs_of(plan.tree, first) if text else run_over(plan.count, first, plan.device)


def _edges_of(runs: Runs) -> tuple[Tensor, Tensor, int, int]:
    return runs.queries, runs.keys, *runs.longest


def _window(plan: Plan) -> dict[str, int]:
    """Return the kernel's bounds: a window of w keys is the query's own and w - 1 before it."""
    return {} if plan.window is None else {"window_size_left": plan.window - 1, "window_size_right": 0}


def _flat(x: Tensor) -> Tensor:
    """Return x [heads, N, size] as [N, heads, size] whose last dimension is dense."""
    x = x.transpose(0, 1)
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows(x: Tensor, runs: Runs) -> Tensor:
    """Return the keys or values of all runs [K, groups, size]."""
    x = _flat(x)
    return x if runs.copied is None else x.index_select(0, runs.copied.index)


def _gathered(part: Tensor, runs: Runs) -> Tensor:
    """Add up what came to the copies of each key: [groups, keys, size]."""
    copied = runs.copied
    if copied is None:
        return part.transpose(0, 1)
    found = part.index_select(0, copied.firsts)
    if len(copied.shared):
        rows = part.index_select(0, copied.places.flatten()).view(*copied.places.shape, *part.shape[1:])
        found[copied.shared] = (rows * copied.present[..., None, None]).sum(1).to(part.dtype)
    return found.transpose(0, 1)


@contextmanager
def _repeatable() -> Iterator[None]:
    """Ask torch's kernels for the same bits each time, as far as they can."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled
