"""Text from a model: prompts in batches with a cache; the likeliest tokens, drawn ones, or a beam search."""

from __future__ import annotations

from peftkit.generation.decoding import Generation, generate
from peftkit.generation.settings import Settings

__all__ = ["Generation", "Settings", "generate"]
