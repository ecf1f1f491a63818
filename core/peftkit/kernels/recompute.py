"""What is cheap to make is recomputed in the backward pass instead of being kept: autograd saves how, not what."""

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
class Recomputable:
    """How a tensor was made; holds what is kept for the backward pass anyway."""

    function: Callable[..., Tensor]
    """Recomputes it from the `inputs` by the same operations, and so with the same bits."""
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    """Of the inputs, which count what is written to them."""
    readers: int = 0
    """How often it was saved and has not been read yet."""

    def make(self) -> Tensor:
        """Recompute it; RuntimeError where an input has been written to."""
        _unwritten(self.inputs, self.versions)
        return self.function(*self.inputs)


class Kept(NamedTuple):
    """What stands for a saved tensor: the tensor, or how it is made and the part of that."""

    tensor: Tensor | None
    version: int
    source: Recomputable | None = None
    part: tuple[Any, Any, Any] = ((), (), 0)


class Recompute:
    """Keeps how tensors are made in the place of tensors that were `remembered`, within `running`.

    A tensor is known by its storage, as long as that lives and nothing is written to it: whoever saves it, or a view of
    it, keeps the source. What is recomputed is held until all have read it or something else is made.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], int, Recomputable]] = {}
        self._last: tuple[Recomputable, Tensor] | None = None

    def remember(self, made: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        """Know `made`, which is alone in its storage, as what `function(*inputs)` recomputes with the same strides."""
        source = Recomputable(
            function, tuple(tensor.detach() for tensor in inputs), tuple(tensor._version for tensor in inputs)
        )
        storage = made.untyped_storage()
        key = storage._cdata
        self._known[key] = weakref.ref(storage, partial(_forget, self._known, key)), made._version, source

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep how things are made in place of what forward passes inside save; backward passes belong inside too."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
                yield
        finally:
            self._known.clear()
            self._last = None

    @contextmanager
    def within(self) -> Iterator[None]:
        """As `running`, of a forward pass alone and inside other hooks: they get what is not remembered here."""
        # Torch gives no other way to know the hooks around, of which it would call these alone.
        own: Any = torch._C
        outer = own._autograd._top_saved_tensors_default_hooks(True)

        def pack(tensor: Tensor) -> tuple[bool, Any]:
            if outer is None or self.source(tensor) is not None:
                return True, self.pack(tensor)
            return False, outer[0](tensor)

        def unpack(saved: tuple[bool, Any]) -> Tensor:
            mine, kept = saved
            return self.unpack(kept) if mine else outer[1](kept)

        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                yield
        finally:
            self._known.clear()

    def source(self, tensor: Tensor) -> Recomputable | None:
        """Return how a tensor, or what it is a view of, is recomputed; None where it is not known."""
        if not self._known or tensor.layout is not torch.strided:
            return None
        entry = self._known.get(tensor.untyped_storage()._cdata)
        return entry[2] if entry is not None and entry[1] == tensor._version else None

    def pack(self, tensor: Tensor) -> Kept:
        """Return what autograd keeps for a tensor."""
        source = self.source(tensor)
        if source is None:
            return Kept(tensor.detach(), tensor._version)
        source.readers += 1
        return Kept(None, 0, source, (tensor.shape, tensor.stride(), tensor.storage_offset()))

    def unpack(self, saved: Kept) -> Tensor:
        """Return the tensor for which `saved` was kept."""
        if saved.source is None:
            assert saved.tensor is not None
            _unwritten((saved.tensor,), (saved.version,))
            return saved.tensor
        source = saved.source
        made = self._last[1] if self._last is not None and self._last[0] is source else source.make()
        source.readers -= 1
        self._last = (source, made) if source.readers > 0 else None
        return made.as_strided(*saved.part)


def _unwritten(tensors: Sequence[Tensor], versions: Sequence[int]) -> None:
    # With hooks autograd leaves this to them.
    if any(tensor._version != version for tensor, version in zip(tensors, versions, strict=True)):
        raise RuntimeError("a tensor that is needed for the gradient has been changed by an inplace operation")


def _forget(known: dict[int, Any], key: int, _: Any) -> None:
    known.pop(key, None)
