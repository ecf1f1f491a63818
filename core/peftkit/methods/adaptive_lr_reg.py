"""Rules for the rates and the regularisation of any method, which the position paper on large models asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le

from peftkit.errors import PeftkitError, unknown
from peftkit.method import Method
from peftkit.methods.controlled import Controlled
from peftkit.methods.in_front import in_front
from peftkit.methods.wrapping import named

REGULARISERS = {"l2sp": 1e-4, "orthogonal": 1e-2, "dropout": 0.1, "agreement": 0.1}
"""Each with its weight where none is given."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveLrReg(Method, name="adaptive-lr-reg"):
    """The update d of a module w is scaled so that |d| / |w| lies in `band`; the loss gains the terms of `reg`.

    A module is an adapter, or a module of the model whose own weights are trained; one that is zero is left alone. The
    rate of a layer is `layer_decay` times that of the layer above. `l2sp`: weight * |w - w0|^2 with w0 the start (Li et
    al. 2018, arXiv:1802.01483); `orthogonal`: weight * the mean squared cosine between rows of each adapter's first
    matrix; `dropout`: the probability of dropping an element of what an adapter changes; `agreement`: weight * the
    divergence of two passes (Liang et al. 2021, arXiv:2106.14448), which wants dropout. What is saved is the method's
    own adapter. The log tells |d| / |w| of each module before it is scaled.
    """

    port: ClassVar[str] = "that of its method"
    family: ClassVar[str] = "rules of training"
    paper: ClassVar[str] = "the position paper; Li et al. 2018, arXiv:1802.01483"
    summary: ClassVar[str] = (
        "Trains any method with the size of each module's updates kept in a band, and rates that fall towards the "
        "lower layers. Regularisers are added by name."
    )
    default_learning_rate: ClassVar[float] = 0.018

    of: str | dict[str, Any] = "lora"
    """The method that is trained: its name, or {name: options}."""
    band: tuple[Annotated[float, Ge(0)], Annotated[float, Gt(0)]] = (0.0, 0.1)
    """Smallest and largest norm of a module's update in a step, over the norm of the module."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """The rate of a layer over that of the layer above it."""
    reg: tuple[str | dict[str, float], ...] = ("l2sp",)
    """Regularisers (l2sp, orthogonal, dropout, agreement), each a name, or {name: weight}."""

    def __post_init__(self) -> None:
        if self.band[0] >= self.band[1]:
            raise PeftkitError(f"{self.name}: band: {list(self.band)} is empty: give the smaller number first.")
        # Its own to say: that depends on what it is made of.
        self.__dict__["mergeable"] = all(part.mergeable for part in self.parts())

    @cached_property
    def weights(self) -> dict[str, float]:
        """The regularisers with their weights."""
        pairs = [(each, None) if isinstance(each, str) else next(iter(each.items()), ("", None)) for each in self.reg]
        wrong = next((name for name, _ in pairs if name not in REGULARISERS), None)
        if wrong is not None:
            raise PeftkitError(f"{self.name}: reg: {unknown('regulariser', wrong, REGULARISERS)}")
        found = {name: REGULARISERS[name] if weight is None else weight for name, weight in pairs}
        low = next((name for name, weight in found.items() if weight < 0), None)
        if low is not None or found.get("dropout", 0) >= 1:
            what = low or "dropout"
            raise PeftkitError(f"{self.name}: reg: {what} is {found[what]}; allowed: from 0 on, dropout below 1.")
        return found

    @cached_property
    def inner(self) -> Method:
        """The method that is trained."""
        return named(self.of, self.name)

    @property
    def finished(self) -> Method:
        return self.inner.finished

    def parts(self) -> tuple[Method, ...]:
        rules: dict[str, Any] = {"band": self.band, "decay": self.layer_decay, "weights": self.weights}
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        return tuple(in_front(Controlled, part, self.name, **rules, **rate) for part in self.inner.parts())
