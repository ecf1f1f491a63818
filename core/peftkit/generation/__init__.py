"""Text from a model: prompts in batches, a cache, greedy or drawn."""

from __future__ import annotations

from peftkit.generation.decoding import Generation, generate
from peftkit.generation.settings import Settings

__all__ = ["Generation", "Settings", "generate"]
