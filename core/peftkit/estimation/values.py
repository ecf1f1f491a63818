"""Values beside tensors that hold nothing: indices, counts and masks are computed, so that routing can be followed.

A model that sends each token to some experts reads numbers from tensors: which tokens an expert gets, and how many.
What of that follows from the tokens alone is computed as it is. Where a router's scores decide, which hold nothing
here, the choice is drawn, and experts get about as many tokens as each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

LARGEST = {False: 1 << 22, True: 1 << 20}
"""Elements of a tensor whose values are known, by whether it holds floating-point numbers."""
aten: Any = torch.ops.aten
CHOICES = {aten.topk, aten.sort, aten.argmax, aten.argmin, aten.multinomial}
"""What chooses by scores, and returns indices."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Values:
    """Runs operations on fake tensors, and knows the values of those among them that can be known."""

    def __init__(self) -> None:
        self._known = WeakIdKeyDictionary()
        self._generator = torch.Generator().manual_seed(0)

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return the values of a tensor on the host; None where they are unknown."""
        if isinstance(tensor, FakeTensor):
            return self._known.get(tensor)
        return tensor if tensor.device.type == "cpu" else None

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation; a number read from a tensor without values is 1."""
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return self._number(args[0])
        if func is aten.equal.default:
            return self._computed(func, args, kwargs) is not False
        if func is aten._grouped_mm.default and isinstance(args[0], FakeTensor):
            return _grouped(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs"))
        if func in INDEXED:
            args = (args[0], self._places(args[1]), *args[2:])
        try:
            result = func(*args, **kwargs)
        except DynamicOutputShapeException:
            return self._of_unknown_shape(func, args, kwargs)
        self._follow(func, args, kwargs, result)
        return result

    def _number(self, tensor: Tensor) -> Any:
        value = self.of(tensor)
        if value is not None:
            with _disable_current_modes():
                return value.item()
        return 1.0 if tensor.is_floating_point() else tensor.dtype is torch.bool or 1

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Learn the values of what an operation returned; those that it may have changed are forgotten."""
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, FakeTensor)]
        found: Sequence[Tensor | None] = [None] * len(made)
        if made and all(map(_small, made)):
            values = self._computed(func, args, kwargs)
            if values is not None:
                found = tree_leaves(values)
            elif func.overloadpacket in CHOICES and _small(args[0]):
                chosen = tree_leaves(self._computed(func, (self._drawn(args[0]), *args[1:]), kwargs))
                found = [None if value.is_floating_point() else value for value in chosen]
        for leaf, value in zip(made, found, strict=True):
            if value is not None:
                self._known[leaf] = value
            elif leaf in self._known:
                self._forget(self._known[leaf])

    def _forget(self, value: Tensor) -> None:
        """Forget all values that stand in the memory of one."""
        place = value.untyped_storage().data_ptr()
        for tensor in [each for each, other in self._known.items() if other.untyped_storage().data_ptr() == place]:
            del self._known[tensor]

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute an operation on values; None where some are unknown, and of what draws or changes what is real."""
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        changed = func._schema.is_mutable and not all(isinstance(leaf, FakeTensor) for leaf in tensors)
        if changed or torch.Tag.nondeterministic_seeded in func.tags or None in map(self.of, tensors):
            return None
        args, kwargs = tree_map(self._on_host, (args, kwargs))
        with _disable_current_modes():
            return func(*args, **kwargs)

    def _on_host(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return self.of(leaf) if isinstance(leaf, Tensor) else leaf

    def _drawn(self, scores: Tensor) -> Tensor:
        with _disable_current_modes():
            return torch.rand(scores.shape, generator=self._generator)

    def _places(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return indices whose shapes are told without values: of a mask, the places that it lets through."""
        places: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                places.append(index)
                continue
            value = self.of(index)
            with _disable_current_modes():
                count = index.numel() if value is None else int(value.count_nonzero())
            places += [torch.empty(count, dtype=torch.long, device=index.device) for _ in range(index.dim())]
        return places

    def _of_unknown_shape(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operation makes whose shape follows from values; where they are unknown all elements count."""
        values = self._computed(func, args, kwargs)
        known = values is not None
        if not known:
            values = self._computed(func, *tree_map(self._or_ones, (args, kwargs)))
        device = next(leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor))

        def hollow(value: Tensor) -> Tensor:
            made = torch.empty(value.shape, dtype=value.dtype, device=device)
            if known:
                self._known[made] = value
            return made

        return tree_map(hollow, values)

    def _or_ones(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or self.of(leaf) is not None:
            return leaf
        with _disable_current_modes():
            return torch.ones(leaf.shape, dtype=leaf.dtype)


def _small(tensor: Tensor) -> bool:
    return tensor.numel() <= LARGEST[tensor.is_floating_point()]


def _grouped(a: Tensor, b: Tensor, offsets: Tensor | None) -> Tensor:
    """Return what grouped products make; torch tells it of bfloat16 alone."""
    groups = [] if offsets is None or a.dim() != b.dim() else [offsets.numel()] if a.dim() == 2 else [a.shape[0]]
    return a.new_empty(*groups, a.shape[-2], b.shape[-1])
