"""Adapter folders that a recipe names and that are no runs yet: each is made a run, on the recipe's base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftkit.errors import PeftkitError
from peftkit.recipe.mistakes import Mistakes
from peftkit.recipe.tree import Node
from peftkit.registry import Registry

BASE = ("model", "quantization")
"""The sections of a recipe that say what an adapter stands on."""
Opener = Callable[[str, Mapping[str, Any]], Path | None]
OPENERS: Registry[Opener] = Registry("kind of adapter folder", "peftkit.interchange.openers")
"""What makes a run of what a recipe names, on the base of these sections; None where it is of another kind."""


def open_folders(tree: Node, mistakes: Mistakes) -> Node:
    """Return the expanded `tree` with run folders as `adapter` and `adapters`; what fits no base is a mistake."""
    if not any(_named(tree)):
        return tree
    sections = {key: tree.value[key].plain() for key in BASE if key in tree.value}
    keys = dict(tree.value)
    for home, name, node in _named(tree):
        try:
            runs = (opener(node.value, sections) for _, opener in OPENERS.items())
            run = next((run for run in runs if run is not None), None)
        except PeftkitError as error:
            mistakes.add(node.place, ".".join(filter(None, (home, name))), str(error), final=True)
            continue
        if run is None:
            continue
        opened = replace(node, value=str(run))
        keys[home] = opened if name is None else replace(keys[home], value={**keys[home].value, name: opened})
    return Node(keys, tree.place)


def _named(tree: Node) -> Iterator[tuple[str, str | None, Node]]:
    """Yield the key, the name under it, and the node of each folder."""
    listed = tree.value.get("adapters")
    under = listed.value.items() if listed is not None and isinstance(listed.value, dict) else ()
    one = tree.value.get("adapter")
    found = [("adapter", None, one)] if one is not None else []
    yield from (each for each in [*found, *(("adapters", *item) for item in under)] if _is_text(each[2]))


def _is_text(node: Node) -> bool:
    return isinstance(node.value, str) and bool(node.value)
