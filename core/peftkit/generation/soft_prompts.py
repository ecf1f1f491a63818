"""Soft prompts under transformers' own `generate`, which is given the ids that a tokenizer makes of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError


def put_in_front(model: Any, soft: Sequence[int], after: int | None) -> None:
    """Have `model.generate` put the rows `soft` in front of each prompt, and take them out of what it returns.

    They stand behind a leading token `after` where there is one, and behind padding on the left. `max_length` and
    `min_length` count the text alone. Prompts have to come as ids: embeddings are a PeftkitError.
    """
    original = model.generate

    def generate(inputs: Tensor | None = None, **named: Any) -> Any:
        ids = inputs if inputs is not None else named.pop("input_ids", None)
        if ids is None:
            raise PeftkitError(
                "this run's soft prompt stands in front of token ids: give generate input_ids, not embeddings."
            )
        mask = named.pop("attention_mask", None)
        places = _places(ids, torch.ones_like(ids) if mask is None else mask, after)
        for key in ("max_length", "min_length"):
            named |= {key: named[key] + len(soft)} if named.get(key) is not None else {}
        rows = torch.tensor(soft, device=ids.device, dtype=ids.dtype)
        mask = torch.ones_like(ids) if mask is None else mask
        result = original(
            _with(ids, rows, places), attention_mask=_with(mask, torch.ones_like(rows), places).to(mask.dtype), **named
        )
        if isinstance(result, Tensor):
            return _without(result, len(soft), places)
        result.sequences = _without(result.sequences, len(soft), places)
        return result

    model.generate = generate


def _places(ids: Tensor, mask: Tensor, after: int | None) -> list[int]:
    """Return for each row of ids [B, T] where its text begins, behind a leading token `after`."""
    begins = mask.long().argmax(1).tolist()
    return [at + int(after is not None and int(row[at]) == after) for at, row in zip(begins, ids, strict=True)]


def _with(rows: Tensor, soft: Tensor, places: Sequence[int]) -> Tensor:
    """Insert `soft` [S] into each row of [B, T] at its place: [B, T + S]."""
    return torch.stack([torch.cat([row[:at], soft, row[at:]]) for row, at in zip(rows, places, strict=True)])


def _without(rows: Tensor, count: int, places: Sequence[int]) -> Tensor:
    """Take `count` ids out of each row of [B * n, T] at the place of its prompt, n rows of one prompt side by side."""
    several = len(rows) // len(places)
    return torch.stack(
        [
            torch.cat([row[: places[index // several]], row[places[index // several] + count :]])
            for index, row in enumerate(rows)
        ]
    )
