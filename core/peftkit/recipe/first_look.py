"""Mistakes that the shipped schema shows, told before torch is imported, which takes seconds."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import ValidationError

from peftkit import resources
from peftkit.recipe import compose
from peftkit.recipe.describe import fits, words
from peftkit.recipe.mistakes import Mistakes, suggest
from peftkit.recipe.sections import Recipe
from peftkit.recipe.translate import translate
from peftkit.recipe.tree import Node
from peftkit.schemas import show

LATER = ("quantization", "pruning", "objective", "adapter", "adapters", "compare")
"""Keys whose values only the entries that they name can judge."""


@cache
def methods() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of every option of every method that comes with peftkit, by names."""
    definitions = json.loads((resources.folder("configs") / "recipe.schema.json").read_bytes())["$defs"]
    names = definitions["method"]["anyOf"][0]["enum"]
    return {name: definitions[f"method-{name}"].get("properties", {}) for name in names}


def first_look(tree: Node, mistakes: Mistakes) -> None:
    """Note unknown keys, methods and options of an expanded recipe, and values of another type or out of bounds."""
    homes = dict(compose.KEYS)
    keys = {key: value for key, value in tree.plain().items() if key not in LATER}
    if "method" in tree.value and isinstance(tree.value["method"].value, list):
        keys["method"] = [_choice(item, homes, mistakes) for item in tree.value["method"].value]
    elif "adapter" in tree.value:
        keys["method"] = [{"name": next(iter(methods())), "options": {}}]
    if isinstance(keys.get("train"), dict):
        keys["train"].pop("strategy", None)
    try:
        Recipe.model_validate(keys)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            translate(fault, tree, homes, mistakes)


def _choice(item: Node, homes: dict[str, list[str]], mistakes: Mistakes) -> dict[str, Any]:
    """Check one chosen method; `homes` learns its options."""
    ((name, options),) = item.value.items()
    if name not in methods():
        mistakes.add(item.place, "method", unknown_method(name, list(methods())))
        return {"name": name, "options": {}}
    meanings = methods()[name]
    homes[f"method.{name}"] = list(meanings)
    for key, node in options.value.items():
        home, value = f"method.{name}.{key}", node.plain()
        if key not in meanings:
            mistakes.add(node.place, home, f"unknown key; {suggest(key, meanings)}")
        elif not fits(meanings[key], value):
            mistakes.add(node.place, home, f"found {show(value)}; allowed: {words(meanings[key])}")
    return {"name": name, "options": {}}


def unknown_method(name: str, names: list[str]) -> str:
    """Say that a name is none of the methods' `names`."""
    return f"found '{name}', which is no method; {suggest(name, names)}"
