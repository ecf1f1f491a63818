"""What a prompt may be: how long, and what an empty one begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit.errors import PeftkitError
from peftkit.ports.context import context_of


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """Return what an empty prompt is continued from: the beginning-of-sequence token, else the end-of-sequence."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise PeftkitError("an empty prompt cannot be continued: the tokenizer has no token to begin with.")
    return (first,)


def context_length(model: Any) -> int | None:
    """Return the most positions that the model takes of a text, or None where it sets no limit."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    # Configurations of models with relative positions alone say -1.
    return limit - context_of(model).raised if limit is not None and limit > 0 else None


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
