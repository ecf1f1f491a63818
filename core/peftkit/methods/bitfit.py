"""BitFit trains the biases of a model and nothing else (Ben Zaken et al. 2021, arXiv:2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, own_parameters
from peftkit.method import Method, Targets


@dataclass(frozen=True, kw_only=True)
class BitFit(Method, name="bitfit"):
    """y = W x + b with only b [out] trained, the biases of normalisation layers included; it starts as the base.

    The paper's smaller choice, the biases of the query and of the first feed-forward matrix, is `targets: [q, up]`.
    Only biases that the model has are trained: a bias added to a model without them could not be opened by plain
    transformers afterwards.
    """

    port: ClassVar[str] = "own parameters"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    summary: ClassVar[str] = (
        "Trains the biases that the model has and freezes every weight. Models without biases, such as Llama, "
        "are refused."
    )
    default_learning_rate: ClassVar[float] = 1e-3
    rate_falls_with_width: ClassVar[bool] = False

    targets: Targets = "all"
    """`all` biases, or those of linear modules named by roles (q k v o gate up down head), groups or patterns."""

    def sites(self, layout: Layout) -> list[Site]:
        if not self._own(layout):
            raise PeftkitError(
                f"{self.name}: this {layout.kind} model has no bias {self._where()}, so there is nothing to train. "
                "Use layernorm-tuning, which trains the vectors that such a model does have, or lora."
            )
        return []

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return name in self._own(layout)

    def _where(self) -> str:
        return "at all" if self.targets == "all" else f"at the targets {self.targets}"

    def _own(self, layout: Layout) -> dict[str, nn.Parameter]:
        paths = None if self.targets == "all" else self._paths(layout)
        own = dict(own_parameters(layout.model))
        return {
            name: parameter
            for name, parameter in own.items()
            if name.rpartition(".")[2] == "bias"
            and (layout.reached(name) if paths is None else name.rpartition(".")[0] in paths)
        }

    def _paths(self, layout: Layout) -> set[str]:
        sites = layout.resolve(self.targets)
        chosen = {site.id for site in sites}
        for path in {site.path for site in sites if site.rows is not None}:
            parts = [site for site in layout.linears if site.path == path]
            if any(site.id not in chosen for site in parts):
                roles = ", ".join(str(site.role) for site in parts)
                raise PeftkitError(
                    f"{self.name}: {path} keeps the biases of {roles} in one vector: name all of them, or none."
                )
        return {site.path for site in sites}
