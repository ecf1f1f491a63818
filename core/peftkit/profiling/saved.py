"""What a forward pass keeps for the backward pass, by the module in whose forward pass it was saved."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.kernels.recompute import Recompute
from peftkit.profiling.owners import LOSS, watched


class Saved:
    """Sees every tensor that autograd saves while `watching`, and whose it is.

    What a function keeps in another way than `save_for_backward`, or in hooks of its own as checkpointing and
    offloading do, is not seen; such hooks hand on the inputs of what they recompute. Of what the engine would
    `recompute`, what it is made of is seen.
    """

    def __init__(self, recompute: Recompute | None = None) -> None:
        self._recompute = recompute
        self._paths: list[str] = []
        self._kept: list[tuple[str, weakref.ref[_Packed]]] = []

    def enter(self, path: str) -> None:
        """Take the module at `path` as the owner of what is saved from now on."""
        self._paths.append(path)

    def leave(self) -> None:
        """Go back to the owner before."""
        self._paths.pop()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """See what is saved inside; within the engine's `running`, whose hooks these go before."""
        with watched(model, self), torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def sizes(self, model: nn.Module) -> dict[str, int]:
        """Return the bytes of the storages that are still kept, by the path of the first module that saved them.

        To be called while the graph is alive. A storage counts whole and once, and one of the model's parameters or
        buffers not at all.
        """
        seen = _storages((*model.parameters(), *model.buffers()))
        sizes: dict[str, int] = {}
        for path, reference in self._kept:
            packed = reference()
            if packed is None:
                continue
            storage = packed.tensor.untyped_storage()
            if storage.nbytes() and (key := (packed.tensor.device, storage.data_ptr())) not in seen:
                seen.add(key)
                sizes[path] = sizes.get(path, 0) + storage.nbytes()
        return sizes

    def _pack(self, tensor: Tensor) -> Any:
        source = None if self._recompute is None else self._recompute.source(tensor)
        if self._recompute is None or source is None:
            return self._note(tensor)
        return self._recompute.pack(tensor), [self._note(given) for given in source.inputs]

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, _Packed):
            return packed.tensor
        assert self._recompute is not None
        return self._recompute.unpack(packed[0])

    def _note(self, tensor: Tensor) -> _Packed:
        packed = _Packed(tensor)
        self._kept.append((self._paths[-1] if self._paths else LOSS, weakref.ref(packed)))
        return packed


class _Packed:
    """A saved tensor; that it is gone tells that the tensor is not kept any more."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def _storages(tensors: Iterable[Tensor]) -> set[tuple[torch.device, int]]:
    return {(tensor.device, tensor.untyped_storage().data_ptr()) for tensor in tensors}
