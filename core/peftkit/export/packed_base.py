"""What a packed base has to do with merging: the model as it was trained, its weights made dense, and packed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peftkit.export.trained import Trained
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, forget_originals, quantize, unpack
from peftkit.models.samples import logits

if TYPE_CHECKING:
    from peftkit.recipe import QuantizationSection


@dataclass(frozen=True)
class AsTrained:
    """What stays of a model as it was trained, its adapter on its packed base: logits on the sample prompts."""

    section: QuantizationSection
    logits: Tensor
    """[tokens, vocabulary], in fp32."""

    @classmethod
    def of(cls, trained: Trained) -> AsTrained:
        """Run the model of an opened run, its base packed."""
        soft = trained.adaptation.soft_ids
        return cls(trained.recipe.quantization, logits(trained.base.model, trained.base.tokenizer, soft))

    def pack(self, merged: nn.Module) -> None:
        """Store the weights of a merged model in the formats of the base; PeftkitError for one that cannot be."""
        quantize(merged, Quantization.of(self.section))
        forget_originals(merged)

    def told(self, found: Tensor, what: str) -> dict[str, float]:
        """Return the largest and the mean difference of logits `found` to the trained model's, as `what`_..."""
        difference = (found - self.logits).abs()
        return {f"{what}_max_difference": float(difference.max()), f"{what}_mean_difference": float(difference.mean())}


def dequantize(trained: Trained) -> list[str]:
    """Make the packed weights of a merged model plain ones; returns their names."""
    outline = load(trained.recipe.model, device="meta", dtype=torch.float32, weights=False)
    return [f"{path}.weight" for path in unpack(trained.base.model, outline.model)]
