"""The cross-entropy of next tokens, summed over those that are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from peftkit.kernels.cross_entropy import behind_linear, summed
from peftkit.objectives import Loss, Objective, Outputs, Predictions, TokenFunction


@dataclass(frozen=True)
class CrossEntropyOf(TokenFunction):
    """-log p(target), with `smoothing` of the target's probability spread over the vocabulary."""

    smoothing: float = 0.0

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.smoothing)

    def total(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        return summed(logits, targets, weights, self.smoothing)

    def behind_linear(
        self,
        hidden: Tensor,
        layer: nn.Linear,
        targets: Tensor,
        weights: Tensor | None,
        gradient: Tensor | None,
        scratch: Any,
    ) -> Tensor:
        return behind_linear(hidden, layer, targets, weights, self.smoothing, gradient, scratch)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Objective, name="cross-entropy"):
    """The sum of -log p(next token); the smoothed one of Szegedy et al. 2015, arXiv:1512.00567, where asked for."""

    summary: ClassVar[str] = "Predicts the next token, where the data train on it."

    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """The part of the target's probability that is spread over the vocabulary; the same as `train.label_smoothing`."""

    def loss(self, outputs: Outputs, batch: Predictions) -> Loss:
        return Loss(outputs.sum(CrossEntropyOf(self.label_smoothing)), batch.trained)

    def evaluate(self, outputs: Outputs, batch: Predictions) -> Loss:
        return Loss(outputs.sum(CrossEntropyOf()), batch.trained)
