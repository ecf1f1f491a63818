"""A dense checkpoint on this disk, from the hub or of a package, read whole, or tensor by tensor and packed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftkit.layout import Layout
from peftkit.models import allocation, build, layerwise, packed_cache
from peftkit.models.contents import Contents
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization
from peftkit.models.sources import ModelFiles, Request, ready, with_settings
from peftkit.quantization.weight import dense


def load(request: Request, files: ModelFiles) -> LoadedModel:
    """Read the checkpoint; packed where transformers need not convert its tensors, else dense."""
    trust = request.section.trust_remote_code
    if not request.weights:
        model = build.on_meta(files.config, request.dtype_of(files.dtype), trust)
        return ready(request, model, files.tokenizer, weights=files.weights)
    dtype = request.dtype_of(files.weights.dtype)
    outline = build.on_meta(files.config, dtype, trust)
    build.check_shapes(files.weights.place, outline, files.weights.opened(outline))
    if request.budget is not None:
        request = replace(request, quantization=_allocated(request, files, dtype), budget=None)
    if request.quantization.packs or files.weights.unpacks:
        read = _read_packed(request, files, dtype)
        if read is not None:
            model, mark = read
            storage = request.quantization.description()
            return ready(request, model, files.tokenizer, weights=files.weights, mark=mark, storage=storage)
    model = files.weights.whole(files.config, dtype, trust)
    return ready(request, model, files.tokenizer, weights=files.weights)


def _read_packed(request: Request, files: ModelFiles, dtype: torch.dtype) -> tuple[PreTrainedModel, str] | None:
    """Read a checkpoint layer by layer, or its packed form that an earlier start kept; returns it with its fingerprint.

    None where transformers has to convert the checkpoint's tensors: it is then read whole and packed after that.
    """
    chosen, as_if, weights = request.quantization, request.fingerprint_dtype, files.weights
    model, packed = build.outline(files.config, dtype, request.section.trust_remote_code, chosen)
    held = weights.opened(cast(nn.Module, model))
    facts = {**chosen.description(), "dtype": str(dtype), "as_if": str(as_if)}
    kept = packed_cache.folder(weights.paths, facts) if chosen.packs else None
    mark = packed_cache.read(kept, held, cast(nn.Module, model), packed, dtype) if kept else None
    if mark is None:
        mark = layerwise.read(model, held, dtype, packed, as_if)
        if mark is not None and kept:
            packed_cache.write(kept, cast(nn.Module, model), mark, chosen.description())
    return None if mark is None else (with_settings(model, files.folder), mark)


def _allocated(request: Request, files: ModelFiles, dtype: torch.dtype) -> Quantization:
    """Allocate a budget to the weights of a model, read one by one; the choice is kept for the next start."""
    budget, chosen, trust = request.budget, request.quantization, request.section.trust_remote_code
    assert budget is not None
    facts = {"budget": budget, "dtype": str(dtype)}
    kept = None if chosen.modules else packed_cache.folder(files.weights.paths, facts)
    earlier = packed_cache.choice(kept) if kept else None
    if earlier is not None:
        chosen = Quantization.described(earlier)
    with layerwise.without_weights():
        model = cast(nn.Module, build.build(files.config, dtype, trust_remote_code=trust))
    contents, layout = Contents(model, files.weights.opened(model)), Layout(model)
    stacks = {site.id: site for site in layout.stacks}

    def read(path: str) -> Tensor:
        stack, _, index = path.rpartition(".")
        if stack in stacks:
            place = contents.places.get(stack) or contents.merged.get(stack)
            if place is not None:
                return layerwise.read_weight(place, dtype, stacks[stack].transposed, int(index))
            return dense(next(site for site in whole().stacks if site.id == stack).each()[int(index)].module)
        place = contents.places.get(f"{path}.weight")
        if place is not None:
            return layerwise.read_weight(place, dtype, isinstance(model.get_submodule(path), Conv1D))
        # Names that transformers converts: it has to read the whole checkpoint.
        return dense(whole().modules[path])

    @cache
    def whole() -> Layout:
        return Layout(cast(nn.Module, files.weights.whole(files.config, dtype, trust)))

    chosen = allocation.within(budget, chosen, layout, read)
    if kept and earlier is None:
        packed_cache.keep_choice(kept, chosen.description())
    return chosen
