"""How many numbers a method trains and saves, from what it builds on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.layers.stacked import build_at
from peftkit.layout import GROUPS, LINEAR_ROLES, Layout, Site, matched, own_parameters
from peftkit.method import Method, expand

ROLES = {*LINEAR_ROLES, *GROUPS}


def count_trained(method: Method, layout: Layout) -> int:
    """Return the number of trainable parameters; nothing is attached, and no weight is read."""
    built = sum(_count(part, layout, lambda tensor: tensor.requires_grad) for part in expand([method]))
    return built + _count_own(method, layout)


def count_stored(method: Method, layout: Layout) -> int:
    """Return how many numbers the adapter saved after training holds, at most where training decides it.

    Every number of the file counts: frozen tensors that are saved, and the positions of sparse changes.
    """
    total = _count_own(method, layout)
    for part in expand([method]):
        saved = part.saved(layout)
        total += _count(part.finished, layout, lambda tensor: True) if saved is None else saved
    return total


def _count_own(method: Method, layout: Layout) -> int:
    parts = expand([method])
    own = own_parameters(layout.model)
    return sum(p.numel() for name, p in own if any(part.select(layout, name, p) for part in parts))


def _count(method: Method, layout: Layout, chosen: Callable[[Tensor], bool]) -> int:
    """Count the numbers in chosen tensors of the adapters and of what they share, building one adapter of each kind."""

    def size(module: nn.Module) -> int:
        return sum(tensor.numel() for tensor in module.state_dict(keep_vars=True).values() if chosen(tensor))

    names = [name for name in _strings(vars(method)) if name not in ROLES]
    sizes: dict[Any, int] = {}
    total = 0
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        shared = method.share(layout)
        for site in method.sites(layout):
            kind = _kind(site, names)
            if kind not in sizes:
                sizes[kind] = size(build_at(site, method.build))
            total += sizes[kind]
    return total if shared is None else total + size(shared)


def _kind(site: Site, names: list[str]) -> Any:
    """Return what an adapter's shapes can depend on: those of its site, its role, and the options that name it."""
    module = site.module
    own = (*module._parameters.items(), *module._buffers.items())
    tensors = tuple((key, tensor.shape) for key, tensor in own if tensor is not None)
    parts = tuple((role, part.inputs, part.outputs) for role, part in site.parts.items())
    chosen = tuple(matched(name, site) for name in names)
    return (
        type(module),
        site.role,
        site.stack,
        site.experts,
        site.inputs,
        site.outputs,
        site.rows,
        tensors,
        parts,
        chosen,
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for text in _strings(pair))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in _strings(part))
