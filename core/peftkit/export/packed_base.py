"""What a packed base has to do with merging: the model as it was trained, its weights made dense, and packed again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from peftkit.export.model_folder import reopen
from peftkit.export.packed import write as write_packed
from peftkit.export.trained import Trained
from peftkit.models.fingerprint import fingerprint
from peftkit.models.load import LoadedModel, load
from peftkit.models.quantize import Quantization, forget_originals, quantize, unpack
from peftkit.models.samples import compare, logits
from peftkit.recipe import ModelSection

BOUND = 1e-4
"""How far the reopened packed model may be from what was measured, as a fraction of the largest logit."""


@dataclass(frozen=True)
class AsTrained:
    """What stays of a model as it was trained, its adapter on its packed base: logits on the sample prompts."""

    quantization: Quantization
    logits: Tensor
    """[tokens, vocabulary], in fp32."""

    @classmethod
    def of(cls, trained: Trained) -> AsTrained:
        """Run the model of an opened run, its base packed."""
        base, soft = trained.base, trained.adaptation.soft_ids
        return cls(Quantization.described(base.storage), logits(base.model, base.tokenizer, soft))

    def pack(self, merged: nn.Module) -> None:
        """Store the weights of a merged model in the formats of the base; PeftkitError for one that cannot be."""
        quantize(merged, self.quantization)
        forget_originals(merged)

    def told(self, found: Tensor, what: str) -> dict[str, float]:
        """Return the largest and the mean difference of logits `found` to the trained model's, as `what`_..."""
        difference = (found - self.logits).abs()
        return {f"{what}_max_difference": float(difference.max()), f"{what}_mean_difference": float(difference.mean())}

    def write(self, trained: Trained, plain: Path, folder: Path, expected: Tensor) -> None:
        """Pack the merged model that lies in `plain` into `folder`, and check that it gives the `expected` logits."""
        merged, words = reopen(trained, plain, trained.dtype), trained.base.tokenizer
        mark = fingerprint(cast(nn.Module, merged))
        self.pack(cast(nn.Module, merged))
        write_packed(
            LoadedModel(merged, words, trained.base.name, mark, plain, self.quantization.description()), folder
        )
        section = ModelSection(name=str(folder), trust_remote_code=trained.recipe.model.trust_remote_code)
        again = load(section, dtype=torch.float32)
        compare(logits(again.model, words), expected, BOUND, "the packed model")


def dequantize(trained: Trained) -> list[str]:
    """Make the packed weights of a merged model plain ones; returns their names."""
    base = trained.base
    with torch.device("meta"):
        outline = type(base.model)(base.model.config)
    return [f"{path}.weight" for path in unpack(base.model, outline)]
