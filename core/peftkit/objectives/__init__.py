"""What a run minimises: a registry, each entry a frozen dataclass of options in a file of its own.

An entry `Mine(Objective, name="mine")` says what a recipe's `objective: mine` does. It implements

- `loss(outputs, batch)`: the `Loss` of a micro-batch. `outputs` is what the forward pass came to (`Outputs`):
  `outputs.sum(function)` and `outputs.values(function)` run a `TokenFunction` over the predictions behind the chunked
  head, so that all logits are never held at once; `outputs.last()` gives the hidden state of each row's last token, and
  then no logits are computed; `outputs.module` is the trained module of `build`. `batch` tells which row each
  prediction belongs to and carries what `collate` put into `extras`. `Loss.sum` is a sum over `batch.trained` terms:
  the training loop divides by the terms of the whole optimizer step, so that accumulation changes nothing.
- `evaluate(outputs, batch)`: what is measured on the validation split, by default the same.
- `settle(examples)`: the objective with what it takes from the training examples, such as their classes.
- `encode(examples, template, tokenizer, max_length)`: their rows, by default with the answers to predict.
- `collate(rows, pad_id)`: a padded `Batch` of encoded rows. `trained` of it is the number of terms of the loss, and
  `terms` those of each row where they are not its trained labels; `extras` holds tensors [B, ...] that stay beside
  their rows when a micro-batch is split.
- `build(layout)`: a module that is trained beside the adapters (a classification head), or None. Its parameters are
  in the optimizer groups at the run's learning rate, and its tensors in the adapter's state as `objective/<tensor>`.
- `scores(metrics)`: figures for the log, from the tensors that all `Loss.metrics` of a step or of the validation split
  held, concatenated: `{"label": [n], "predicted": [n]}` gives accuracy and F1. By default the mean of each.
  `score_names()` are those that `train.keep_best` may name.
- `generates()` and `predictions(examples, metrics)`: whether what is trained answers by text, and if not, what
  `peft eval` writes of each example. The options of an objective whose module is trained stand in `adapter.json`.

Options may share their name with a key of the recipe's `train` section, which they then take their value from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from peftkit.data.batches import Batch, collate
from peftkit.data.encode import IGNORED, Encoded, EncodedExamples, encode
from peftkit.data.example import Example
from peftkit.data.template import Template
from peftkit.layout import Layout
from peftkit.options import Options
from peftkit.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry("objective", "peftkit.objectives")
DEFAULT = "cross-entropy"
"""The objective of a recipe that names none."""


class TokenFunction:
    """A number for each token, from its logits and its target; the chunked head calls it with a few at a time."""

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return a value [P] in fp32 for each of `logits` [P, V] and `targets` [P]."""
        raise TypeError(f"{type(self).__name__} does not define its values")

    def total(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Sum the values, each `weights` [P] times (None: once); targets of -100 do not count."""
        wanted = targets != IGNORED
        values = torch.where(wanted, self.values(logits, targets.clamp(min=0)), 0.0)
        return values.sum() if weights is None else values @ weights

    def behind_linear(
        self,
        hidden: Tensor,
        layer: nn.Linear,
        targets: Tensor,
        weights: Tensor | None,
        gradient: Tensor | None,
        scratch: Any,
    ) -> Tensor | None:
        """Return `total(layer(hidden))` for a frozen layer and write the gradient of `hidden`; None: no quicker way."""
        return None


class Predictions(Protocol):
    """What an objective reads of a micro-batch beside the model's outputs."""

    @property
    def trained(self) -> int:
        """The number of terms of the loss, as `collate` counted them."""
        ...

    @property
    def rows(self) -> Tensor:
        """[Q] long: the row of each prediction, in the order of `Outputs.values`."""
        ...

    @property
    def extras(self) -> Mapping[str, Tensor]:
        """Tensors [B, ...] that `collate` put beside the rows."""
        ...


class Outputs(Protocol):
    """What a forward pass came to."""

    @property
    def module(self) -> nn.Module | None:
        """The module of `Objective.build`."""
        ...

    def sum(self, function: TokenFunction) -> Tensor:
        """Sum the values of all predictions; equal ones are computed once."""
        ...

    def values(self, function: TokenFunction) -> Tensor:
        """Return the value [Q] of each prediction, with gradients."""
        ...

    def last(self) -> Tensor:
        """Return the hidden state [B, width] of the last token of each row."""
        ...


class Loss(NamedTuple):
    """Of one micro-batch."""

    sum: Tensor
    """The sum of its terms, with its graph."""
    weight: int
    """How many terms there are."""
    metrics: Mapping[str, Tensor] = {}
    """Detached tensors [n] by name, which `Objective.scores` gets concatenated."""


@dataclass(frozen=True, kw_only=True)
class Objective(Options, registry=OBJECTIVES):
    """The options of one objective as a recipe writes them, and what it computes."""

    summary: ClassVar[str] = ""
    """One sentence."""

    def build(self, layout: Layout) -> nn.Module | None:
        """Build the module that is trained beside the adapters; None by default."""
        return None

    def settle(self, examples: Sequence[Example]) -> Self:
        """Return the objective with what it takes from the training examples; itself by default."""
        return self

    def encode(
        self, examples: Sequence[Example], template: Template, tokenizer: Any, max_length: int
    ) -> EncodedExamples:
        """Encode examples; by default with their answers to predict."""
        return encode(examples, template, tokenizer, max_length)

    def collate(self, rows: Sequence[Encoded], pad_id: int) -> Batch:
        """Pad rows into a batch; by default for next-token losses on their labels."""
        return collate(rows, pad_id)

    def loss(self, outputs: Outputs, batch: Predictions) -> Loss:
        """Return the loss of a micro-batch."""
        raise TypeError(f"the objective '{self.name}' does not say what it minimises")

    def evaluate(self, outputs: Outputs, batch: Predictions) -> Loss:
        """Return what is measured on the validation split."""
        return self.loss(outputs, batch)

    def score_names(self) -> Sequence[str]:
        """List the scores of the validation split."""
        return ()

    def generates(self) -> bool:
        """Say whether what is trained answers by text."""
        return True

    def predictions(self, examples: Sequence[Example], metrics: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return what is written of each evaluated example, where no text is generated."""
        raise TypeError(f"the objective '{self.name}' does not say what it predicts")

    def scores(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return figures for the log from the concatenated metrics."""
        return {name: tensor.float().mean().item() for name, tensor in metrics.items()}
