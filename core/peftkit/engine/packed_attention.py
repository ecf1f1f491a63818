"""Attention over packed rows and shared beginnings, held to the attention that the model itself would run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftkit.engine.proof import Draw, same
from peftkit.kernels.tree import SHARED, Tree, grow
from peftkit.ports.attention import IDLE, models_own, packed

WINDOW = 5
"""Tokens that are seen where attention has a window: the rows that are tried are shorter than most."""


class AttentionProof:
    """Tries each kind of attention that is heard of, once; `wrong` names the modules of those that differ."""

    def __init__(self, implementation: str):
        self.implementation = implementation
        self.wrong: list[str] = []
        self._seen: set[Any] = set()

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, asked: dict[str, Any]) -> None:
        """Try the attention of `module`, given q, k and v [1, heads, N, size] and what else it asks for."""
        asked = {key: value for key, value in asked.items() if value is not None and key not in IDLE}
        if asked.get("sliding_window"):
            asked["sliding_window"] = WINDOW
        said = tuple(sorted((key, value) for key, value in asked.items() if not isinstance(value, Tensor)))
        kind = type(module), said, tuple((x.shape[1], x.shape[3]) for x in (q, k, v)), q.dtype, k.dtype
        if kind in self._seen:
            return
        self._seen.add(kind)
        draw, device = Draw(), q.device
        tree = grow([[1] * (SHARED + count) + [count + 2] * 4 for count in (1, 1, 4)] + [[9] * 5]).to(device)
        given = [draw(1, x.shape[1], len(tree.ids), x.shape[3]).to(x) for x in (q, k, v)]
        own = _row_by_row(module, tree, self.implementation, asked)
        if not same(own, lambda q, k, v: packed(tree, q, k, v, **asked), *given, by_row=False, factor=4.0):
            self.wrong.append(type(module).__name__)


def _row_by_row(module: nn.Module, tree: Tree, implementation: str, asked: dict[str, Any]) -> Any:
    """Return what computes y [1, N, heads, size] by the model's own attention, each row of a tree by itself."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = q.new_zeros(1, len(tree.ids), q.shape[1], v.shape[3])
        for row in tree.rows:
            at = torch.from_numpy(row).to(q.device)
            parts = [x.index_select(2, at) for x in (q, k, v)]
            mask = _mask(len(row), asked.get("sliding_window"), q)
            y = y.index_copy(1, at, models_own(module, implementation)(module, *parts, mask, **asked)[0])
        return y

    return run


def _mask(count: int, window: int | None, like: Tensor) -> Tensor:
    """Return what is added to the scores [1, 1, count, count]: nothing where a token is seen."""
    apart = torch.arange(count)[:, None] - torch.arange(count)
    seen = (apart >= 0) if window is None else (apart >= 0) & (apart < window)
    mask = torch.zeros(count, count).masked_fill(~seen, torch.finfo(like.dtype).min)
    return mask[None, None].to(like)
