"""Pairs of stacked experts as Hugging Face peft has them, and module names that it takes for those of experts.

It wraps the module of the experts once for each stack that is a target (`target_parameters`), the module's first
parameter innermost. A lies there as [experts * rank, in], B as [out, rank * experts].
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import conversion_mapping

from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.quantization.stack import stacks_of

WRAPPED = ".base_layer"


def stack_paths(sites: Iterable[Site]) -> dict[str, Site]:
    """Return the stacks among sites by the paths at which that library has their pairs."""
    stacks = {site.id: site for site in sites if site.stack is not None}
    paths = {}
    for path, module in {site.path: site.module for site in stacks.values()}.items():
        wrapped = [stacks[f"{path}.{name}"] for name, _ in stacks_of(module) if f"{path}.{name}" in stacks]
        paths |= {path + WRAPPED * depth: site for depth, site in enumerate(reversed(wrapped))}
    return paths


def packed_pairs(site: Site, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B there of pairs A [experts, rank, in] and B [experts, out, rank]."""
    down, up = _turned(site, down, up)
    return down.flatten(0, 1), up.permute(1, 2, 0).flatten(1)


def unpacked_pairs(site: Site, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [experts, rank, in] and B [experts, out, rank] of those there."""
    down, up = down.unflatten(0, (site.experts, -1)), up.unflatten(1, (-1, site.experts)).permute(2, 0, 1)
    return _turned(site, down, up)


def _turned(site: Site, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange A and B where a stack has its inputs in front, and its module does not say so there."""
    if site.transposed == bool(getattr(site.module, "is_transposed", False)):
        return down, up
    return up.mT, down.mT


def check_not_taken_for_experts(paths: Iterable[str], model: nn.Module) -> None:
    """Refuse modules that its reader would put onto the experts: shared ones, and those of dense layers.

    From version 0.19 on, peft moves targets of an architecture whose experts transformers stacks by their last names.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {}):
        return
    changes: list[Any] = conversion_mapping.get_checkpoint_conversion_mapping(kind) or []
    sources = [source for change in changes for source in change.source_patterns if ".experts." in source]
    names = {source.removesuffix(".weight").rpartition(".")[2] for source in sources}
    taken = next((path for path in paths if path.rpartition(".")[2] in names), None)
    if taken is not None:
        raise PeftkitError(
            f"Hugging Face peft would put the pair at {taken} onto the experts of this {kind} model, as it goes by the "
            f"names {', '.join(sorted(names))}: train without those targets, or export with --format merged."
        )
