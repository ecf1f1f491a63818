"""Checkpoints that another library has quantized: transformers reads them, and their layers are taken over."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from peftkit.errors import PeftkitError
from peftkit.layout import own_parameters
from peftkit.models import build, configuration
from peftkit.models import folder as folders
from peftkit.models.fingerprint import digest, sample
from peftkit.models.loaded import LoadedModel
from peftkit.models.plain import forget_quantization
from peftkit.models.sources import ModelFiles, Request, ready
from peftkit.quantization.foreign import READERS, ForeignLinear, Reader, reader_of
from peftkit.quantization.weight import shape
from peftkit.tensor_file import TensorFile


def load(request: Request, files: ModelFiles) -> LoadedModel:
    """Read the checkpoint with transformers and take its layers over; refuses a recipe that packs it again.

    The fingerprint is that of the tensors in its files, and the storage has the name of the library's method.
    """
    folder, config, trust = files.folder, files.config, request.section.trust_remote_code
    storage = {"format": method_of(config), "options": {}, "modules": {}}
    if request.packs:
        raise PeftkitError(
            f"quantization: the weights in {folder} are quantized already ({method_of(config)}). Leave "
            "`quantization` out, or name the original checkpoint."
        )
    prepare(config)
    dtype = request.dtype_of(files.dtype)
    if not request.weights:
        model = build.on_meta(config, dtype, trust)
        try:
            outline(model, dtype)
        except Exception as error:  # each library's quantizer fails in its own way
            raise PeftkitError(f"model: {folder} cannot be loaded: {configuration.one_line(error)}") from error
        return ready(request, model, files.tokenizer, weights=files.weights, storage=storage)
    paths = folders.shards(folder)
    model = build.read_whole(folder, config, dtype, trust, device_map={"": str(request.device)})
    take_over(model, dtype, folder)
    mark = fingerprint_of(model, paths)
    return ready(request, model, files.tokenizer, weights=files.weights, mark=mark, storage=storage)


def method_of(config: PretrainedConfig) -> str | None:
    """Return the `quant_method` of a configuration, or None where the weights are as they were trained."""
    chosen = getattr(config, "quantization_config", None)
    if not chosen:
        return None
    chosen = chosen if isinstance(chosen, Mapping) else chosen.to_dict()
    method = chosen.get("quant_method", "bitsandbytes" if "load_in_4bit" in chosen else None)
    return str(getattr(method, "value", method))


def check(config: PretrainedConfig, where: str) -> None:
    """Refuse weights quantized in a way that is not known, or that need packages which are not installed."""
    method = method_of(config)
    if method is None:
        return
    readers = [reader for _, reader in READERS.items() if reader.method == method]
    if not readers:
        known = ", ".join(sorted({reader.method for _, reader in READERS.items()}))
        raise PeftkitError(
            f"{where}: the weights are quantized by '{method}'; read are {known}. Name the original checkpoint."
        )
    lacking = [name for name in readers[0].packages if importlib.util.find_spec(name) is None]
    if lacking:
        raise PeftkitError(
            f"{where}: the weights are quantized by {method}, and loading them needs "
            f"{' and '.join(lacking)}: pip install {' '.join(lacking)}."
        )


def prepare(config: PretrainedConfig) -> None:
    """Have the library choose layers that can be read, where it has several kinds."""
    chosen: Any = cast(Any, config).quantization_config
    for _, reader in READERS.items():
        if reader.method == method_of(config):
            for key, value in reader.settings.items():
                chosen[key] = value


def take_over(model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
    """Put a layer of ours around each packed layer of a model that transformers has read.

    The model counts as an ordinary one from then on. Raises PeftkitError for a packed tensor that is left.
    """
    for path, layer in list(cast(nn.Module, model).named_modules()):
        reader = reader_of(layer)
        if reader is not None:
            model.set_submodule(path, ForeignLinear.of(layer, reader, dtype))
    for name, tensor in own_parameters(model):
        if not tensor.is_floating_point() or type(tensor.data) is not Tensor:
            raise PeftkitError(f"model: '{name}' in {folder} is packed in a way that cannot be read here.")
    forget_quantization(model)


def _element_size(quantizer: Any) -> float:
    """Return the bytes of a packed weight; older versions of transformers, such as 5.17, leave it to the kind."""
    size = getattr(quantizer, "quantized_element_size", None)
    config = quantizer.quantization_config
    return size or (0.5 if getattr(config, "load_in_4bit", False) else getattr(config, "bits", 8) / 8)


def outline(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put layers of the packed size where the checkpoint of a model on the meta device has packed ones.

    What transformers itself raises goes through, where it cannot load such a checkpoint.
    """
    quantizer: Any = AutoHfQuantizer.from_config(cast(Any, model.config).quantization_config, pre_quantized=True)
    quantizer.preprocess_model(model=model, dtype=dtype, device_map=None, checkpoint_files=None)
    usual: list[Reader] = [r for _, r in READERS.items() if r.method == method_of(model.config)]
    size = _element_size(quantizer)
    for path, layer in list(cast(nn.Module, model).named_modules()):
        sizes, reader = shape(layer), reader_of(layer)
        if sizes is not None and quantizer.param_needs_quantization(model, f"{path}.weight"):
            quantizer.get_quantize_ops()  # Raises where loading would.
            reader = reader or usual[0]
        if sizes is not None and reader is not None:
            bias = getattr(layer, "bias", None)
            bias = None if bias is None else torch.empty(sizes[0], dtype=dtype, device="meta")
            count = int(sizes[0] * sizes[1] * size)
            model.set_submodule(path, ForeignLinear(None, reader, sizes, dtype, bias, count))
    forget_quantization(model)


def fingerprint_of(model: PreTrainedModel, paths: list[Path]) -> str:
    """Return the fingerprint of a packed checkpoint: of the tensors in its files, the packed ones among them."""
    samples = {}
    for file in map(TensorFile, paths):
        for name in file.names:
            tensor = file.read(name)
            samples[name] = (list(tensor.shape), sample(tensor, torch.float32))
    return digest(model, samples)
