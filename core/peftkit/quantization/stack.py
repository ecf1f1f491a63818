"""The weights of experts that one module holds in one stack, as parameter or packed one by one.

A packed stack is a module in the place of the parameter. While the module of the experts runs it reads a `Reading`
instead, so that its own code does the products, whichever way it has; no dense weight is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from peftkit.errors import PeftkitError
from peftkit.kernels.recompute import Recompute
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.weight import dense, packed_shape, store

CONTEXT = "_stacks_read"
"""Where a module keeps what ends the reading of its stacks."""
Part = Callable[["int | None"], Tensor]
"""Makes one weight of a stack, or with None the stack, each as the parameter had it."""


class Reading:
    """Stands in the place of a stack [experts, a, b] while its module runs: one weight [a, b] is made, or the stack.

    What is asked for by a single index is one weight, and everything else asks for the stack. Autograd keeps how it is
    made, and it is made once more in the backward pass.
    """

    def __init__(self, part: Part, shape: torch.Size, dtype: torch.dtype, device: torch.device, recompute: Recompute):
        self.part, self.shape, self.dtype, self.device = part, shape, dtype, device
        self._recompute = recompute

    def over(self, change: Callable[[Callable[[], Tensor], int | None], Tensor]) -> Reading:
        """Return the reading of what `change` makes of one weight, or of all at once, which it reads when it wants."""

        def part(index: int | None) -> Tensor:
            return change(partial(self.part, index), index)

        return Reading(part, self.shape, self.dtype, self.device, self._recompute)

    def given(self, index: int | None) -> Tensor:
        """Make one weight, or the stack, for the module's own code."""
        made = self.part(index)
        kind = self.device.type
        autocast = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self._recompute.remember(made, partial(_again, self.part, index, kind, *autocast))
        return made

    def dim(self) -> int:
        """Return 3, as a stack has it."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        single = isinstance(index, int) or (
            isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool
        )
        return self.given(int(index)) if single else self.given(None)[index]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.given(index) for index in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.given(None), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(
            lambda value: value.given(None) if isinstance(value, Reading) else value, (args, kwargs)
        )
        return func(*args, **(kwargs or {}))


class PackedStack(nn.Module):
    """Packed weights [out, in] of experts, read as a stack [experts, out, in] or, `transposed`, [experts, in, out]."""

    def __init__(self, layers: Sequence[PackedLinear], transposed: bool):
        super().__init__()
        self.transposed = transposed
        for index, layer in enumerate(layers):
            self.add_module(str(index), layer)

    @property
    def layers(self) -> list[PackedLinear]:
        """The packed weights, one for each expert."""
        return cast("list[PackedLinear]", list(self._modules.values()))

    @property
    def shape(self) -> torch.Size:
        """The shape of the stack."""
        first = self.layers[0]
        sides = (first.out_features, first.in_features)
        return torch.Size((len(self._modules), *(reversed(sides) if self.transposed else sides)))

    def read(self, dtype: torch.dtype | None = None, index: int | None = None) -> Tensor:
        """Return one weight, or the stack, as the parameter had it."""
        layers = self.layers
        dtype = dtype or layers[0].dtype
        if index is not None:
            weight = layers[index].unpacked(dtype)
            return weight.T.contiguous() if self.transposed else weight
        device = next(layers[0].buffers()).device
        whole = torch.empty(self.shape, dtype=dtype, device=device)
        for place, layer in zip(whole, layers, strict=True):
            weight = layer.unpacked(dtype, fleeting=True)
            place.copy_(weight.T if self.transposed else weight)
        return whole

    def reading(self, recompute: Recompute) -> Reading:
        """Return what stands in the place of the stack for one pass; under autocast in the dtype of that."""
        first = self.layers[0]
        device = next(first.buffers()).device
        cast_to = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else first.dtype
        return Reading(partial(self.read, cast_to), self.shape, cast_to, device, recompute)

    def extra_repr(self) -> str:
        return f"{list(self.shape)}"


class StackedMatrix(nn.Module):
    """One weight [out, in] of a stack that is a parameter: read and written as that of a layer."""

    def __init__(self, owner: nn.Module, name: str, index: int, transposed: bool):
        super().__init__()
        self.__dict__["owner"] = owner
        self.name, self.index, self.transposed = name, index, transposed

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] in the stack's memory."""
        own = cast(Tensor, self.__dict__["owner"]._parameters[self.name])[self.index]
        return own.T if self.transposed else own


