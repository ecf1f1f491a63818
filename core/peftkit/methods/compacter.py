"""Compacter builds adapters from sums of Kronecker products (Karimi Mahabadi et al. 2021, arXiv:2106.04647)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.bottleneck import ACTIVATIONS, Activation
from peftkit.layers.kronecker import Rule
from peftkit.layout import Layout, Site
from peftkit.method import LARGEST_SIZE, Targeted, Targets
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class Compacter(Targeted, name="compacter"):
    """A serial adapter o + U act(D o + b) + c whose D and U are sums of n Kronecker products.

    D^T [width, r] = sum_i A_i (x) s_i t_i with A [n, n, n] shared by D and U of all layers, s [n, width / n] and
    t [n, r / n] of its own for each matrix; U^T [r, width] is built alike. A is drawn from N(0, 0.01), s and t from the
    Glorot uniform distribution with gain sqrt 2. `init: zero` (the default) sets the t of U to zero, so that the start
    is exactly the base; `init: published` does not, and moves the logits a little. The paper trains the layer norms
    too. `targets: down` gives Compacter++.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "adapter"
    paper: ClassVar[str] = "Karimi Mahabadi et al. 2021, arXiv:2106.04647"
    summary: ClassVar[str] = (
        "Builds the matrices of serial adapters from Kronecker products with factors that all layers share. It needs "
        "a hundredth of their parameters."
    )
    default_learning_rate: ClassVar[float] = 0.1
    size: ClassVar[str | None] = "bottleneck"
    mergeable: ClassVar[bool] = False

    bottleneck: Annotated[int, Ge(1)] = 32
    """Inner size r of the adapter, a multiple of `division`."""
    division: Annotated[int, Ge(1)] = 4
    """Number n of Kronecker products in each matrix."""
    activation: Activation = "gelu"
    """Function between D and U."""
    targets: Targets = ("o", "down")
    """The linear maps behind which an adapter stands: roles, groups or module-name patterns."""
    init: Literal["zero", "published"] = "zero"
    """How U starts."""

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for what, size in [("the bottleneck", self.bottleneck), *((f"the width of {s.id}", s.outputs) for s in sites)]:
            if size % self.division:
                raise PeftkitError(
                    f"{self.name}: {what} is {size}, which division {self.division} does not divide: choose a "
                    "bottleneck and a division that do."
                )
        return sites

    def sizes(self, layout: Layout) -> range:
        return range(self.division, LARGEST_SIZE, self.division)

    def share(self, layout: Layout) -> nn.Module:
        return Rule(self.division, 0.01)

    def build(self, site: Site) -> Adapter:
        return KroneckerBottleneck(site, self)


class KroneckerBottleneck(Adapter):
    """A bottleneck with D from (s_down, t_down) and U from (s_up, t_up), in fp32."""

    def __init__(self, site: Site, method: Compacter):
        super().__init__(site)
        n, width, size = method.division, site.outputs, method.bottleneck
        self.act = ACTIVATIONS[method.activation]
        self.s_down, self.t_down = nn.Parameter(torch.empty(n, width // n)), nn.Parameter(torch.empty(n, size // n))
        self.s_up, self.t_up = nn.Parameter(torch.empty(n, size // n)), nn.Parameter(torch.empty(n, width // n))
        self.b, self.c = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(width))
        for factor in (self.s_down, self.t_down, self.s_up, self.t_up):
            # A factor is one column or row of its product: its fans are its own length and one.
            bound = 2**0.5 * (6 / (factor.shape[1] + 1)) ** 0.5
            nn.init.uniform_(factor, -bound, bound)
        if method.init == "zero":
            nn.init.zeros_(self.t_up)

    def matrix(self, s: Tensor, t: Tensor) -> Tensor:
        """Return sum_i A_i (x) s_i t_i [out, in] for a map of inputs of n * s's length to n * t's."""
        A = cast(Rule, self.shared).A.to(s.dtype)
        return torch.einsum("iab,ic,id->bdac", A, s, t).reshape(t.numel(), s.numel())

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        inner = self.act(linear(y, self.matrix(self.s_down, self.t_down), self.b))
        return y + linear(inner, self.matrix(self.s_up, self.t_up), self.c)
