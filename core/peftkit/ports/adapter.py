"""What an adapter is: a trainable module around a frozen callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import Pair, add_pair
from peftkit.layout import Site
from peftkit.ports.context import Context

Call = Callable[[Tensor], Tensor]


class MergeRefusedError(PeftkitError):
    """The adapter has no equal in the weights of the module it sits on."""


class Adapter(nn.Module):
    """A trainable module around a frozen one: `forward(call, x) -> y`; `call` is that module or the next adapter."""

    inside: ClassVar[bool] = False
    """Whether it acts within its module's computation, called by another port, instead of around it."""
    peftkit_context: Context
    enabled: bool = True
    """Whether it runs while its adaptation does; `Adaptation.without` switches it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What a class says last holds: one that defines `forward` alone is not the pair of a class above it.
        if "forward" in cls.__dict__ and "pair" not in cls.__dict__:
            cls.pair = Adapter.pair
        elif "pair" in cls.__dict__ and "forward" not in cls.__dict__:
            cls.forward = Adapter.forward

    def __init__(self, site: Site):
        super().__init__()
        self.site = site
        self.__dict__["shared"] = None

    @property
    def shared(self) -> Any:
        """The module that all adapters of the method share, from `Method.share`; None where there is none."""
        return self.__dict__["shared"]

    @property
    def context(self) -> Context:
        """What the forward pass tells: the adaptation of each token, the rows, the step, and the tape."""
        return self.peftkit_context

    def start(self) -> None:
        """Take the start from the frozen weight, unless saved tensors follow; the default has it on being built."""

    def settle(self) -> None:
        """Write what the start leaves of the frozen weight into the site's module; the default leaves it alone."""

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Take on the shapes of saved tensors before they are loaded; the default keeps its own."""

    def pair(self, x: Tensor) -> Pair | None:
        """Return the low-rank pair that is all it adds to the frozen output of x now; None where it does more.

        It is asked once in a pass, and may draw random numbers. A class that defines `forward` alone is no pair.
        """
        return None

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Compute the adapted output from the frozen computation `call` and its input; the default adds the pair."""
        pair = self.pair(x)
        if pair is None:
            raise TypeError(f"{type(self).__name__} does not define what it computes")
        return add_pair(call(x), pair)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the fp32 weight [out, in] and bias [out] of the module that computes the same without the adapter."""
        raise MergeRefusedError(
            f"the adapter at {self.site.id} cannot be merged into its module: keep it as an adapter, and generate "
            "and evaluate from the run folder."
        )

    def aux_loss(self, context: Context) -> Tensor | None:
        """Return a term of the loss that sees what the pass saw, on the tape of `context`; None where there is none."""
        return None

    def shift(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the change of the stored scales and the offset, each [out, groups] or None, that equal the adapter.

        See `peftkit.quantization.weight.shift`. Raises MergeRefusedError where there are none.
        """
        raise MergeRefusedError(
            f"the adapter at {self.site.id} has no equal in the scales of a stored weight: merge it into dense weights."
        )
