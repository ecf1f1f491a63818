"""Whether a shortcut computes what it stands for: values and gradients on random inputs, before a run relies on it.

Every shortcut past a model's own code is held to that code by `same`, on the model at hand and below the rounding of
the dtype; what differs is left off. What is tried are twins of modules, which are small and have random weights, so
that it takes milliseconds and needs no weight: a model on the meta device is tried in the same way, and a plan of a run
and the run itself decide alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import Linear, Pair, linears_with_pairs
from peftkit.kernels.wide import wide
from peftkit.ports.shared_input import SharedInput

Way = TypeVar("Way", bound=tuple[Any, ...])

ROUNDINGS = 16
"""How many roundings of fp32 two ways of computing may lie apart; in bf16 it is a few."""
TOKENS = 6
"""Of what is tried, where nothing else says how many."""
RANK = 2
"""Of the pairs that are tried."""
FAULTS = (
    PeftkitError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model's own code raises where it is given what it does not take; want of memory is none of these faults."""


class Draw:
    """Draws normal numbers, always the same ones, and leaves the global random state alone."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def twin(
    module: nn.Module, parameters: Mapping[str, Any] | None = None, modules: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    """Return a module that runs the same code with other parameters and children."""
    other = copy.copy(module)
    other.__dict__.update(_parameters=dict(parameters or {}), _modules=dict(modules or {}))
    return other


class Kinds:
    """Remembers what each kind of module turned out to be, so that one of a kind is tried."""

    def __init__(self) -> None:
        self.left_off: list[str] = []
        """The names of those that are none of what they might be."""
        self._ways: dict[Any, Any] = {}

    def way(self, module: nn.Module, more: Any, ways: Sequence[Way], holds: Callable[..., bool]) -> Way | None:
        """Return the first of the ways for which `holds(*way)`; modules of equal attributes and `more` are alike."""
        kind = attributes(module), more
        if kind not in self._ways:
            self._ways[kind] = next((way for way in ways if holds(*way)), None)
            name = type(module).__name__
            if self._ways[kind] is None and name not in self.left_off:
                self.left_off.append(name)
        return self._ways[kind]


def attributes(module: nn.Module) -> tuple[Any, ...]:
    """Return the class of a module and its plain attributes, but for its place among the layers and its mode."""
    plain = ((name, value) for name, value in vars(module).items() if isinstance(value, (bool, int, float, str)))
    return type(module), *((name, value) for name, value in plain if "layer" not in name and name != "training")


def same(
    own: Callable[..., Tensor], other: Callable[..., Tensor], *inputs: Tensor, by_row: bool = True, factor: float = 1.0
) -> bool:
    """Say whether two functions agree in their values and in the gradients of all inputs; one that fails does not.

    Each row of a result is compared by itself, or the whole of it; `factor` is of the distance that is allowed.
    """
    try:
        with torch.enable_grad():
            one, two = (_measured(function, inputs) for function in (own, other))
    except torch.OutOfMemoryError:
        raise
    except FAULTS:
        return False
    return all(near(a, b, by_row, factor) for a, b in zip(one, two, strict=True))


def near(one: Tensor, other: Tensor, by_row: bool = True, factor: float = 1.0) -> bool:
    """Say whether two tensors of one dtype lie within its roundings of each other."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bound = factor * torch.finfo(one.dtype).eps * (ROUNDINGS if one.dtype in (torch.float32, torch.float64) else 2)
    one, apart = wide(one), wide(one) - wide(other)
    sizes, distances = (x.norm(dim=-1) if by_row else x.norm() for x in (one, apart))
    return bool((distances <= bound * sizes).all())


def _measured(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    given = Draw()(*y.shape).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, given)]


def proven(groups: Sequence[SharedInput]) -> list[SharedInput]:
    """Return those groups of layers of one input whose one function is what the layers compute one by one."""
    tried: dict[Any, bool] = {}

    def is_same(group: SharedInput) -> bool:
        linears = [cast(Linear, member.frozen_linear()) for member in group.members]
        kind = tuple((weight.shape, weight.dtype, bias is None) for weight, bias in linears)
        if kind not in tried:
            tried[kind] = _is_one(linears)
        return tried[kind]

    return [group for group in groups if is_same(group)]


def _is_one(linears: Sequence[Linear]) -> bool:
    """Say whether frozen linear layers with low-rank pairs are one function, on pairs of random numbers."""
    draw, like = Draw(), linears[0][0]
    x = draw(TOKENS, like.shape[1]).to(like)
    sizes = [size for weight, _ in linears for size in ((RANK, weight.shape[1]), (len(weight), RANK))]
    trained = [draw(*size).to(like.device, torch.float32) for size in sizes]

    def paired(x: Tensor, tensors: Sequence[Tensor]) -> list[Pair]:
        return [Pair(x, down, up, 0.5) for down, up in zip(tensors[::2], tensors[1::2], strict=True)]

    def one_by_one(x: Tensor, *tensors: Tensor) -> Tensor:
        outputs = [
            F.linear(x, *linear) + F.linear(F.linear(x, pair.down.to(x)), pair.up.to(x)) * pair.scale
            for linear, pair in zip(linears, paired(x, tensors), strict=True)
        ]
        return torch.cat(outputs, -1)

    def together(x: Tensor, *tensors: Tensor) -> Tensor:
        return torch.cat(linears_with_pairs(x, linears, [[pair] for pair in paired(x, tensors)]), -1)

    return same(one_by_one, together, x, *trained, by_row=False, factor=4.0)
