"""Loading a base model and its tokenizer from the source that a recipe names or describes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from peftkit.models import configuration, gguf_folder, packed_folder, positions, tokenizer
from peftkit.models import folder as folders
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization
from peftkit.models.quiet import quiet
from peftkit.models.sources import ModelFiles, Request, checkpoint, foreign, initial, packed
from peftkit.models.weights import FolderWeights, GgufWeights, Weights
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
    folder of packed weights is loaded as it is stored. Weights whose format is calibrated stay dense, for `calibrate`,
    but for the outline of a model without weights. An automatic dtype is fp32 on the CPU, and elsewhere the
    checkpoint's own (bfloat16 for float16). Without `weights` the model is on the meta device, made from the
    configuration alone. Raises PeftkitError naming the file at fault.
    """
    chosen = Quantization() if quantization is None else Quantization.of(quantization)
    budget = None if quantization is None else quantization.budget
    request = Request(section, torch.device(device), dtype, weights, chosen, budget)
    with quiet():
        if section.init is not None:
            return initial.load(_before_calibration(request))
        files = _files(section, weights)
        if foreign.method_of(files.config) is not None:
            return foreign.load(request, files)
        if packed_folder.is_packed(files.folder):
            request = replace(request, quantization=packed.stored(request, files.folder))
            return packed.load(request, files)
        return checkpoint.load(_before_calibration(request), files)


def _before_calibration(request: Request) -> Request:
    """Leave dense what examples are needed for, where weights are read."""
    return replace(request, quantization=request.quantization.uncalibrated) if request.weights else request


def _files(section: ModelSection, weights: bool) -> ModelFiles:
    """Find the model's files, and read its configuration and its tokenizer, or the one that the section names."""
    trust, held = section.trust_remote_code, original_weights(section, weights)
    config = configuration.from_folder(held.description, trust_remote_code=trust)
    folders.check_settings(held.description)
    if held.source is None:
        config.name_or_path = ""
    foreign.check(config, str(held.description / "config.json"))
    if section.rope_factor > 1:
        positions.scale(config, section)
    return ModelFiles(held.description, config, _tokenizer(section, held), held)


def tokenizer_of(section: ModelSection) -> Any:
    """Load the tokenizer that `load` returns with the model, and nothing else of the model.

    Raises PeftkitError where there is none, naming the file at fault.
    """
    with quiet():
        if section.tokenizer is not None or section.init is not None:
            return tokenizer.load_tokenizer(section)
        return _tokenizer(section, original_weights(section, weights=False))


def _tokenizer(section: ModelSection, held: Weights) -> Any:
    """Read the tokenizer that the section names, or else the one beside the weights."""
    if section.tokenizer is not None:
        return tokenizer.load_tokenizer(section)
    return tokenizer.read(held.place, trust_remote_code=section.trust_remote_code)


def original_weights(section: ModelSection, weights: bool = True) -> Weights:
    """Find the weights that `section` names; a repository of the hub is fetched, without `weights` its description."""
    trust, name = section.trust_remote_code, str(section.name)
    found = folders.find(name, section.revision, weights=weights, code=trust, gguf=section.gguf)
    return GgufWeights(gguf_folder.open_file(found)) if found.is_file() else FolderWeights(found)
