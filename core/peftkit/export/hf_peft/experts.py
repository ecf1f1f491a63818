"""Module names that Hugging Face peft reads as those of fused experts, whatever else is called so in the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import conversion_mapping

from peftkit.errors import PeftkitError


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
