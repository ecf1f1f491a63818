"""Which weights of a base are pruned, and those that examples have packed: who does it again may get others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftkit import files, schemas
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization, itself
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.stack import PackedStack, matrix, put_packed
from peftkit.quantization.storage import Storage, in_words
from peftkit.quantization.weight import dense
from peftkit.schemas import Stored, Text
from peftkit.tensor_file import TensorFile, write_tensors

VERSION = 1
WEIGHTS, FACTS = "calibrated.safetensors", "calibrated.json"
MASK = ".mask"
"""Behind the path of a map: a bit for each weight, 1 where it stays."""
AGAIN = "Bring the earlier file back, or calibrate again in another run."


class CalibratedFacts(Stored):
    """What `calibrated.json` says."""

    version: int
    fingerprint: Text | None
    """That of the model before it was changed."""
    mark: Text
    """SHA-256 of the tensors."""
    storage: Storage


@dataclass(frozen=True)
class KeptBase:
    """What lies in a folder that `write` has filled."""

    folder: Path
    mark: str
    pruning: dict[str, Any] | None
    masks: dict[str, Tensor]
    """Which weights stay, by the paths of their maps; empty where nothing is pruned."""
    parts: dict[str, Tensor]
    """The packed tensors by their paths."""

    def fill(self, model: nn.Module, quantization: Quantization) -> None:
        """Put the packed layers in the place of dense ones, each of which keeps its dense weight.

        Raises PeftkitError for one that is not there or is of another size.
        """
        layout = Layout(model)
        stacks = {site.id: site for site in layout.stacks}
        chosen = {path: one for path, one in quantization.choose(layout).items() if one.calibrated}
        for path, quantizer in chosen.items():
            if path in stacks:
                site = stacks[path]
                held = cast(Tensor, site.held).detach()
                readers = [partial(matrix, held, index, site.transposed) for index in range(len(held))]
                layers = [_layer(f"{path}.{i}", read, None, quantizer, self.parts) for i, read in enumerate(readers)]
                put_packed(site.module, str(site.stack), PackedStack(layers, site.transposed))
            else:
                module = cast(Any, model.get_submodule(path))
                read = partial(itself, dense(module).detach())
                layer = _layer(path, read, module.bias, quantizer, self.parts)
                model.set_submodule(path, layer.train(module.training))


def mark(model: nn.Module, masks: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the masks and of what is packed in calibrated formats."""
    return _digest(_tensors(model, masks))


def write(
    folder: Path, model: nn.Module, fingerprint: str | None, storage: Mapping[str, Any], masks: Mapping[str, Tensor]
) -> None:
    """Write the masks and what is packed in calibrated formats into a new folder, in the place of one that is there."""
    tensors = _tensors(model, masks)
    with files.new_folder(folder, replace=True) as temporary:
        write_tensors(temporary / WEIGHTS, tensors)
        facts = {"version": VERSION, "fingerprint": fingerprint, "mark": _digest(tensors), "storage": storage}
        files.write_json(temporary / FACTS, facts)


def read(folder: Path, quantization: Quantization, base: LoadedModel) -> KeptBase:
    """Read what `write` wrote for this base in these formats.

    Raises PeftkitError for files that are damaged, or of another model or other formats.
    """
    facts = schemas.read(folder / FACTS, CalibratedFacts, AGAIN)
    if facts["version"] != VERSION:
        raise PeftkitError(f"{folder / FACTS} has the version {facts['version']}; read is {VERSION}. {AGAIN}")
    if None not in (base.fingerprint, facts["fingerprint"]) and base.fingerprint != facts["fingerprint"]:
        raise PeftkitError(f"{folder} holds the weights of another base model: name a run of this one.")
    stored = Quantization.described(facts["storage"])
    if stored != quantization:
        raise PeftkitError(
            f"{folder} holds weights stored as {in_words(facts['storage'])}, and the recipe asks for "
            f"{quantization.in_words()}: name a run of the same formats, or leave calibration.weights out."
        )
    file = TensorFile(folder / WEIGHTS)
    tensors = {name: file.read(name) for name in file.names}
    if _digest(tensors) != facts["mark"]:
        raise PeftkitError(f"{folder / WEIGHTS} is damaged: its checksum differs. {AGAIN}")
    masks = {name.removesuffix(MASK): part for name, part in tensors.items() if name.endswith(MASK)}
    parts = {name: part for name, part in tensors.items() if not name.endswith(MASK)}
    return KeptBase(folder, facts["mark"], facts["storage"].get("pruning"), masks, parts)


def _layer(
    path: str,
    read: Callable[[], Tensor],
    bias: nn.Parameter | None,
    quantizer: Quantizer,
    tensors: Mapping[str, Tensor],
) -> PackedLinear:
    """Return the packed layer of a dense weight [out, in], which `read` gives."""
    weight = read()
    sizes = (weight.shape[0], weight.shape[1])
    parts = {}
    for key, part in quantizer.quantize(torch.empty(sizes, device="meta"), path).items():
        found = tensors.get(f"{path}.{key}")
        if found is None or found.shape != part.shape or found.dtype != part.dtype:
            raise PeftkitError(f"the calibrated weights of {path} are not there, or of another size. {AGAIN}")
        parts[key] = found.to(weight.device)
    layer = PackedLinear(parts, sizes, weight.dtype, quantizer)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    layer.source = read
    return layer


def _tensors(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layers = {path: one for path, one in model.named_modules() if isinstance(one, PackedLinear)}
    calibrated = {path: one for path, one in layers.items() if one.quantizer.calibrated}
    parts = {f"{path}.{key}": part for path, one in calibrated.items() for key, part in one.packed().items()}
    return {**parts, **{path + MASK: mask for path, mask in masks.items()}}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
