"""The genres of the pretraining corpus; a module registers its writers, each from a Random to one document."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from peftkit.registry import Registry

GENRES: Registry[tuple[int, Callable[[Random], str]]] = Registry("genre", "synthetic.genres")


def genre(name: str, weight: int) -> Callable[[Callable[[Random], str]], Callable[[Random], str]]:
    """Return a decorator that registers a writer with its share of the corpus."""

    def decorate(writer: Callable[[Random], str]) -> Callable[[Random], str]:
        GENRES.add(name, (weight, writer))
        return writer

    return decorate
