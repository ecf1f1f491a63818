"""Parameter-efficient fine-tuning of language models: every method behind one interface.

`from peftkit import train, evaluate, compare, load, Recipe` are the commands as functions (`peftkit.api`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftkit.api import Comparison, Observer, Recipe, Summary, TrainedRun, compare, evaluate, load, train

__version__ = "0.1.0"
__all__ = ["Comparison", "Observer", "Recipe", "Summary", "TrainedRun", "compare", "evaluate", "load", "train"]


def __getattr__(name: str) -> object:
    """Read the functions when they are first asked for: what they stand on takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module 'peftkit' has no attribute '{name}'")
    from peftkit import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
