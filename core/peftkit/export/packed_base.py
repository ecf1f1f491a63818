"""What a packed base has to do with merging: the model as it was trained, its weights made dense, and packed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftkit import adapt
from peftkit.errors import PeftkitError
from peftkit.export.trained import check_finite, read_run
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, forget_originals, quantize
from peftkit.models.samples import logits
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.weight import dense, store

if TYPE_CHECKING:
    from peftkit.recipe import QuantizationSection


@dataclass
class PackedBase:
    """A run's model as it was trained: its adapter on its packed base, in fp32 on the CPU."""

    section: QuantizationSection
    model: nn.Module
    logits: Tensor
    """Those of the model on the sample prompts [tokens, vocabulary]."""

    def fill(self, plain: nn.Module) -> list[str]:
        """Write what the packed weights stand for into the model of the original ones; returns the weights' names.

        What a start left of a frozen weight is what was packed, so that the adapter stands on `plain` before this.
        """
        paths = [path for path, module in self.model.named_modules() if isinstance(module, PackedLinear)]
        for path in paths:
            store(plain.get_submodule(path), dense(self.model.get_submodule(path)))
        return [f"{path}.weight" for path in paths]

    def pack(self, merged: nn.Module) -> None:
        """Store the weights of a merged model in the formats of the base; PeftkitError for one that cannot be."""
        quantize(merged, Quantization.of(self.section))
        forget_originals(merged)

    def told(self, found: Tensor, what: str) -> dict[str, float]:
        """Return the largest and the mean difference of logits `found` to the trained model's, as `what`_..."""
        difference = (found - self.logits).abs()
        return {f"{what}_max_difference": float(difference.max()), f"{what}_mean_difference": float(difference.mean())}


def open_packed(run: Path) -> PackedBase | None:
    """Load the run's model as it was trained; None for a run whose base was not packed.

    Raises PeftkitError as `open_run` does.
    """
    recipe = read_run(run)
    if not recipe.quantization.packs:
        return None
    base = load(recipe.model, dtype=torch.float32, quantization=recipe.quantization)
    storage = recipe.quantization.model_dump()
    adaptation = adapt.load(base.model, run / "adapter", base.fingerprint, quantization=storage, keep_base=False)
    check_finite(adaptation, run / "adapter" / adapt.TENSORS)
    forget_originals(base.model)
    base.model.eval()
    return PackedBase(recipe.quantization, base.model, logits(base.model, base.tokenizer, adaptation.soft_ids))


def refuse_without(base: PackedBase | None, option: str) -> PackedBase:
    """Return the packed base; PeftkitError naming the option that has no meaning without one."""
    if base is None:
        raise PeftkitError(
            f"{option} is for a run on a quantized base, and this run was trained on the original weights "
            "(quantization none in its recipe): leave it out."
        )
    return base
