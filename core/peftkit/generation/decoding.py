"""Decoding in batches of prompts of like length, with a cache, dropping answers that have ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from peftkit.errors import PeftkitError
from peftkit.generation.choosing import Choose, chooser
from peftkit.generation.settings import Settings
from peftkit.generation.stopping import Stopping

SPARE = 0.75
"""The batch is made smaller once no more than this part of its rows goes on: copying the cache has to pay."""


@dataclass(frozen=True)
class Generation:
    """The answer to one prompt."""

    text: str
    """Up to the stop text, special tokens left out."""
    ids: list[int]
    """The generated tokens; without the one that ended the answer, with those of a stop text."""
    finished: bool
    """Whether the answer ended by itself; else the limit cut it off."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Generation]:
    """Continue each prompt (token ids) and return the answers in the order of the prompts.

    An answer depends on its prompt, its number in the list where tokens are drawn, and not on the batch. `on_progress`
    receives (answers so far, all) after each batch. An empty prompt begins with the tokenizer's first special token.
    Raises PeftkitError where a prompt and its answer may be longer than the model's context.
    """
    begun = [list(prompt) or beginning(tokenizer) for prompt in prompts]
    check_lengths(model, begun, settings.max_new_tokens)
    stopping, choose = Stopping.of(model, tokenizer, settings), chooser(settings)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    order = sorted(range(len(begun)), key=lambda number: (-len(begun[number]), number))
    answers: dict[int, Generation] = {}
    with inference(model):
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = [begun[number] for number in numbers]
            answers |= decode_batch(model, dict(zip(numbers, batch, strict=True)), settings, choose, stopping, pad_id)
            if on_progress:
                on_progress(len(answers), len(order))
    return [answers[number] for number in range(len(begun))]


def decode_batch(
    model: Any, prompts: dict[int, list[int]], settings: Settings, choose: Choose, stopping: Stopping, pad_id: int
) -> dict[int, Generation]:
    """Return the answer to each numbered prompt, all decoded together."""
    device = next(model.parameters()).device
    tokens, mask = pad_left(list(prompts.values()), pad_id, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows, found, ended = list(prompts), {number: [] for number in prompts}, set()
    for _ in range(settings.max_new_tokens):
        chosen = choose(next_logits(model, tokens, mask, positions, cache), rows)
        for number, token in zip(rows, chosen, strict=True):
            if number not in ended:
                found[number].append(token)
                if stopping.ended(found[number]):
                    ended.add(number)
        going = [row for row, number in enumerate(rows) if number not in ended]
        if not going:
            break
        positions = positions[:, -1:] + 1
        if len(going) <= SPARE * len(rows):
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            mask, positions = mask[kept], positions[kept]
            rows, chosen = [rows[row] for row in going], [chosen[row] for row in going]
        tokens = torch.tensor(chosen, device=device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    for ids in found.values():
        if ids and ids[-1] in stopping.ends:
            ids.pop()
    return {number: Generation(stopping.text(ids), ids, number in ended) for number, ids in found.items()}


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return tokens and attention mask, both [prompts, longest], every prompt ending in the last column."""
    width = max(map(len, prompts))
    tokens = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def next_logits(model: Any, tokens: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Return the logits [rows, vocabulary] after the last of `tokens` [rows, new], whose past is in the cache."""
    accepted = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {}
    if "position_ids" in accepted:  # models with linear biases count positions from the mask themselves
        extra["position_ids"] = positions
    if "logits_to_keep" in accepted:
        extra["logits_to_keep"] = 1
    output = model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
    return output.logits[:, -1]


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Switch off dropout and gradients inside, and bring the model back to how it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def beginning(tokenizer: Any) -> list[int]:
    """Return what an empty prompt is continued from: the beginning-of-sequence token, else the end-of-sequence."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise PeftkitError("an empty prompt cannot be continued: the tokenizer has no token to begin with.")
    return [first]


def context_length(model: Any) -> int | None:
    """Return the most positions that the model takes, or None where it sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_lengths(model: Any, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Raise PeftkitError where a prompt with `new` more tokens is longer than the model's context."""
    limit = context_length(model)
    long = [number for number, prompt in enumerate(prompts, 1) if limit is not None and len(prompt) + new > limit]
    if long:
        raise PeftkitError(
            f"prompt {long[0]} has {len(prompts[long[0] - 1])} tokens, and with generation.max_new_tokens {new} it is "
            f"more than the model's {limit} positions ({len(long)} of {len(prompts)} prompts are too long): lower "
            "generation.max_new_tokens, or take shorter prompts."
        )
