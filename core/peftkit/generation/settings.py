"""How text is generated: how far, which token next, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


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
    num_beams: int = 1
    """Above 1, so many continuations of each prompt are followed, and the best of them is the answer."""
    length_penalty: float = 1.0
    """An answer's log-probability is divided by its length to this power."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search ends, as in transformers: with `num_beams` answers; when the best continuation is below them
    at its own length (False); or when it would be below them at any length up to the limit (`never`)."""
    no_repeat_ngram_size: int = 0
    """No answer holds the same n tokens twice; 0 leaves repetitions be."""
    no_repeat_ngram_prompt: bool = True
    """Whether n-grams of the prompt count too, as in transformers."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are cut off."""
    ends: tuple[int, ...] | None = None
    """Token ids that end an answer; None takes the model's and the tokenizer's end-of-sequence."""

    def for_transformers(self) -> dict[str, Any]:
        """Return what transformers' GenerationConfig has of it; texts that end an answer are no part of that."""
        sampled = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        beams = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            # Of what is not in use a model's own settings may hold other values, of which transformers warns.
            **(sampled if self.do_sample else {"temperature": 1.0, "top_p": 1.0, "top_k": 50}),
            **(beams if self.num_beams > 1 else {"length_penalty": 1.0, "early_stopping": False}),
            **({} if self.ends is None else {"eos_token_id": list(self.ends)}),
        }
