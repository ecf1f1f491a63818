"""Reading a checkpoint tensor by tensor, each linear layer packed as it comes: never is the whole dense model there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftkit.layout import Layout
from peftkit.models.contents import Contents, StoredTensor, Tensors
from peftkit.models.fingerprint import digest, sample
from peftkit.models.quantize import replace
from peftkit.quantization.quantizer import Quantizer


def read(
    model: PreTrainedModel,
    files: Sequence[Tensors],
    dtype: torch.dtype,
    packed: Mapping[str, Quantizer],
    as_if: torch.dtype | None = None,
) -> str | None:
    """Fill a model made under `without_weights` from its files; return the fingerprint of what they hold.

    `packed` names the linear layers to pack. Returns None, with nothing read, where the files hold other tensors than
    the model, or in another form: transformers has to convert or to refuse such a checkpoint. Raises PeftkitError for a
    weight that cannot be packed. `as_if` is the dtype that the fingerprint takes the weights in.
    """
    if not _fits(model, contents := Contents(cast(nn.Module, model), files)):
        return None
    tied = _tied(model)
    samples: dict[str, tuple[list[int], Tensor]] = {}
    transposed = {path for path in packed if isinstance(model.get_submodule(path), Conv1D)}
    for name, place in contents.places.items():
        path, _, kind = name.rpartition(".")
        module = model.get_submodule(path)
        if name in tied:
            continue
        if kind in module._buffers:
            module._buffers[kind] = place.read().to(module._buffers[kind])
            continue
        value = place.read().to(dtype)
        samples[name] = (list(value.shape), sample(value, as_if))
        setattr(module, kind, nn.Parameter(value, requires_grad=False))
        if kind == "weight" and path in packed:
            replace(model, path, packed[path], partial(read_weight, place, dtype, path in transposed))
            release_memory()
    model.tie_weights()
    return digest(model, samples)


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
    held = {name: place.shape for name, place in contents.places.items()}
    lacking = (names & set(shapes)) - _tied(model) - set(held)
    return not contents.strays and not lacking and all(shapes[name] == shape for name, shape in held.items())


def _tied(model: PreTrainedModel) -> set[str]:
    """Return the names under which a tied head is stored a second time."""
    layout = Layout(cast(nn.Module, model))
    return {f"{site.path}.weight" for site in layout.linears if site.tied and site.role == "head"}


def read_weight(place: StoredTensor, dtype: torch.dtype, transposed: bool) -> Tensor:
    """Read one weight [out, in]."""
    weight = place.read().to(dtype)
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
