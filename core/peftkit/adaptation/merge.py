"""Merge the adapters of one module into its weight, in fp32, and undo it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftkit.layers.stacked import Stacked
from peftkit.layout import Site
from peftkit.ports.adapter import Adapter
from peftkit.quantization.weight import dense, hold, shift


@dataclass
class Merged:
    """What `restore` needs to undo one module's merge."""

    model: nn.Module
    module: nn.Module
    bias: Tensor | None
    tied: nn.Parameter | None = None
    release: Callable[[], None] | None = None
    """Puts the weight back; None where it was not kept, or `tied` is."""

    def restore(self) -> None:
        """Put the weight and bias back as they were, and tie the weight again."""
        module = cast(Any, self.module)
        if self.tied is not None:
            module.weight = self.tied
            cast(Any, self.model).config.tie_word_embeddings = True
        elif self.release is not None:
            self.release()
        if self.bias is not None:
            with torch.no_grad():
                module.bias.copy_(self.bias)
        elif getattr(module, "bias", None) is not None:
            module.bias = None


def merge_module(model: nn.Module, adapters: Sequence[Adapter], keep_base: bool) -> Merged:
    """Write into the adapters' module what the chain computes, innermost first; returns what undoes it.

    A tied weight is untied first: the adapters belong to this module alone.
    """
    module = cast(Any, adapters[0].site.module)
    if adapters[0].site.stack is not None:
        return _merge_stack(model, cast("Sequence[Stacked]", adapters), keep_base)
    with torch.no_grad():
        before = dense(module).detach()
        weight, bias = before.float().clone(), _bias(module)
        merged_bias = None if bias is None else bias.float().clone()
        for adapter in adapters:
            weight, merged_bias = _merge(adapter, weight, merged_bias)
        record = Merged(model, module, None if bias is None else bias.clone())
        if adapters[0].site.tied:
            record.tied = module.weight
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
            cast(Any, model).config.tie_word_embeddings = False
        record.release = hold(module, weight, keep_base and record.tied is None)
        if bias is not None and merged_bias is not None:
            bias.copy_(merged_bias)
        elif merged_bias is not None:
            module.bias = nn.Parameter(merged_bias.to(before.dtype), requires_grad=False)
    return record


def _merge_stack(model: nn.Module, adapters: Sequence[Stacked], keep_base: bool) -> Merged:
    """Write into each weight of a stack what its adapters make of it."""
    site, releases = adapters[0].site, []
    with torch.no_grad():
        views = [adapter.views() for adapter in adapters]
        for index, one in enumerate(site.each()):
            weight = dense(one.module).detach().float().clone()
            for adapter, own in zip(adapters, views, strict=True):
                weight = adapter.merge_one(weight, index, own)
            releases.append(hold(one.module, weight, keep_base))
    return Merged(model, site.module, None, release=partial(_release, releases) if keep_base else None)


def _release(releases: Sequence[Callable[[], None] | None]) -> None:
    for release in releases:
        if release is not None:
            release()


def shift_module(model: nn.Module, adapters: Sequence[Adapter]) -> Merged:
    """Write what the adapters add into the scales and zero points of their stored weight; returns what undoes it."""
    module = adapters[0].site.module
    scale = offset = None
    with torch.no_grad():
        for adapter in adapters:
            change = (None if part is None else whole(adapter.site, part) for part in adapter.shift())
            scale, offset = (_sum(one, other) for one, other in zip((scale, offset), change, strict=True))
        bias = _bias(module)
        return Merged(model, module, None if bias is None else bias.clone(), release=shift(module, scale, offset))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def whole(site: Site, part: Tensor) -> Tensor:
    """Return values [out, n] of a site for its whole module, zero where the site is not."""
    rows = site.rows
    if rows is None:
        return part
    return rows.put(part.new_zeros(part.shape[1], rows.stride * rows.count), part.T).T


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return None if bias is None else cast(Tensor, bias).detach()


def _merge(adapter: Adapter, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    rows = adapter.site.rows
    if rows is None:
        return adapter.merge(weight, bias)
    part, part_bias = adapter.merge(rows.take(weight.T).T, None if bias is None else rows.take(bias))
    if part_bias is not None:
        bias = rows.put(weight.new_zeros(weight.shape[0]) if bias is None else bias, part_bias)
    return rows.put(weight.T, part.T).T, bias
