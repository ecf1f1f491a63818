"""What a run takes outside of its steps: Python and the libraries, loading a model, drawing the loss curve."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit import plot
from peftkit.device import COMPUTED, autocast
from peftkit.estimation.live import Live, fake
from peftkit.layout import Layout, own_parameters
from peftkit.machine import resident_memory
from peftkit.models.folder import description
from peftkit.models.loaded import LoadedModel
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers
from peftkit.quantization.packed import PackedLinear

COPIES = 4
"""Matrices that packing a calibrated layer holds beside its weight and sums: moments, a factor, an inverse, room."""


SORTED = 24
"""Bytes of a weight while its matrix is pruned: the weight and its score in fp32, their order in int64, and room."""


def process_memory(model: nn.Module, device: torch.device, precision: str) -> int:
    """Measure what this process takes before any weight is there, once the code that training runs is loaded.

    A step of a tiny model loads the kernels of the libraries, and those that unpack quantized weights are chosen. 0 on
    other devices than the CPU: what counts there are tensors.
    """
    if device.type != "cpu":
        return 0
    small = tiny("llama").train()
    ids = torch.ones(2, 32, dtype=torch.long)
    # Products of some size have buffers of their own.
    wide = nn.Linear(512, 512)
    with autocast(device, precision):
        logits = small(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="sum")
        loss = loss + wide(torch.ones(128, 512)).sum()
    loss.backward()
    trained = list(small.parameters())
    keys = [str(index) for index in range(len(trained))]
    Optimizers([{"params": trained, "keys": keys, "lr": 1e-3, "weight_decay": 0.0}]).step()
    nn.utils.clip_grad_norm_(trained, 1.0)
    computed = COMPUTED.get(precision, torch.float32)
    for quantizer in {module.quantizer for module in _packed(model)}:
        quantizer.unpack(quantizer.quantize(torch.ones(64, 4096)), (64, 4096), computed)
    return resident_memory()


def drawing_memory() -> int:
    """Measure what drawing the loss curve takes, which comes last in a run, when its libraries are loaded."""
    before = resident_memory()
    with tempfile.TemporaryDirectory() as folder:
        plot.draw_loss(Path(folder) / "loss.png", [{"step": 1, "loss": 1.0, "lr": 1.0}], "loss")
    return max(0, resident_memory() - before)


def loading_memory(loaded: LoadedModel, shown: tuple[int, int] = (0, 0), pruned: bool = False) -> int:
    """Return the most bytes that loading a model takes on the CPU, as the model on the meta device shows.

    `shown` are the number and the length of the examples that the base is shown where formats are calibrated or weights
    `pruned`: it is there dense then, and at the end packed beside that.
    """
    model = cast(nn.Module, loaded.model)
    deciding = _deciding(model, *shown, pruned) if loaded.has_originals else 0
    if not deciding:
        return _reading(loaded)
    dense = sum(layer.out_features * layer.in_features * layer.dtype.itemsize for layer in _packed(model))
    own = sum(size(parameter) for _, parameter in own_parameters(model))
    packed = sum(size(part) for layer in _packed(model) for part in layer.buffers(recurse=False))
    return max(_reading(loaded), own + packed + dense + deciding)


def _reading(loaded: LoadedModel) -> int:
    """Return the most bytes that reading a model and packing it weight by weight takes.

    Layers are packed one by one, each dense until it is, unless the checkpoint holds them packed. A checkpoint of which
    nothing is packed is mapped whole, and stays beside its weights until all are converted where they have another
    dtype. What is unpacked as it is read is in fp32 then, twice for a moment. A model with random weights is made whole
    in fp32, and packed while that is there.
    """
    model = cast(nn.Module, loaded.model)
    own = [parameter for _, parameter in own_parameters(model)]
    packed = {(layer.quantizer, layer.out_features, layer.in_features): layer for layer in _packed(model)}
    packing = max(map(_packing, packed.values()), default=0) if loaded.has_originals else 0
    held = sum(map(size, own)) + sum(size(part) for layer in _packed(model) for part in layer.buffers(recurse=False))
    if loaded.unpacked is not None:
        dense = [layer.out_features * layer.in_features for layer in _packed(model)]
        return held + max([packing, *(8 * count for count in (*dense, *(parameter.numel() for parameter in own)))])
    if loaded.source is None:
        dense = sum(layer.out_features * layer.in_features for layer in _packed(model))
        dense += sum(parameter.numel() for parameter in own)
        return 4 * dense + packing + (held - sum(map(size, own)))
    stored = _stored_dtype(loaded.source)
    converted = [parameter.numel() * stored.itemsize for parameter in own if parameter.dtype != stored]
    return held + (max([packing, *converted]) if packed else sum(converted))


def _deciding(model: nn.Module, samples: int, tokens: int, pruned: bool) -> int:
    """Return the most bytes that pruning and calibration take beside dense and packed layers; 0 without either.

    These are the sums of products of a layer's inputs (all of one layer of the model at once), those of the layer
    which is packed in float64, its weight in fp32 a few times, and what the examples are in front of a layer. Pruning
    takes the weight, its scores and their order.
    """
    layout = Layout(model)
    sums: dict[int | None, dict[int, int]] = {}
    working = [SORTED * site.inputs * site.outputs for site in layout.linears if pruned and site.layer is not None]
    for site in layout.linears:
        layer = site.module
        if isinstance(layer, PackedLinear) and layer.quantizer.calibrated:
            sums.setdefault(site.layer, {})[id(layer)] = 4 * layer.in_features**2
            working.append(COPIES * 8 * layer.in_features**2 + COPIES * 4 * layer.out_features * layer.in_features)
    if not working:
        return 0
    states = samples * tokens * layout.width * next(parameter.itemsize for parameter in model.parameters())
    return max((sum(each.values()) for each in sums.values()), default=0) + max(working) + states


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype in which a checkpoint is stored, as its config.json says."""
    described = description(folder)
    dtype = getattr(torch, str(described.get("dtype") or described.get("torch_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _packing(module: PackedLinear) -> int:
    """Return the most bytes held while the layer's weight is packed, the dense weight and the packed one included."""
    with fake(), Live() as live:
        weight = torch.empty(module.out_features, module.in_features, dtype=module.dtype)
        module.quantizer.encode(weight.float())
    return sum(live.alive(live.highest()).values())


def _packed(model: nn.Module) -> Iterator[PackedLinear]:
    return (module for module in model.modules() if isinstance(module, PackedLinear))


def size(tensor: Tensor) -> int:
    """Return the bytes of a tensor."""
    return tensor.numel() * tensor.element_size()
