"""What an adapter is: a trainable module around a frozen callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Site

Call = Callable[[Tensor], Tensor]


class MergeRefusedError(PeftkitError):
    """The adapter has no equal in the weights of the module it sits on."""


class Adapter(nn.Module):
    """A trainable module around a frozen one: `forward(call, x) -> y`; `call` is that module or the next adapter."""

    inside: ClassVar[bool] = False
    """Whether it acts within its module's computation, called by another port, instead of around it."""
    reads_input: ClassVar[bool] = False
    """Whether one that acts within its module's computation is given the module's input as well."""
    enabled: bool = True
    """Whether it runs while its adaptation does; `Adaptation.without` switches it."""

    def __init__(self, site: Site):
        super().__init__()
        self.site = site
        self.__dict__["shared"] = None

    @property
    def shared(self) -> Any:
        """The module that all adapters of the method share, from `Method.share`; None where there is none."""
        return self.__dict__["shared"]

    def start(self) -> None:
        """Take the start from the frozen weight, unless saved tensors follow; the default has it on being built."""

    def settle(self) -> None:
        """Write what the start leaves of the frozen weight into the site's module; the default leaves it alone."""

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Take on the shapes of saved tensors before they are loaded; the default keeps its own."""

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Compute the adapted output from the frozen computation `call` and its input."""
        raise TypeError(f"{type(self).__name__} does not define what it computes")

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the fp32 weight [out, in] and bias [out] of the module that computes the same without the adapter."""
        raise MergeRefusedError(
            f"the adapter at {self.site.id} cannot be merged into its module: keep it as an adapter, and generate "
            "and evaluate "
            "from the run folder."
        )

    def shift(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the change of the stored scales and the offset, each [out, groups] or None, that equal the adapter.

        See `peftkit.quantization.weight.shift`. Raises MergeRefusedError where there are none.
        """
        raise MergeRefusedError(
            f"the adapter at {self.site.id} has no equal in the scales of a stored weight: merge it into dense weights."
        )
