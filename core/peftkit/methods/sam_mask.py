"""SAM trains the weights that a second-order model of the loss names (Fu et al. 2022, arXiv:2211.15583)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from peftkit.layers.probing import Probed, examples, fisher, gradients
from peftkit.methods.fishmask import FishMask

FLAT = 1e-12
"""Added to the curvature that the squared gradient is divided by."""


@dataclass(frozen=True, kw_only=True)
class SAMMask(FishMask, name="sam-mask"):
    """W + a sparse change at the weights with the largest g^2 / h, over all sites together.

    They make the quadratic model sum g w + h w^2 / 2 of the loss smallest for that many entries; g is the mean gradient
    over the examples and h the Fisher information in the place of the second derivative (`variant: paper`). The
    official code takes h as constant, so that the largest |g| are chosen (`variant: official`), and chooses for each
    tensor by itself.
    """

    paper: ClassVar[str] = "Fu et al. 2022, arXiv:2211.15583"
    summary: ClassVar[str] = (
        "Trains the few weights whose change lowers a second-order model of the loss most, chosen once. Their "
        "positions and changes alone are saved."
    )
    default_learning_rate: ClassVar[float] = 0.056

    variant: Literal["official", "paper"] = "official"
    """Whether curvature counts (paper) or is the same everywhere (official)."""

    def scores(
        self, model: nn.Module, adapters: Mapping[str, Probed], batches: Iterable[Any]
    ) -> dict[str, Tensor] | None:
        rows = list(examples(batches, self.samples))
        squares = {key: g.square() for key, g in gradients(model, adapters, rows).items()}
        if self.variant == "official" or not squares:
            return squares or None
        curved = fisher(model, adapters, rows) or {}
        return {key: square / (curved[key] + FLAT) for key, square in squares.items()}