@dense.register
def _(module: StackedMatrix) -> Tensor:
    return module.weight


@store.register
def _(module: StackedMatrix, weight: Tensor) -> None:
    if weight.shape != module.weight.shape:
        raise PeftkitError(f"a weight of shape {list(weight.shape)} does not fit one of {list(module.weight.shape)}.")
    with torch.no_grad():
        module.weight.copy_(weight)


def stack_of(module: nn.Module, name: str) -> nn.Parameter | PackedStack:
    """Return the stack of this name of a module, as it is held."""
    own = module._parameters.get(name)
    return cast(PackedStack, module._modules[name]) if own is None else own


def stacks_of(module: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    """Iterate over what a module holds of three dimensions, by name and shape, packed stacks included."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.dim() == 3:
            yield name, parameter.shape
    for name, child in module._modules.items():
        if isinstance(child, PackedStack):
            yield name, child.shape


def matrices(module: nn.Module, name: str, transposed: bool) -> list[nn.Module]:
    """Return the weights [out, in] of a stack, one module for each expert."""
    stack = stack_of(module, name)
    if isinstance(stack, PackedStack):
        return list(stack.layers)
    return [StackedMatrix(module, name, index, transposed) for index in range(stack.shape[0])]


def matrix(stack: Tensor, index: int, transposed: bool) -> Tensor:
    """Return one weight [out, in] of a stack."""
    return stack[index].T if transposed else stack[index]


def put_packed(module: nn.Module, name: str, stack: PackedStack) -> None:
    """Put a packed stack in the place of the parameter of this name."""
    del module._parameters[name]
    module.add_module(name, stack.train(module.training))
    if _begin not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_begin)
        module.register_forward_hook(_end, always_call=True)


def put_dense(module: nn.Module, name: str) -> None:
    """Put the parameter that a packed stack stands for in its place."""
    stack = cast(PackedStack, module._modules.pop(name))
    module.register_parameter(name, nn.Parameter(stack.read().detach(), requires_grad=False))
    if not any(isinstance(child, PackedStack) for child in module._modules.values()):
        for hooks, own in ((module._forward_pre_hooks, _begin), (module._forward_hooks, _end)):
            for key in [key for key, hook in hooks.items() if hook is own]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


@contextmanager
def standing(module: nn.Module, name: str, stack: Tensor | Reading) -> Iterator[None]:
    """Have a module read `stack` under this name."""
    before = module.__dict__.get(name)
    module.__dict__[name] = stack
    try:
        yield
    finally:
        del module.__dict__[name]
        if before is not None:
            module.__dict__[name] = before


def standing_in(module: nn.Module, name: str) -> Tensor | Reading:
    """Return what a module reads under this name now."""
    return module.__dict__.get(name, module._parameters.get(name))


def is_packed(module: nn.Module | nn.Parameter) -> bool:
    """Say whether a module keeps its weight, or is a stack that keeps them, in another form than as a parameter."""
    if isinstance(module, nn.Parameter):
        return False
    return isinstance(module, PackedStack) or packed_shape(module) is not None


def _begin(module: nn.Module, args: Any) -> None:
    """Have the module read its packed stacks until `_end`."""
    recompute, context = Recompute(), ExitStack()
    for name, child in list(module._modules.items()):
        if isinstance(child, PackedStack):
            context.enter_context(standing(module, name, child.reading(recompute)))
    context.enter_context(nullcontext() if torch.compiler.is_compiling() else recompute.within())
    module.__dict__[CONTEXT] = context


def _end(module: nn.Module, args: Any, output: Any) -> None:
    context = module.__dict__.pop(CONTEXT, None)
    if context is not None:
        context.close()


def _again(part: Part, index: int | None, kind: str, dtype: torch.dtype, enabled: bool) -> Tensor:
    with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
        return part(index)
