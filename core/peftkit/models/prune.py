"""Setting weights of a model to zero, for good: what a run trains on stands on what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.models.walk import Walk, observe
from peftkit.pruning import Pruner
from peftkit.quantization.bits import pack, unpack
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.weight import dense, store

Masks = Mapping[str, Tensor]
"""Which weights of each map stay, by its path: a bit each, in the bytes of `peftkit.quantization.bits`."""


def prune(model: nn.Module, pruner: Pruner, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Set weights of a dense model to zero and return the masks of what stays.

    Where the way to prune looks at examples, `rows` are their ids [1, T]: layer by layer, each on what the pruned
    layers before it give. Raises PeftkitError for targets that match nothing, a map whose inputs the pattern does not
    divide, stacks of experts, and inputs that are not finite; nothing is changed by the first three.
    """
    layout = Layout(model)
    paths = chosen(layout, pruner)
    if not pruner.shown:
        return {path: _apply(model, path, pruner, None) for path in paths}
    masks: dict[str, Tensor] = {}
    for layer, run in Walk(model, rows).layers():
        own = [path for path in paths if layout.layer_of(path) == layer]
        seen = observe(model, own, run, products=False) if own else {}
        masks |= {path: _apply(model, path, pruner, seen[path]) for path in own}
    return masks


def apply(model: nn.Module, masks: Masks) -> None:
    """Set to zero what `prune` did; raises PeftkitError for a map that is not there, or is of another size."""
    modules = dict(model.named_modules())
    for path, mask in masks.items():
        weight = dense(modules[path]).detach() if path in modules else None
        if weight is None or mask.numel() != -(-weight.numel() // 8):
            raise PeftkitError(f"pruned weights of {path} are kept, and this model has no map of that size there.")
        with torch.no_grad():
            store(modules[path], weight * spread(mask, weight))


def spread(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask as booleans [out, in] beside its weight."""
    return unpack(mask.to(weight.device), 1, weight.numel()).view(weight.shape).bool()


def filled(model: nn.Module, masks: Masks) -> int:
    """Return how many pruned weights are not zero."""
    found = 0
    for path, mask in masks.items():
        weight = dense(model.get_submodule(path)).detach()
        found += int(((weight != 0) & ~spread(mask, weight)).sum())
    return found


def chosen(layout: Layout, pruner: Pruner) -> list[str]:
    """Return the paths of the maps that are pruned; raises PeftkitError for what `prune` refuses of them."""
    try:
        sites = layout.resolve(pruner.targets, None, pruner.exclude)
    except PeftkitError as error:
        raise PeftkitError(f"pruning: {error}") from None
    wrong = next((site.id for site in sites if site.stack is not None), None)
    if wrong is not None:
        raise PeftkitError(f"pruning: {wrong} is a stack of experts, which is not pruned: leave it out of targets.")
    tied = next((site.path for site in sites if site.tied), None)
    if tied is not None:
        raise PeftkitError(f"pruning: {tied} shares its weight with another module: leave it out of targets.")
    for site in sites:
        pruner.check(site.inputs, site.path)
    return list(dict.fromkeys(site.path for site in sites))


def _apply(model: nn.Module, path: str, pruner: Pruner, inputs: Inputs | None) -> Tensor:
    """Prune one map; returns its mask."""
    module = model.get_submodule(path)
    if inputs is not None and not inputs.finite:
        raise PeftkitError(f"pruning: {path} has inputs of NaN or infinity on the examples.")
    weight = dense(module).detach()
    kept = pruner.kept(weight, inputs)
    with torch.no_grad():
        store(module, weight * kept)
    return pack(kept.to(torch.uint8).flatten(), 1).cpu()
