"""The weight of a layer as one dense matrix, whatever the layer's class keeps inside: read it, write it.

A storage format registers its reader and its writer here and nothing else is known of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftkit.errors import PeftkitError

INTEGERS, ZERO_POINTS, BINARY = "integers", "integers with zero points", "binary codes"
"""Traits of a stored weight, in words that follow "stored as".

INTEGERS and BINARY have `steps` and take a `shift` of their scales; with ZERO_POINTS a shift may have an offset.
"""


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


@dataclass(frozen=True)
class Steps:
    """How a stored weight follows its scales: it moves by `basis` times what is added to the scale of each group."""

    scale: Tensor
    """[out, groups] in fp32; a group is `in / groups` inputs of one output that lie side by side."""
    basis: Callable[[], Tensor]
    """Reads the matrix [out, in] that the scales multiply, in fp32: the codes, which stay as they are."""


@singledispatch
def traits(module: nn.Module) -> frozenset[str]:
    """Return what the storage of `module` has beside a weight: see `Quantizer.traits`. A plain layer has nothing."""
    return frozenset()


@singledispatch
def steps(module: nn.Module) -> Steps:
    """Return how the weight follows its scales; PeftkitError where it has none."""
    raise PeftkitError(f"{type(module).__name__} does not keep its weight as scales and codes: choose another storage.")


@singledispatch
def shift(module: nn.Module, scale: Tensor | None, offset: Tensor | None) -> Callable[[], None]:
    """Add to the stored weight `scale` [out, groups] times the basis and `offset` [out, groups], each over its group.

    No code changes, and nothing is rounded but the new scales and zero points to fp32. Returns what puts the old ones
    back. Raises PeftkitError with nothing changed where the storage has no place for them.
    """
    raise PeftkitError(f"{type(module).__name__} does not keep its weight as scales and codes: choose another storage.")


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
