"""An adapter that runs another one in its place, with the other's tensors under their own names."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from peftkit.ports.adapter import Adapter
from peftkit.ports.context import LINK


class Wrapped(Adapter):
    """Holds the tensors of `plain`, and says when it runs, or on which of them."""

    def __init__(self, plain: Adapter):
        super().__init__(plain.site)
        self.__dict__["held"] = plain
        self.__dict__["inside"], self.undecayed = plain.inside, plain.undecayed
        for own in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[own] = plain.__dict__[own]

    @property
    def plain(self) -> Any:
        """The adapter that runs; it sees what the pass tells this one."""
        plain = self.__dict__["held"]
        if LINK in self.__dict__:
            plain.__dict__[LINK] = self.__dict__[LINK]
        return plain

    def tensor(self, key: str) -> Tensor:
        """Return the tensor of this name as it is now, which others may have put one in the place of."""
        return attrgetter(key)(self.plain)

    def owner(self, key: str) -> tuple[nn.Module, str]:
        """Return the module that has a tensor, and the tensor's name there."""
        path, _, leaf = key.rpartition(".")
        return self.plain.get_submodule(path), leaf

    def train(self, mode: bool = True) -> Self:
        self.__dict__["held"].training = mode
        return super().train(mode)

    def start(self) -> None:
        self.plain.start()
