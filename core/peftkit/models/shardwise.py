"""Reading a checkpoint tensor by tensor, each linear layer packed as it comes: never is the whole dense model there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftkit.layout import Layout
from peftkit.models.fingerprint import digest, sample
from peftkit.models.quantize import replace
from peftkit.quantization.quantizer import Quantizer


def read(
    model: PreTrainedModel,
    paths: list[Path],
    dtype: torch.dtype,
    packed: Mapping[str, Quantizer],
    as_if: torch.dtype | None = None,
) -> str | None:
    """Fill a model made under `without_weights` from safetensors files; return the fingerprint of what they hold.

    `packed` names the linear layers to pack. Returns None, with the model unusable, where the files name their tensors
    otherwise than the model does: transformers has to convert such a checkpoint. Raises PeftkitError for a weight that
    cannot be packed. `as_if` is the dtype that the fingerprint takes the weights in.
    """
    wanted = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    tied = _tied(model)
    samples: dict[str, tuple[list[int], Tensor]] = {}
    transposed = {path for path in packed if isinstance(model.get_submodule(path), Conv1D)}
    for file, name, tensor in _tensors(paths):
        if name in tied:
            continue
        if name not in wanted or tensor.shape != model.get_parameter(name).shape:
            return None
        value = tensor.to(dtype) if tensor.dtype != dtype else tensor.clone()
        samples[name] = (list(value.shape), sample(value, as_if))
        path, _, kind = name.rpartition(".")
        setattr(model.get_submodule(path), kind, nn.Parameter(value, requires_grad=False))
        if kind == "weight" and path in packed:
            replace(model, path, packed[path], partial(again, file, name, dtype, path in transposed))
    if wanted - set(samples):
        return None
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


def _tied(model: PreTrainedModel) -> set[str]:
    """Return the names under which a tied head is stored a second time."""
    layout = Layout(cast(nn.Module, model))
    return {f"{site.path}.weight" for site in layout.linears if site.tied}


def again(path: Path, name: str, dtype: torch.dtype, transposed: bool) -> Tensor:
    """Read one weight [out, in] of a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        weight = cast(Any, file).get_tensor(name).to(dtype)
    return weight.T if transposed else weight


def places(paths: list[Path]) -> dict[str, Path]:
    """Return the file of each tensor."""
    from safetensors import safe_open

    found = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(cast(Any, file).keys(), path)
    return found


def _tensors(paths: list[Path]) -> Iterator[tuple[Path, str, Tensor]]:
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, framework="pt") as file:
            opened: Any = file
            for name in opened.keys():  # noqa: SIM118
                yield path, name, opened.get_tensor(name)
