"""The port of attention: an adapter around the attention of one layer, given its queries, keys and values.

It goes through transformers' registry of attention functions, so that it works with grouped keys and values, rotary
positions, caches, beams and gradient checkpointing, and touches no cache. Families without that registry are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from peftkit.ports.adapter import Adapter
from peftkit.ports.seat import INPUT, Seat, Switch

NAME = "peftkit"
KERNEL = "sdpa"
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class AttentionAdapter(Adapter):
    """An adapter inside the attention of its site: `forward(attend, q, k, v, mask) -> y`.

    q [B, heads, T, size]; k and v [B, groups, S, size] after rotary positions, those of the cache included; mask
    [B or 1, 1, T, S], True where a query may look; y [B, T, heads, size], as `attend(q, k, v, mask)` returns it. With
    `reads_input` the hidden states x [B, T, width] that the attention reads follow the mask.
    """

    inside: ClassVar[bool] = True

    def forward(  # type: ignore[override]
        self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *x: Tensor
    ) -> Tensor:
        """Compute the adapted attention."""
        raise TypeError(f"{type(self).__name__} does not define what it computes")


def listen(model: nn.Module, switch: Switch) -> None:
    """Have the model's attention run its active adapters, and its own function as it was while none is active."""
    config = cast(Any, model).config
    own = config._attn_implementation

    def choose() -> None:
        seats = (module for module in model.modules() if isinstance(module, Seat))
        wanted = any(inside(module, switch) for module in seats)
        config._attn_implementation = NAME if wanted else own

    switch.watchers.append(choose)


def inside(module: Seat, switch: Switch) -> list[AttentionAdapter]:
    """Return the active attention adapters of a module, innermost first."""
    return [cast(AttentionAdapter, adapter) for adapter in module.running(switch.names) if adapter.inside]


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **rest: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' registry asks it, through the adapters of `module`."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return ALL_ATTENTION_FUNCTIONS[KERNEL](module, q, k, v, mask, **rest)[0]

    x = rest.pop(INPUT, None)
    if not isinstance(module, Seat):
        return attend(query, key, value, attention_mask), None
    rows = module.switch.rows
    if rows is None:
        return _chain(module, module.switch.active, attend, x)(query, key, value, attention_mask), None
    parts = []
    mask = attention_mask.expand(query.shape[0], -1, -1, -1)
    for name in dict.fromkeys(rows):
        index = torch.tensor([i for i, row in enumerate(rows) if row == name], device=query.device)
        mine = None if x is None else x[index]
        call = _chain(module, () if name is None else (name,), attend, mine)
        parts.append((index, call(query[index], key[index], value[index], mask[index])))
    order = torch.cat([index for index, _ in parts]).argsort()
    return torch.cat([part for _, part in parts]).index_select(0, order), None


def _chain(module: Seat, names: tuple[str, ...], attend: Attend, x: Tensor | None) -> Attend:
    for adapter in module.running(names):
        if adapter.inside:
            attend = _around(cast(AttentionAdapter, adapter), attend, (x,) if adapter.reads_input else ())
    return attend


def _around(adapter: AttentionAdapter, attend: Attend, more: tuple[Tensor | None, ...]) -> Attend:
    return lambda q, k, v, mask: adapter(attend, q, k, v, mask, *more)


def full_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Return the mask [B or 1, 1, T, S] written out, also where the kernel could do without one."""
    return ALL_MASK_ATTENTION_FUNCTIONS[KERNEL](
        *args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    )


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, full_mask)
