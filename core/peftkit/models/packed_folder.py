"""A model's packed weights in a folder: one safetensors file, and what they mean beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftkit import files, schemas
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.stack import PackedStack, put_packed
from peftkit.quantization.storage import Storage
from peftkit.quantization.weight import shape
from peftkit.schemas import Stored, Text
from peftkit.tensor_file import TensorFile, write_tensors

VERSION = 1
WEIGHTS, FACTS = "packed.safetensors", "packed.json"


AGAIN = "Pack the model again."


class PackedFacts(Stored):
    """What `packed.json` says."""

    version: int
    fingerprint: Text | None
    sha256: Text
    storage: Storage


def write(where: Path, model: nn.Module, fingerprint: str | None, storage: Mapping[str, Any]) -> None:
    """Write the weights of `model` into the folder `where`, packed ones as they are packed.

    `fingerprint` is that of the weights before they were packed and `storage` the description of their formats. Seated
    adapters are left out; a weight that several modules share is written once.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if ".seated." not in f".{name}" and (tensor.data_ptr() not in seen or not tensor.numel()):
            tensors[name] = tensor
        seen.add(tensor.data_ptr())
    write_tensors(where / WEIGHTS, tensors)
    sha256 = files.checksum(where / WEIGHTS)
    facts = {"version": VERSION, "fingerprint": fingerprint, "sha256": sha256, "storage": storage}
    files.write_json(where / FACTS, facts)


def is_packed(folder: Path) -> bool:
    """Say whether `write` has filled this folder."""
    return (folder / FACTS).is_file()


def facts(folder: Path) -> dict[str, Any]:
    """Return `fingerprint`, `sha256` and `storage` of a packed folder; a damaged description is a PeftkitError."""
    path = folder / FACTS
    content = schemas.read(path, PackedFacts, AGAIN)
    if content["version"] != VERSION:
        raise PeftkitError(f"{path} has the version {content['version']}, and this peftkit reads {VERSION}. {AGAIN}")
    return content


def fill(
    model: nn.Module,
    where: Path,
    packed: Mapping[str, Quantizer],
    dtype: torch.dtype,
    source: Callable[[str], list[Callable[[], Tensor]]] | None = None,
) -> str | None:
    """Fill a model made without weights from what `write` left in `where`; return the fingerprint written there.

    `packed` names what is packed, `dtype` what those weights are unpacked to and others are cast to. `source(path)`
    gives what reads the weight of a layer, or each of a stack, as it was before, where that is still to be had. Raises
    PeftkitError for files that are damaged or belong to another model: `model` is then unusable, but for a checksum
    that differs, which is found before anything is changed.
    """
    known, file = facts(where), TensorFile(where / WEIGHTS)
    if files.checksum(where / WEIGHTS) != known["sha256"]:
        raise PeftkitError(f"{where / WEIGHTS} is damaged: its checksum differs.")
    wanted = {name for name, tensor in model.named_parameters() if tensor.is_meta}
    # A folder of an earlier version may hold stacks that were not packed yet.
    stacks = {site.id: site for site in Layout(model).stacks if site.id in packed and site.id not in file.names}
    linears = {path: quantizer for path, quantizer in packed.items() if path in dict(model.named_modules())}
    inside = [f"{key}.{index}" for key, site in stacks.items() for index in range(site.experts)]
    parts: dict[str, dict[str, Tensor]] = {path: {} for path in [*linears, *inside]}
    for name in file.names:
        path, _, key = name.rpartition(".")
        if path in parts and key != "bias":
            parts[path][key] = file.read(name)
            wanted -= {f"{path}.weight", path.rpartition(".")[0]}
        else:
            _place(model, name, file.read(name), dtype)
            wanted.discard(name)
    wanted |= {path.rpartition(".")[0] for path in inside if not parts[path]}
    for path, quantizer in linears.items():
        module = cast(Any, model.get_submodule(path))
        layer = PackedLinear(parts[path], cast("tuple[int, int]", shape(module)), dtype, quantizer)
        layer.bias = module.bias
        layer.source = None if source is None else source(path)[0]
        model.set_submodule(path, layer)
    for key, site in stacks.items():
        sizes = (site.outputs, site.inputs)
        layers = [PackedLinear(parts[f"{key}.{i}"], sizes, dtype, packed[key]) for i in range(site.experts)]
        for layer, read in zip(layers, [None] * len(layers) if source is None else source(key), strict=True):
            layer.source = read
        put_packed(site.module, str(site.stack), PackedStack(layers, site.transposed))
    if wanted - _tied(model):
        raise PeftkitError(f"{where / WEIGHTS} lacks {min(wanted)}: it belongs to another model than its config.json.")
    cast(Any, model).tie_weights()
    return known["fingerprint"]


def _place(model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    path, _, key = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise PeftkitError(f"{name} is no weight of this model: the packed file belongs to another one.") from None
    if key in module._buffers:
        module._buffers[key] = tensor
        return
    own = module._parameters.get(key)
    if own is None or own.shape != tensor.shape:
        there = "no weight" if own is None else f"of the shape {list(own.shape)}"
        raise PeftkitError(f"{name} {list(tensor.shape)} is {there} in this model: the packed file is another one's.")
    setattr(module, key, nn.Parameter(tensor.to(dtype), requires_grad=False))


def _tied(model: nn.Module) -> set[str]:
    """Return the names of weights that follow from others."""
    return set(getattr(model, "all_tied_weights_keys", None) or {})
