"""GaLore trains weights by Adam on projected gradients, so that its states are small (Zhao et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import Targeted, Targets


@dataclass(frozen=True, kw_only=True)
class GaLore(Targeted, name="galore"):
    """W [out, in] itself is trained, with Adam's moments of its gradient in a subspace of `rank` dimensions.

    Every `interval` steps the subspace is that of the gradient's first singular vectors, on the smaller side of W, so
    that the states are rank * (2 * larger + smaller side) numbers instead of 2 * out * in. The gradients are as large
    as those of full fine-tuning. The paper fine-tunes with rank 4 to 8, and takes 128 and more to train from scratch.
    """

    port: ClassVar[str] = "optimizer"
    family: ClassVar[str] = "memory-efficient"
    paper: ClassVar[str] = "Zhao et al. 2024, arXiv:2403.03507"
    summary: ClassVar[str] = (
        "Trains the weights of linear layers by Adam in a low-rank subspace that follows their gradient. The optimizer "
        "states shrink to those of a low-rank matrix, and the outcome is a full set of weights."
    )
    default_learning_rate: ClassVar[float] = 0.1

    rank: Annotated[int, Ge(1)] = 8
    """Dimensions of the subspace; at most the smaller side of every target."""
    interval: Annotated[int, Ge(1)] = 200
    """Steps between singular value decompositions of the gradient; the moments are kept through them."""
    scale: Annotated[float, Gt(0)] = 0.25
    """The projected step is multiplied by this, in effect a factor on the learning rate of the targets."""
    targets: Targets = "linear"
    """Roles, groups or module-name patterns; a fused module that holds a target is trained whole."""
    rest: Literal["none", "adamw"] = "none"
    """What trains all other parameters (embeddings, norms, biases), at the same learning rate; none freezes them."""

    def sites(self, layout: Layout) -> list[Site]:
        small = {site.path for site in super().sites(layout) if self.fitting(site, self.rank) < self.rank}
        for name, weight in self._weights(layout).items():
            if self.rank > min(weight.shape) and name not in small:
                raise PeftkitError(
                    f"{self.name}: rank {self.rank} is larger than {name} {list(weight.shape)} allows: choose at most "
                    f"{min(weight.shape)}, or leave this module out of targets."
                )
        return []

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return self.rest != "none" or any(parameter is weight for weight in self._weights(layout).values())

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        targets = {id(weight) for weight in self._weights(layout).values()}
        projected = [(key, p) for key, p in parameters if id(p) in targets]
        rest = [(key, p) for key, p in parameters if id(p) not in targets]
        options = {"rank": self.rank, "interval": self.interval, "scale": self.scale}
        return [
            {"params": projected, "lr": learning_rate, "optimizer": self.name, **options},
            {"params": rest, "lr": learning_rate, "optimizer": self.rest},
        ]

    def _weights(self, layout: Layout) -> dict[str, nn.Parameter]:
        """Return the weights of the targets by module, each once."""
        weights: dict[str, nn.Parameter] = {}
        for site in super().sites(layout):
            weight = getattr(site.module, "weight", None)
            if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
                raise PeftkitError(
                    f"{self.name}: {site.path} keeps its weight in a packed format, which no gradient reaches: load "
                    "the model without quantization."
                )
            weights[site.path] = weight
        return weights
