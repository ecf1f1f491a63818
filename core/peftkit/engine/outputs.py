"""What a forward pass came to: hidden states of a body, or logits of a whole model, behind one face for objectives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from peftkit.engine.chunked_head import chunked_sum, chunked_values
from peftkit.engine.head import Head
from peftkit.engine.packed_batch import PackedBatch
from peftkit.errors import PeftkitError
from peftkit.objectives import TokenFunction


@dataclass(frozen=True)
class HeadOutputs:
    """Hidden states [1, N, width] or [B, T, width] of a body whose head runs apart."""

    batch: PackedBatch
    head: Head
    hidden: Tensor
    module: nn.Module | None = None
    """What the objective trains beside the adapters."""

    def sum(self, function: TokenFunction) -> Tensor:
        """Sum the values of all predictions; equal ones are computed once."""
        return chunked_sum(self.head, function, self._chosen(), self.batch.targets, self.batch.weights)

    def values(self, function: TokenFunction) -> Tensor:
        """Return the value [Q] of each prediction."""
        values, merged = chunked_values(self.head, function, self._chosen(), self.batch.targets), self.batch.merged
        return values if merged is None else values.index_select(0, merged.to(values.device))

    def last(self) -> Tensor:
        """Return the hidden state [B, width] of the last token of each row."""
        return self.hidden.flatten(0, 1).index_select(0, self.batch.ends.to(self.hidden.device))

    def _chosen(self) -> Tensor:
        return self.hidden.flatten(0, 1).index_select(0, self.batch.sources)


@dataclass(frozen=True)
class WholeOutputs:
    """Logits [B, C, V] of a model that is not taken apart."""

    batch: PackedBatch
    logits: Tensor
    module: nn.Module | None = None
    """What the objective trains beside the adapters."""

    def sum(self, function: TokenFunction) -> Tensor:
        """Sum the values of all predictions."""
        return function.total(self.logits.flatten(0, 1), self.batch.targets, None)

    def values(self, function: TokenFunction) -> Tensor:
        """Return the value [Q] of each prediction."""
        assert self.batch.merged is not None
        chosen = self.batch.merged.to(self.logits.device)
        return function.values(self.logits.flatten(0, 1)[chosen], self.batch.targets[chosen])

    def last(self) -> Tensor:
        """Refuse: hidden states are not there."""
        raise PeftkitError(
            "the objective reads hidden states, and this model's head cannot be run apart from its body: take another "
            "model or objective."
        )
