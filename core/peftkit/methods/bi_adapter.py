"""Adapters of one bit: what is saved of each weight is its sign (Jie et al. 2023, arXiv:2307.16867)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, cast

from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from peftkit.layers.bottleneck import ACTIVATIONS, Activation
from peftkit.layers.coded import Coded
from peftkit.layout import Site
from peftkit.method import Method
from peftkit.methods.parallel_adapter import Beside
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class BiAdapter(Beside, name="bi-adapter"):
    """The sublayer f gives f(x) + s U' act(D' x); D' [bottleneck, width] and U' [width, bottleneck] have 2^bits values.

    A matrix W is standardised, each weight replaced by the nearest value of a book for normal numbers (-0.6745 and
    0.6745 for one bit), and mean and deviation of W are put back: c((W - mean) / (std + 1e-5)) std + mean. Gradients
    pass c as if it were not there. D starts as torch's linear layers, U from the normal distribution of deviation 0.001
    cut at twice that, so that the start is near the base. After training the codes are kept, `bits` of each weight, and
    8 bytes of each matrix for mean and std, which alone move where such an adapter is trained further. The official
    code reads x before the norm of a feed-forward block and drops out a tenth behind act.
    """

    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Jie et al. 2023, arXiv:2307.16867"
    summary: ClassVar[str] = (
        "Runs a bottleneck beside each feed-forward block whose matrices have two values each, or a few. What is saved "
        "takes a bit for each weight, so that a wider bottleneck costs no more than a narrow one in full precision."
    )
    default_learning_rate: ClassVar[float] = 0.056
    size: ClassVar[str | None] = "bottleneck"

    bottleneck: Annotated[int, Ge(1)] = 32
    """Inner size of the adapter."""
    bits: Annotated[int, Ge(1), Le(4)] = 1
    """Bits of each weight."""
    activation: Activation = "relu"
    """Function between D' and U'."""
    scale: Annotated[float, Gt(0)] = 1.0
    """Factor s of what the adapter adds; the paper searches 0.01 to 10."""
    packed: bool = False
    """Hold codes in the place of the weights: the form that is saved, in which mean and std alone are trained."""

    def build(self, site: Site) -> Adapter:
        return CodedBottleneck(site, self)

    @property
    def finished(self) -> Method:
        return replace(self, packed=True)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in cast(Mapping[str, CodedBottleneck], adapters).values():
            adapter.D.pack()
            adapter.U.pack()


class CodedBottleneck(Adapter):
    """A bottleneck without biases of two coded matrices."""

    def __init__(self, site: Site, method: BiAdapter):
        super().__init__(site)
        self.act, self.scale = ACTIVATIONS[method.activation], method.scale
        self.D = Coded(method.bottleneck, site.inputs, method.bits, packed=method.packed)
        self.U = Coded(site.outputs, method.bottleneck, method.bits, packed=method.packed)
        if self.D.W is not None and self.U.W is not None:
            nn.init.kaiming_uniform_(self.D.W, a=5**0.5)
            nn.init.trunc_normal_(self.U.W, std=0.001, a=-0.002, b=0.002)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y, added = call(x), linear(self.act(linear(x, self.D())), self.U())
        return y + (added * self.scale).to(y.dtype)
