"""Pack a model's weights into a folder of its own, which recipes name as their model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from peftkit import files
from peftkit import recipe as recipes
from peftkit.assembly import assemble
from peftkit.errors import PeftkitError
from peftkit.export.trained import CPU
from peftkit.models import packed_folder
from peftkit.models.load import original_weights
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.weight import dense, original


def quantize(
    model: str,
    format: str,
    output: Path,
    options: Sequence[str] = (),
    *,
    data: str | None = None,
    data_path: Path | None = None,
) -> dict[str, Any]:
    """Pack the linear layers of `model` as `format` says and write them with all else to the new folder `output`.

    `options` are keys of a recipe's `quantization` section as `key=value`: `block_size=128`, `head=int8`. Weights that
    are not packed keep the checkpoint's dtype. Formats that are calibrated are shown 128 examples of the training split
    of `data`, a data set as recipes name it, whose files are at `data_path`. Returns `format`, `output`,
    `packed_layers`, `bytes_before`, `bytes_after`, `bits_per_weight` of the packed layers counted from their tensors,
    and `weight_error`, |W - Q| / |W| over all of them. Raises PeftkitError for a model that is packed already, an
    unknown format or option, weights that cannot be packed, and data that are missing or not looked at; nothing is left
    at `output` then.
    """
    dataset = {"name": data or "bundled/e2e", "path": None if data_path is None else str(data_path)}
    chosen = {"model": model, "method": "lora", "dataset": dataset, "quantization": {"format": format}}
    recipe = recipes.load(chosen, [f"quantization.{option}" for option in options])
    _check_data(Quantization.of(recipe.quantization), data, data_path)
    weights = original_weights(recipe.model)
    if packed_folder.is_packed(weights.description):
        raise PeftkitError(f"model: {model} is packed already: name the original model.")
    dtype = weights.dtype
    with files.new_folder(output) as folder:
        loaded = assemble(recipe, bare=True, device=CPU, dtype=dtype)
        layers = [module for module in cast(nn.Module, loaded.model).modules() if isinstance(module, PackedLinear)]
        if not layers:
            raise PeftkitError(f"nothing of {model} is packed as '{format}': see `peft list quantization`.")
        write(loaded, folder)
        report = {
            "packed_layers": len(layers),
            "bytes_before": sum(path.stat().st_size for path in weights.paths),
            "bytes_after": (folder / packed_folder.WEIGHTS).stat().st_size,
            "bits_per_weight": _bits(layers),
            "weight_error": _error(layers),
        }
    return {"format": format, "output": str(output), **report}


def _check_data(quantization: Quantization, data: str | None, data_path: Path | None) -> None:
    if quantization.calibrated and data is None:
        raise PeftkitError(
            f"{quantization.in_words()} is calibrated on examples, and none are named; allowed: a data set with "
            "--data, such as bundled/e2e, or custom with --data-path."
        )
    if not quantization.calibrated and (data, data_path) != (None, None):
        raise PeftkitError(f"--data: {quantization.in_words()} looks at no examples: leave it out.")


def write(loaded: LoadedModel, folder: Path) -> None:
    """Write a packed model with its settings and its tokenizer to `folder`."""
    model = loaded.model
    packed_folder.write(folder, cast(nn.Module, model), loaded.fingerprint, loaded.storage)
    cast(Any, model.config).dtype = next(parameter.dtype for parameter in model.parameters())
    model.config.save_pretrained(folder)
    if loaded.source is not None and (loaded.source / "generation_config.json").is_file():
        shutil.copyfile(loaded.source / "generation_config.json", folder / "generation_config.json")
    loaded.tokenizer.save_pretrained(folder)


def _bits(layers: Sequence[PackedLinear]) -> float:
    size = sum(getattr(layer, key).nbytes for layer in layers for key in layer.parts)
    return 8 * size / sum(layer.in_features * layer.out_features for layer in layers)


def _error(layers: Sequence[PackedLinear]) -> float:
    """Return |W - Q| / |W| over the layers, whose original weights are read one by one."""
    lost = whole = 0.0
    for layer in layers:
        weight = original(layer).detach().float()
        lost += float(torch.linalg.norm(weight - dense(layer).float())) ** 2
        whole += float(torch.linalg.norm(weight)) ** 2
    return (lost / whole) ** 0.5 if whole else 0.0
