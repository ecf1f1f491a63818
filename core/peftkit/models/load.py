"""Loading a base model and its tokenizer from the source that a recipe names or describes."""

from __future__ import annotations

from dataclasses import replace

import torch

from peftkit.models import configuration, packed_folder, tokenizer
from peftkit.models import folder as folders
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization
from peftkit.models.quiet import quiet
from peftkit.models.sources import ModelFiles, Request, checkpoint, foreign, initial, packed
from peftkit.recipe import ModelSection, QuantizationSection


def load(
    section: ModelSection,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    weights: bool = True,
    quantization: QuantizationSection | None = None,
) -> LoadedModel:
    """Load what `section` names onto `device`; `dtype` None follows the section.

    With `quantization` the linear layers that it names are packed; the fingerprint is that of the weights before. A
    folder of packed weights is loaded as it is stored. An automatic dtype is fp32 on the CPU, and elsewhere the
    checkpoint's own (bfloat16 for float16). Without `weights` the model is on the meta device, made from the
    configuration alone. Raises PeftkitError naming the file at fault.
    """
    chosen = Quantization() if quantization is None else Quantization.of(quantization)
    budget = None if quantization is None else quantization.budget
    request = Request(section, torch.device(device), dtype, weights, chosen, budget)
    with quiet():
        if section.init is not None:
            return initial.load(request)
        files = _files(section, weights)
        if foreign.method_of(files.config) is not None:
            return foreign.load(request, files)
        if packed_folder.is_packed(files.folder):
            request = replace(request, quantization=packed.stored(request, files.folder))
            return packed.load(request, files)
        return checkpoint.load(request, files)


def _files(section: ModelSection, weights: bool) -> ModelFiles:
    """Find the model's folder, and read its configuration and its tokenizer, or the one that the section names."""
    trust = section.trust_remote_code
    folder = folders.find(str(section.name), section.revision, weights=weights, code=trust)
    config = configuration.from_folder(folder, trust_remote_code=trust)
    folders.check_settings(folder)
    foreign.check(config, str(folder / "config.json"))
    words = tokenizer.load_tokenizer(section) if section.tokenizer else tokenizer.read(folder, trust_remote_code=trust)
    return ModelFiles(folder, config, words)
