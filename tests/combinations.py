"""Lists of methods drawn at random from the registry, the same ones every time; a new method joins the draw."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from facts import facts
from storages import stored

from peftkit.adaptation import check_methods
from peftkit.errors import PeftkitError
from peftkit.method import METHODS, Method


def decoder(names: tuple[str, ...] = ()) -> Any:
    """Build a tiny decoder that these methods suit: gated, grouped keys and values, with biases, stored as they need.

    Raises LookupError where no storage suits them all.
    """
    return stored(names, attention_bias=True)


@cache
def _shape(names: tuple[str, ...]) -> Any:
    return decoder(names)


def build(names: tuple[str, ...]) -> list[Method]:
    """Build methods as they come."""
    return [METHODS[name].from_options({}) for name in names]


def refusal(names: tuple[str, ...]) -> str | None:
    """Return why these methods do not go together; None where they do."""
    try:
        check_methods(_shape(tuple(name for name in names if METHODS[name].needs)), build(names))
    except (PeftkitError, LookupError) as error:
        return str(error)
    return None


def drawn(size: int, count: int, suitable: Callable[[str], bool] = lambda name: True) -> list[tuple[str, ...]]:
    """Draw `count` different lists of `size` methods that go together."""
    generator = random.Random(size)
    names, found = [name for name in METHODS.names() if suitable(name) and not facts(name).alone], []
    while len(found) < count:
        chosen = tuple(generator.sample(names, size))
        if chosen not in found and refusal(chosen) is None:
            found.append(chosen)
    return found


COMBINATIONS = [*drawn(2, 10), *drawn(3, 3)]


def merges(name: str) -> bool:
    """Say whether a method merges as it comes."""
    return METHODS[name].from_options({}).mergeable


MERGING = [*drawn(2, 6, merges), *drawn(3, 3, merges)]
