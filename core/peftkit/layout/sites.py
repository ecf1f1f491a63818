"""One place in a model where an adapter sits, and the model's own parameters beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from peftkit.families import Heads
from peftkit.quantization.stack import PackedStack, matrices, stack_of


@dataclass(frozen=True)
class Rows:
    """The output rows of one part of a fused linear: `length` rows at `start` in each of `count` runs of `stride`."""

    start: int
    length: int
    stride: int
    count: int = 1

    def take(self, y: Tensor) -> Tensor:
        """Select the part from the last dimension: [..., count * stride] -> [..., count * length]."""
        return self._view(y).flatten(-2)

    def put(self, y: Tensor, part: Tensor) -> Tensor:
        """Return a copy of `y` with the part replaced."""
        result = y.clone()
        self._view(result).copy_(part.unflatten(-1, (self.count, self.length)))
        return result

    def _view(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.count, self.stride)).narrow(-1, self.start, self.length)


@dataclass(frozen=True)
class Site:
    """One place in the model where an adapter sits."""

    path: str
    module: nn.Module = field(repr=False, compare=False)
    inputs: int
    outputs: int
    role: str | None = None
    layer: int | None = None
    rows: Rows | None = None
    """The part of a fused module; None where the site is the whole module."""
    group: str | None = None
    """The part of the layer in which a linear map lies: `attention`, `mlp` or, outside of both, `layer`."""
    entry: nn.Module | None = field(default=None, repr=False, compare=False)
    """The module whose input a part of a layer reads that is no module of its own; `module` is its last one then."""
    stack: str | None = None
    """The parameter with the weights of all experts, where the site is one of those; `module` is their module then."""
    experts: int = 0
    """How many weights a stack holds; `inputs` and `outputs` are those of each."""
    transposed: bool = False
    """Whether a stack is [experts, in, out] and not [experts, out, in]."""
    ends: bool = False
    """Whether a stack is the last of its experts, whose inputs are their inner activations."""
    tied: bool = False
    """Whether the weight is shared with another module (a head tied to the embedding)."""
    parts: Mapping[str, Site] = field(default_factory=dict, repr=False, compare=False)
    """The linear sites inside an attention by their role (q k v o); empty elsewhere."""
    heads: Heads | None = field(default=None, repr=False, compare=False)
    """The sizes in an attention; None elsewhere."""
    children: Mapping[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    """Adapters trained at this site before, by their names in the recipe's `adapters`, for what is built here.

    Each runs as any, `child(call, x)`, frozen and in eval mode. It is read from here and not registered in the adapter,
    so that it is not saved again. A field, and no argument of `build`, which most methods would not read.
    """

    @property
    def held(self) -> nn.Parameter | PackedStack:
        """The stack of a site that is one, as it is held."""
        return stack_of(self.module, str(self.stack))

    def frozen(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the tensors that hold the weight or stack of a linear site, and a bias, by their names."""
        if self.stack is None:
            own = (*self.module.named_parameters(recurse=False), *self.module.named_buffers(recurse=False))
            yield from ((f"{self.path}.{key}", tensor) for key, tensor in own)
        elif isinstance(self.held, PackedStack):
            yield from ((f"{self.id}.{key}", tensor) for key, tensor in self.held.named_buffers())
        else:
            yield self.id, self.held

    def each(self) -> list[Site]:
        """Return the weights [out, in] of a stack as sites of their own, with the stack's name."""
        modules = matrices(self.module, str(self.stack), self.transposed)
        return [replace(self, module=module, transposed=False) for module in modules]

    @property
    def id(self) -> str:
        """The name under which the site's tensors are stored."""
        if self.stack is not None:
            return f"{self.path}.{self.stack}"
        return self.path if self.rows is None else f"{self.path}[{self.role}]"


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the model's own named parameters, leaving out those of seated adapters; a tied one comes once."""
    return ((name, p) for name, p in model.named_parameters() if ".seated." not in f".{name}")


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module as the model's code has it, also where adapters sit on the module."""
    return getattr(type(module), "frozen_class", type(module))
