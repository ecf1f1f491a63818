"""A model in memory, with what is attached to it, as lm-eval's model of Hugging Face transformers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError

# lm-eval is an optional package, so type checkers need not find it.
HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM


class AdaptedLM(HFLM):
    """lm-eval's own model, but for soft prompt ids in front of every text, as in training.

    They stand behind a beginning-of-sequence token, or first where the text has none, and take their places from the
    context. Prompts are tokenized, cut and padded by lm-eval, so a model without soft ids scores as it does there.
    """

    def __init__(self, model: Any, tokenizer: Any, *, soft: Sequence[int] = (), batch_size: int = 1, precision: str):
        """Wrap the model as it stands; log-probabilities are computed in fp32."""
        self.soft = torch.tensor(soft, dtype=torch.long, device=model.device)
        with _left_as_it_is(model):
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size,
                mixed_precision_dtype="bfloat16" if precision == "bf16" else None,
                softmax_dtype="float32",
            )

    @property
    def max_length(self) -> int:
        """The tokens of a text that fit into the context beside the soft ones."""
        return super().max_length - len(self.soft)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return logits [B, soft + T, vocabulary] of right-padded ids [B, T]; lm-eval counts from their end."""
        return super()._model_call(self._widened(inps, torch.zeros_like(inps[:, 0])), attn_mask, labels)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Return left-padded ids `context` [B, T] with what follows them."""
        if not len(self.soft):
            return super()._model_generate(context, max_length, stop, **options)
        if options.get("repetition_penalty") not in (None, 1, 1.0):
            raise PeftkitError(
                "the task sets repetition_penalty, which wants a logit of every id in front, and soft ones have none."
            )
        mask = options.pop("attention_mask")
        begins = mask.argmax(dim=1)
        # Padding stands to the left alone, so more ones at the end are the mask of a longer text.
        wide_mask = torch.cat([mask, mask.new_ones(len(mask), len(self.soft))], dim=1)
        wide = self._widened(context, begins)
        answers = super()._model_generate(wide, max_length + len(self.soft), stop, attention_mask=wide_mask, **options)
        return torch.cat([context, answers[:, wide.shape[1] :]], dim=1)

    def _widened(self, ids: Tensor, begins: Tensor) -> Tensor:
        """Return ids [B, soft + T]: in each row the soft ones stand where its text begins, behind a first bos."""
        if not len(self.soft):
            return ids
        first = self.tokenizer.bos_token_id
        places = [begin + int(int(row[begin]) == first) for row, begin in zip(ids, begins.tolist(), strict=True)]
        rows = [torch.cat([row[:at], self.soft, row[at:]]) for row, at in zip(ids, places, strict=True)]
        return torch.stack(rows)


@contextmanager
def _left_as_it_is(model: Any) -> Iterator[None]:
    """Keep lm-eval from tying weights anew inside: an adapted model may have untied them, and loading has tied them."""
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights
