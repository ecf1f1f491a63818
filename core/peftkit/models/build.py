"""Building a model from its configuration: whole, without weights, or read whole by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from peftkit.errors import PeftkitError
from peftkit.families import family_of
from peftkit.layout import Layout
from peftkit.models import configuration, layerwise
from peftkit.models.contents import Contents, outside
from peftkit.models.quantize import Quantization
from peftkit.quantization.quantizer import Quantizer
from peftkit.tensor_file import Tensors

STALE_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


def build(
    config: PretrainedConfig, dtype: torch.dtype, where: str = "model", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Build the model of a configuration with random weights; `where` names the recipe's key in an error."""
    try:
        return family_of(config).loader.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:  # sizes that do not fit together fail in the model's own code, in every way
        raise PeftkitError(
            f"{where}: no {config.model_type} can be built from this configuration: {configuration.one_line(error)}"
        ) from error


def on_meta(config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the model on the meta device, buffers included, in the dtypes in which transformers reads a checkpoint."""
    with torch.device("meta"):
        model = build(config, dtype, trust_remote_code=trust_remote_code)
    kept = (model._keep_in_fp32_modules_strict or ()) if dtype in (torch.float16, torch.bfloat16) else ()
    parts = cast(nn.Module, model)
    for name, tensor in (*parts.named_parameters(), *parts.named_buffers()):
        if any(fnmatchcase(name, f"*{pattern}*") for pattern in kept):
            tensor.data = tensor.data.float()
    return model


def outline(
    config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool, quantization: Quantization
) -> tuple[PreTrainedModel, dict[str, Quantizer]]:
    """Build the model without its weights, and find which of its layers are packed."""
    with layerwise.without_weights():
        model = build(config, dtype, trust_remote_code=trust_remote_code)
    return model, quantization.choose(Layout(cast(nn.Module, model)))


def check_shapes(place: Path, model: PreTrainedModel, held: Sequence[Tensors]) -> None:
    """Refuse weights of other shapes than those of `model`, which is on the meta device.

    What reads them would first take the memory for what the configuration asks for.
    """
    wanted = {name: list(tensor.shape) for name, tensor in cast(nn.Module, model).state_dict().items()}
    for name, stored in Contents(cast(nn.Module, model), held).places.items():
        if stored.shape != wanted[name]:
            raise PeftkitError(_misshaped(place, name, stored.shape, wanted[name]))


def _misshaped(folder: Path, name: str, stored: Any, wanted: Any) -> str:
    return f"model: '{name}' in {folder} has the shape {list(stored)}, and its config.json asks for {list(wanted)}."


def read_whole(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool, **rest: Any
) -> PreTrainedModel:
    """Read a checkpoint with transformers; refuses weights that are missing, left over or misshaped."""
    try:
        loaded: Any = family_of(config).loader.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **rest,
        )
    except Exception as error:  # the model's own code may fail in every way on a wrong configuration
        raise PeftkitError(f"model: {folder} cannot be loaded: {configuration.one_line(error)}") from error
    model, faults = loaded
    if faults["mismatched_keys"]:
        name, stored, wanted = sorted(faults["mismatched_keys"])[0]
        raise PeftkitError(_misshaped(folder, name, stored, wanted))
    _refuse(folder, "lacks", faults["missing_keys"])
    beyond = {key for key in faults["unexpected_keys"] if not outside(cast(nn.Module, model)).match(key)}
    _refuse(folder, "holds, beyond what config.json describes,", beyond)
    if faults.get("error_msgs"):
        raise PeftkitError(f"model: {folder} cannot be loaded: {'; '.join(faults['error_msgs'])}")
    return model


def _refuse(folder: Path, fault: str, keys: set[str]) -> None:
    faults = sorted(key for key in keys if not key.endswith(STALE_BUFFERS))
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise PeftkitError(
            f"model: the checkpoint in {folder} {fault} {', '.join(faults[:3])}{more}: the weights and config.json do "
            "not belong together."
        )
