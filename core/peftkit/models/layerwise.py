"""Reading a checkpoint tensor by tensor, each weight packed as it comes: never is the whole dense model there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftkit.layout import Layout, Site
from peftkit.models.contents import Contents
from peftkit.models.fingerprint import digest, sample, sample_of
from peftkit.models.merged_stacks import MergedStack, StoredTensor
from peftkit.models.quantize import replace, replace_stack
from peftkit.quantization.quantizer import Quantizer


def read(
    model: PreTrainedModel,
    paths: list[Path],
    dtype: torch.dtype,
    packed: Mapping[str, Quantizer],
    as_if: torch.dtype | None = None,
) -> str | None:
    """Fill a model made under `without_weights` from safetensors files; return the fingerprint of what they hold.

    `packed` names the linear layers to pack. Returns None, with nothing read, where the files hold other tensors than
    the model, or in another form: transformers has to convert or to refuse such a checkpoint. Raises PeftkitError for a
    weight that cannot be packed. `as_if` is the dtype that the fingerprint takes the weights in.
    """
    if not _fits(model, contents := Contents(cast(nn.Module, model), paths)):
        return None
    tied = _tied(model)
    samples: dict[str, tuple[list[int], Tensor]] = {}
    transposed = {path for path in packed if isinstance(_module(model, path), Conv1D)}
    stacks = {site.id: site for site in Layout(cast(nn.Module, model)).stacks if site.id in packed}
    for name, place in {**contents.places, **contents.merged}.items():
        path, _, kind = name.rpartition(".")
        module = model.get_submodule(path)
        if name in tied:
            continue
        if kind in module._buffers:
            module._buffers[kind] = place.read().to(module._buffers[kind])
            continue
        if name in stacks:
            values = _pack_stack(stacks[name], place, dtype, packed[name], as_if)
            samples[name] = (place.shape, values)
            release_memory()
            continue
        value = place.read().to(dtype)
        samples[name] = (list(value.shape), sample(value, as_if))
        setattr(module, kind, nn.Parameter(value, requires_grad=False))
        if kind == "weight" and path in packed:
            replace(model, path, packed[path], partial(read_weight, place, dtype, path in transposed))
            release_memory()
    model.tie_weights()
    return digest(model, samples)


def _pack_stack(
    site: Site, place: StoredTensor | MergedStack, dtype: torch.dtype, quantizer: Quantizer, as_if: torch.dtype | None
) -> Tensor:
    """Pack a stack, of which one weight is dense at a time; returns the sample of all that it held."""
    values: list[Tensor] = []

    def seen(index: int, weight: Tensor) -> None:
        stored = weight.T if site.transposed else weight
        values.append(sample_of(stored, index, site.experts, as_if))

    replace_stack(site, quantizer, readers_of(site, place, dtype), seen)
    return torch.cat(values)


def readers_of(site: Site, place: StoredTensor | MergedStack, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    """Return what reads each weight [out, in] of a stack."""
    return [partial(read_weight, place, dtype, site.transposed, index) for index in range(site.experts)]


@contextmanager
def without_weights() -> Iterator[None]:
    """Build models inside with their parameters on the meta device, and their buffers where they belong."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # One that is there already is tied: it stays the same.
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _fits(model: PreTrainedModel, contents: Contents) -> bool:
    """Say whether files hold all that the model has, in its shapes, and nothing else."""
    shapes = {name: list(tensor.shape) for name, tensor in cast(nn.Module, model).state_dict().items()}
    # A tensor under several names is wanted under the first.
    names = {name for name, _ in (*model.named_parameters(), *cast(nn.Module, model).named_buffers())}
    held = {name: place.shape for name, place in (*contents.places.items(), *contents.merged.items())}
    lacking = (names & set(shapes)) - _tied(model) - set(held)
    return contents.whole and not lacking and all(shapes[name] == shape for name, shape in held.items())


def _module(model: PreTrainedModel, path: str) -> nn.Module | None:
    """Return the module at a path; None where a stack of its parent's is meant."""
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent)._modules.get(name)


def _tied(model: PreTrainedModel) -> set[str]:
    """Return the names under which a tied head is stored a second time."""
    layout = Layout(cast(nn.Module, model))
    return {f"{site.path}.weight" for site in layout.linears if site.tied and site.role == "head"}


def read_weight(
    place: StoredTensor | MergedStack, dtype: torch.dtype, transposed: bool, index: int | None = None
) -> Tensor:
    """Read one weight [out, in], of a stack the one with this number."""
    weight = place.read(index).to(dtype)
    return weight.T if transposed else weight


def release_memory() -> None:
    """Give memory that was freed back to the system: glibc keeps what lies between blocks that are still in use."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such library
        return None
