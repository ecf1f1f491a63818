"""How text is generated: how far, which token next, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What decoding depends on beside the model and the prompts."""

    max_new_tokens: int = 128
    do_sample: bool = False
    """Draw each token; else take the likeliest."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 takes all tokens."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are cut off."""
    ends: tuple[int, ...] | None = None
    """Token ids that end an answer; None takes the model's and the tokenizer's end-of-sequence."""
