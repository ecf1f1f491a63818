"""What is cheap to make is made again in the backward pass instead of being kept: autograd saves how, not what."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(eq=False)
class Recipe:
    """How a tensor was made; holds what is kept for the backward pass anyway."""

    function: Callable[..., Tensor]
    """Makes it again of the `inputs` by the same operations, and so with the same bits."""
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    """Of the inputs, which count what is written to them."""
    readers: int = 0
    """How often it was saved and has not been read yet."""

    def make(self) -> Tensor:
        """Make it again; RuntimeError where an input has been written to."""
        _unwritten(self.inputs, self.versions)
        return self.function(*self.inputs)


class Saved(NamedTuple):
    """What stands for a saved tensor: the tensor, or a recipe and the part of what it makes."""

    tensor: Tensor | None
    version: int
    recipe: Recipe | None = None
    part: tuple[Any, Any, Any] = ((), (), 0)


class Again:
    """Keeps recipes in the place of tensors that were `remembered`, within `running`.

    A tensor is known by its storage, as long as that lives and nothing is written to it: whoever saves it, or a view of
    it, keeps the recipe. What is made again is held until all have read it or something else is made.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], int, Recipe]] = {}
        self._last: tuple[Recipe, Tensor] | None = None

    def remember(self, made: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        """Know `made`, which is alone in its storage, as what `function(*inputs)` makes again with the same strides."""
        recipe = Recipe(
            function, tuple(tensor.detach() for tensor in inputs), tuple(tensor._version for tensor in inputs)
        )
        storage = made.untyped_storage()
        key = storage._cdata
        self._known[key] = weakref.ref(storage, partial(_forget, self._known, key)), made._version, recipe

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep recipes for what forward passes inside save; backward passes belong inside too."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
                yield
        finally:
            self._known.clear()
            self._last = None

    def recipe(self, tensor: Tensor) -> Recipe | None:
        """Return how a tensor, or what it is a view of, is made again; None where it is not known."""
        if not self._known or tensor.layout is not torch.strided:
            return None
        found = self._known.get(tensor.untyped_storage()._cdata)
        return found[2] if found is not None and found[1] == tensor._version else None

    def pack(self, tensor: Tensor) -> Saved:
        """Return what autograd keeps for a tensor."""
        recipe = self.recipe(tensor)
        if recipe is None:
            return Saved(tensor.detach(), tensor._version)
        recipe.readers += 1
        return Saved(None, 0, recipe, (tensor.shape, tensor.stride(), tensor.storage_offset()))

    def unpack(self, saved: Saved) -> Tensor:
        """Return the tensor for which `saved` was kept."""
        if saved.recipe is None:
            assert saved.tensor is not None
            _unwritten((saved.tensor,), (saved.version,))
            return saved.tensor
        recipe = saved.recipe
        made = self._last[1] if self._last is not None and self._last[0] is recipe else recipe.make()
        recipe.readers -= 1
        self._last = (recipe, made) if recipe.readers > 0 else None
        return made.as_strided(*saved.part)


def _unwritten(tensors: Sequence[Tensor], versions: Sequence[int]) -> None:
    # With hooks autograd leaves this to them.
    if any(tensor._version != version for tensor, version in zip(tensors, versions, strict=True)):
        raise RuntimeError("a tensor that is needed for the gradient has been changed by an inplace operation")


def _forget(known: dict[int, Any], key: int, _: Any) -> None:
    known.pop(key, None)
