"""The weight of a layer as one dense matrix, whatever the layer's class keeps inside: read it, write it.

A storage format registers its reader and its writer here and nothing else is known of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, singledispatch

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftkit.errors import PeftkitError


@singledispatch
def dense(module: nn.Module) -> Tensor:
    """Return the weight W [out, in] of `module` (an embedding: [rows, width]); it may share the module's memory.

    Raises PeftkitError where no format has registered a reader for the module's class.
    """
    raise PeftkitError(f"{type(module).__name__} has no weight that can be read as a matrix: choose another target.")


@singledispatch
def store(module: nn.Module, weight: Tensor) -> None:
    """Write `weight` [out, in] (an embedding: [rows, width]) into `module` in place, cast once to the module's dtype.

    Raises PeftkitError where no format has registered a writer for the module's class, or on another shape.
    """
    raise PeftkitError(f"{type(module).__name__} has no weight that can be written as a matrix: choose another target.")


@dense.register(nn.Linear)
@dense.register(nn.Embedding)
def _(module: nn.Linear | nn.Embedding) -> Tensor:
    return module.weight


@dense.register(Conv1D)
def _(module: Conv1D) -> Tensor:
    return module.weight.T


@store.register(nn.Linear)
@store.register(nn.Embedding)
@store.register(Conv1D)
def _(module: nn.Linear | nn.Embedding | Conv1D, weight: Tensor) -> None:
    target = module.weight.T if isinstance(module, Conv1D) else module.weight
    if weight.shape != target.shape:
        raise PeftkitError(
            f"a weight of shape {list(weight.shape)} does not fit {type(module).__name__} of {list(target.shape)}."
        )
    with torch.no_grad():
        target.copy_(weight)


@singledispatch
def original(module: nn.Module) -> Tensor:
    """Return the weight [out, in] as it was before it was stored, or what is stored where that is all there is."""
    return dense(module)


@singledispatch
def has_original(module: nn.Module) -> bool:
    """Say whether `original` gives the weight as it was before it was stored."""
    return True


@singledispatch
def rounded(module: nn.Module, weight: Tensor) -> Tensor:
    """Return what `dense` would give after `store`, in fp32 and without storing: `weight` [out, in] as it is kept."""
    return weight.to(dense(module).dtype).float()


@singledispatch
def hold(module: nn.Module, weight: Tensor, keep: bool = True) -> Callable[[], None] | None:
    """Have `module` compute with exactly `weight` [out, in], cast once to its dtype; return what puts the old one back.

    A format that cannot store the weight without loss holds it beside what it stores. Without `keep` a dense weight is
    overwritten for good and None is returned. Raises PeftkitError as `store` does.
    """
    before = dense(module).detach().clone() if keep else None
    store(module, weight)
    return None if before is None else partial(store, module, before)


def packed_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (out, in) of a linear layer whose weight is no parameter, or None where it is one."""
    return None if "weight" in module._parameters else shape(module)


def shape(module: nn.Module | None) -> tuple[int, int] | None:
    """Return (out, in) of a linear layer of any class, or None where the module is not one.

    Read from the sizes that a layer states, not from its storage, so that a packed layer tells its dense shape.
    """
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type, union-attr]
    if isinstance(module, Conv1D):
        return int(module.nf), int(module.nx)
    return None
