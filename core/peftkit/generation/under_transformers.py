"""What adapters need under transformers' own `generate`, which is given the ids that a tokenizer makes of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.keys import Keys
from peftkit.ports.context import context_of


def put_in_front(model: Any, soft: Sequence[int], after: int | None) -> None:
    """Have `model.generate` put the rows `soft` in front of each prompt, and take them out of what it returns.

    They stand behind a leading token `after` where there is one, and behind padding on the left. `max_length` and
    `min_length` count the text alone. Prompts have to come as ids: embeddings are a PeftkitError.
    """
    original = model.generate

    def generate(inputs: Tensor | None = None, **named: Any) -> Any:
        ids = _ids(inputs, named)
        named.pop("input_ids", None)
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


def tell_prompts(model: Any) -> None:
    """Have `model.generate` tell the adapters which tokens are the prompt, where some depend on all of it."""
    original, context = model.generate, context_of(model)

    def generate(inputs: Tensor | None = None, **named: Any) -> Any:
        width = _ids(inputs, named).shape[1]

        def tell(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            ids = args[0] if args else given.get("input_ids")
            # With a cache the tokens behind the prompt come by themselves, and without one behind all of it.
            context.told = None if ids is None or ids.shape[1] < width else _prompt(ids, width, given)

        handle = model.register_forward_pre_hook(tell, with_kwargs=True)
        try:
            return original(inputs, **named)
        finally:
            handle.remove()
            context.told = None

    model.generate = generate


def take_keys(model: Any, keys: Keys) -> None:
    """Have `model.generate` take `key`, one for all prompts or a list of one for each, by which adapters are chosen."""
    original, context = model.generate, context_of(model)

    def generate(inputs: Tensor | None = None, *, key: str | Sequence[str] | None = None, **named: Any) -> Any:
        if key is None:
            raise PeftkitError(
                f"this run's adapters are chosen by a key: give generate key=…, one of {', '.join(keys.names)}."
            )
        count = len(_ids(inputs, named))
        given = [key] * count if isinstance(key, str) else list(key)
        if len(given) != count:
            raise PeftkitError(f"generate was given {len(given)} keys for {count} prompts.")
        with context.with_keys(torch.tensor([keys.number(each) for each in given])):
            return original(inputs, **named)

    model.generate = generate


def _prompt(ids: Tensor, width: int, given: dict[str, Any]) -> Tensor:
    """Return which of the tokens [B, T] are in the first `width` columns and no padding, [B, T] bool."""
    prompt = (torch.arange(ids.shape[1], device=ids.device) < width).expand(ids.shape)
    mask = given.get("attention_mask")
    return prompt & (mask > 0) if isinstance(mask, Tensor) and mask.shape == ids.shape else prompt


def _ids(inputs: Tensor | None, named: dict[str, Any]) -> Tensor:
    ids = inputs if inputs is not None else named.get("input_ids")
    if ids is None:
        raise PeftkitError("this run's adapters read token ids: give generate input_ids, not embeddings.")
    return ids


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
