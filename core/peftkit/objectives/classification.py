"""The class of a whole text, told by a linear layer on the hidden state of its last token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from peftkit.data.batches import Batch, collate
from peftkit.data.encode import Encoded, EncodedExamples, encode_prompts
from peftkit.data.example import LABEL, Example
from peftkit.data.template import Template
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.metrics import score
from peftkit.metrics.f1 import binary
from peftkit.objectives import Loss, Objective, Outputs, Predictions

SPREAD = 0.02
"""The standard deviation of the layer's weights at the start, as transformers draws them."""
SCORES = ("accuracy", "f1", "f1_macro", "matthews")


@dataclass(frozen=True, kw_only=True)
class Classification(Objective, name="classification"):
    """The sum over rows of -log softmax(W h + b) at the row's class, W [classes, width]; W and b are trained."""

    summary: ClassVar[str] = "Tells the class of a text by a linear layer on its last token; rows have a `label`."

    labels: tuple[str | int, ...] = ()
    """The classes in order; by default those of the training examples, sorted, numbers first. Of two classes the second
    is the positive one of F1."""

    def settle(self, examples: Sequence[Example]) -> Self:
        seen = {_label(example) for example in examples}
        labels = self.labels or tuple(sorted(seen, key=lambda label: (isinstance(label, str), label)))
        if len(labels) < 2 or len(set(map(str, labels))) < len(labels):
            raise PeftkitError(
                f"the objective 'classification' has the classes {', '.join(map(repr, labels))}, and at least two "
                "different ones are told apart: check the labels of the training split."
            )
        return replace(self, labels=labels)

    def build(self, layout: Layout) -> nn.Module:
        layer = nn.Linear(layout.width, len(self.labels))
        nn.init.normal_(layer.weight, std=SPREAD)
        nn.init.zeros_(layer.bias)
        return layer

    def encode(
        self, examples: Sequence[Example], template: Template, tokenizer: Any, max_length: int
    ) -> EncodedExamples:
        numbers = [self._number(example) for example in examples]
        encoded = encode_prompts(examples, template, tokenizer, max_length)
        rows = [replace(row, label=number) for row, number in zip(encoded.rows, numbers, strict=True)]
        return replace(encoded, rows=rows)

    def _number(self, example: Example) -> int:
        """Return the position of an example's class; PeftkitError for one that is none of them."""
        label = _label(example)
        if label not in self.labels:
            known = ", ".join(map(repr, self.labels))
            raise PeftkitError(
                f"{example.id}: the label {label!r} is none of the training split's: {known}. Correct it, or name all "
                "classes in objective.classification.labels."
            )
        return self.labels.index(label)

    def collate(self, rows: Sequence[Encoded], pad_id: int) -> Batch:
        label = torch.tensor([row.label for row in rows])
        return replace(collate(rows, pad_id), trained=len(rows), terms=[1] * len(rows), extras={LABEL: label})

    def loss(self, outputs: Outputs, batch: Predictions) -> Loss:
        module, label = outputs.module, batch.extras[LABEL]
        assert isinstance(module, nn.Linear)
        logits = module(outputs.last().to(module.weight.dtype)).float()
        probabilities = logits.detach().softmax(1)
        metrics = {LABEL: label, "predicted": probabilities.argmax(1), "probabilities": probabilities}
        return Loss(F.cross_entropy(logits, label, reduction="sum"), batch.trained, metrics)

    def score_names(self) -> Sequence[str]:
        return SCORES

    def scores(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        wanted, predicted = ([str(self.labels[at]) for at in metrics[key].tolist()] for key in (LABEL, "predicted"))
        figures = dict(score(("accuracy", "f1_macro", "matthews"), predicted, [[each] for each in wanted]))
        if len(self.labels) == 2:
            figures["f1"] = binary(predicted, wanted, str(self.labels[1]))
        return {name: figures[name] for name in SCORES if name in figures}

    def generates(self) -> bool:
        return False

    def predictions(self, examples: Sequence[Example], metrics: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return each example's label, the predicted one, and the probability of each class."""
        rows = zip(
            examples,
            metrics["predicted"].tolist(),
            metrics["probabilities"].view(len(examples), -1).tolist(),
            strict=True,
        )
        return [
            {
                "id": example.id,
                "prompt": example.prompt[-1].text,
                "label": _label(example),
                "prediction": self.labels[predicted],
                "probabilities": dict(zip(map(str, self.labels), probabilities, strict=True)),
            }
            for example, predicted, probabilities in rows
        ]


def _label(example: Example) -> str | int:
    if LABEL not in example.meta:
        raise PeftkitError(
            f"{example.id} has no label, which the objective 'classification' learns: its rows are a text and a "
            "`label`, as the data set 'jsonl' reads them."
        )
    return example.meta[LABEL]
