"""The mix-and-match adapter is a prefix and a scaled parallel adapter together (He et al. 2021, arXiv:2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from peftkit.method import Method
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.methods.scaled_parallel_adapter import ScaledParallelAdapter


@dataclass(frozen=True, kw_only=True)
class MamAdapter(Method, name="mam-adapter"):
    """Attention sees [P_k; K] and [P_v; V]; the feed-forward block f gives f(x) + s (U ReLU(D x + b) + c).

    A combination: it attaches as `prefix-tuning` and `scaled-parallel-adapter`, whose formulas, shapes and starts are
    unchanged, both at the rate found for the combination unless one is set here. The sizes are the paper's, which
    gives attention few parameters and the feed-forward block many.
    """

    port: ClassVar[str] = "attention + hidden"
    family: ClassVar[str] = "combination"
    paper: ClassVar[str] = "He et al. 2021, arXiv:2110.04366"
    summary: ClassVar[str] = (
        "Puts a short learnt prefix in front of the keys and values of attention and a wide scaled parallel adapter "
        "beside each feed-forward block. The two are the best choice that its paper found for each place."
    )
    default_learning_rate: ClassVar[float] = 5.6e-3
    mergeable: ClassVar[bool] = False

    prefix_length: Annotated[int, Ge(1)] = 30
    """Number of prefix positions of attention."""
    projection: Annotated[int, Ge(1)] | None = 512
    """Width inside the MLP that makes the prefix in training; null trains the prefix itself."""
    bottleneck: Annotated[int, Ge(1)] = 512
    """Inner size of the parallel adapter."""
    scale: Annotated[float, Gt(0)] = 4.0
    """Factor s of what the parallel adapter adds."""
    layers: tuple[int, ...] | str | None = None
    """Layers with a prefix and an adapter, such as 0-3,8; all by default."""

    def parts(self) -> tuple[Method, ...]:
        both = {"layers": self.layers, "learning_rate": self.learning_rate}
        return (
            PrefixTuning(length=self.prefix_length, projection=self.projection, **both),
            Wide(bottleneck=self.bottleneck, scale=self.scale, **both),
        )


class Wide(ScaledParallelAdapter):
    """The adapter of the combination, whose width wants a smaller rate than that of the adapter alone."""

    default_learning_rate: ClassVar[float] = MamAdapter.default_learning_rate
