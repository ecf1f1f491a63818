"""Merging into a packed base: the model as it was trained, its weights made dense, and merged ones packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftkit.export.model_folder import reopen
from peftkit.export.packed import write as write_packed
from peftkit.export.trained import Trained
from peftkit.layout import own_parameters
from peftkit.models.fingerprint import digest, fingerprint, sample
from peftkit.models.load import load
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization, forget_originals, quantize, unpack
from peftkit.models.samples import compare, logits
from peftkit.quantization.packed import StoredLinear
from peftkit.quantization.stack import PackedStack
from peftkit.quantization.storage import is_foreign
from peftkit.quantization.weight import dense
from peftkit.recipe import ModelSection

BOUND = 1e-4
"""How far the reopened packed model may be from what was measured, as a fraction of the largest logit."""


@dataclass(frozen=True)
class AsTrained:
    """What stays of a model as it was trained, its adapter on its packed base: logits on the sample prompts."""

    quantization: Quantization | None
    """How the base is packed; None where another library did it."""
    logits: Tensor
    """[tokens, vocabulary], in fp32."""

    @classmethod
    def of(cls, trained: Trained) -> AsTrained:
        """Run the model of an opened run, its base packed."""
        ours = None if is_foreign(trained.storage) else Quantization.described(trained.storage)
        return cls(ours, logits(trained.module, trained.tokenizer, trained.adaptation.soft_ids))

    def pack(self, merged: nn.Module) -> None:
        """Store the weights of a merged model in the formats of the base; PeftkitError for one that cannot be."""
        assert self.quantization is not None
        quantize(merged, self.quantization)
        forget_originals(merged)

    def differences(self, other: Tensor, what: str) -> dict[str, float]:
        """Return the largest and the mean difference of logits `other` to the trained model's, as `what`_..."""
        difference = (other - self.logits).abs()
        return {f"{what}_max_difference": float(difference.max()), f"{what}_mean_difference": float(difference.mean())}

    def write(self, trained: Trained, plain: Path, folder: Path, expected: Tensor) -> None:
        """Pack the merged model that lies in `plain` into `folder`, and check that it gives the `expected` logits."""
        merged, words = reopen(trained, plain, trained.original_dtype), trained.tokenizer
        mark = fingerprint(cast(nn.Module, merged))
        self.pack(cast(nn.Module, merged))
        assert self.quantization is not None
        storage = self.quantization.description()
        write_packed(LoadedModel(merged, words, trained.name, mark, plain, storage), folder)
        section = ModelSection(name=str(folder), trust_remote_code=trained.recipe.model.trust_remote_code)
        reopened = load(section, dtype=torch.float32)
        compare(logits(reopened.module, words), expected, BOUND, "the packed model")


def write_shifted(trained: Trained, folder: Path) -> dict[str, Any]:
    """Write the model with its adapter in the stored scales and zero points: no code changes, and nothing is rounded.

    Returns the difference to the logits of the trained model, which fp32 explains. Raises PeftkitError for an adapter
    that has no equal there.
    """
    words = trained.tokenizer
    expected = logits(trained.module, words)
    trained.adaptation.merge_packed_()
    write_packed(replace(trained, fingerprint=_dense_fingerprint(trained.model)), folder)
    section = ModelSection(name=str(folder), trust_remote_code=trained.recipe.model.trust_remote_code)
    written = logits(load(section, dtype=torch.float32).module, words)
    report = compare(written, expected, BOUND, "the packed model")
    return {**report, "meaning": "the adapter stands in the stored scales and zero points; every code is as it was"}


def _dense_fingerprint(model: PreTrainedModel) -> str:
    """Return the fingerprint of a packed model as if its weights were plain ones."""
    whole = cast(nn.Module, model)
    weights = {name: parameter.detach() for name, parameter in own_parameters(whole)}
    samples = {name: (list(weight.shape), sample(weight, None)) for name, weight in weights.items()}
    stacks = {path: layer for path, layer in whole.named_modules() if isinstance(layer, PackedStack)}
    packed: dict[str, Callable[[], Tensor]] = {path: stack.read for path, stack in stacks.items()}
    for path, layer in whole.named_modules():
        if isinstance(layer, StoredLinear) and path.rpartition(".")[0] not in stacks:
            packed[f"{path}.weight"] = partial(dense, layer)
    for name, read in packed.items():
        weight = read()
        samples[name] = (list(weight.shape), sample(weight, None))
    return digest(whole, samples)


def dequantize(trained: Trained) -> list[str]:
    """Make the packed weights of a merged model plain ones; returns their names."""
    with torch.device("meta"):
        outline = type(trained.model)(trained.model.config)
    paths = unpack(trained.module, outline)
    own = {name for name, _ in own_parameters(trained.model)}
    return [path if path in own else f"{path}.weight" for path in paths]
