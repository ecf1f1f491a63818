"""Which tensors are alive while a computation runs, and how many bytes they hold at each moment."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peftkit.estimation.values import Values


class Live(TorchDispatchMode):
    """Follows the memory of every tensor that an operation inside makes, from its making until nothing holds it.

    Memory that several tensors share counts once; that of `known` tensors does not count, nor does what a kernel takes
    and gives back within one operation. `events` lists (number of the memory, its bytes), negative where it is freed.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self._values = Values()
        self._numbers: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._watch(tensor, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note the memory of what it returns."""
        result = self._values.run(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf)
        return result

    def number(self, tensor: Tensor) -> int | None:
        """Return the number of the memory that `tensor` stands in; None for what was not made inside."""
        return self._numbers.get(tensor.untyped_storage()._cdata)

    def alive(self, moment: int | None = None) -> dict[int, int]:
        """Return the bytes of each memory that is held after the first `moment` events, by number; None is now."""
        held: dict[int, int] = {}
        for number, size in self.events[:moment]:
            if size >= 0:
                held[number] = size
            else:
                del held[number]
        return held

    def highest(self) -> int:
        """Return the moment at which most bytes are held, the first of them."""
        now = most = moment = 0
        for position, (_, size) in enumerate(self.events, start=1):
            now += size
            if now > most:
                most, moment = now, position
        return moment

    def _watch(self, tensor: Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._watched:
            return
        size = storage.nbytes() if counts else 0
        number = len(self.events)
        self._watched[key] = weakref.ref(storage, partial(self._free, key, number, size))
        if counts:
            self._numbers[key] = number
            self.events.append((number, size))

    def _free(self, key: int, number: int, size: int, _: Any) -> None:
        del self._watched[key]
        if self._numbers.pop(key, None) is not None:
            self.events.append((number, -size))


def fake() -> FakeTensorMode:
    """Return the mode in which tensors hold nothing and operations tell the shapes of what they would make."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def without_storage(model: nn.Module, device: torch.device) -> Iterator[list[Tensor]]:
    """Put in the place of the model's parameters and buffers tensors that hold nothing and claim to be on `device`.

    Yields them; what runs inside is not computed, and takes no memory of its own. The model is as before afterwards.
    """
    modules: list[Any] = list(model.modules())
    places: list[dict[str, Any]] = [store for module in modules for store in (module._parameters, module._buffers)]
    before = [dict(store) for store in places]
    made: dict[int, Tensor] = {}
    with fake():
        try:
            for store in places:
                for name, tensor in store.items():
                    if tensor is not None:
                        store[name] = made.setdefault(id(tensor), _empty(tensor, device))
            yield list(made.values())
        finally:
            for store, kept in zip(places, before, strict=True):
                store.update(kept)


def _empty(tensor: Tensor, device: torch.device) -> Any:
    hollow = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if not isinstance(tensor, nn.Parameter):
        return hollow
    return nn.Parameter(hollow, requires_grad=tensor.requires_grad)
