"""Tell pydantic's errors in our words: where, what was found, what is allowed, the nearest spelling."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import ErrorDetails

from peftkit.errors import nearest
from peftkit.recipe.compose import METHOD_FORMS, SECTIONS
from peftkit.recipe.describe import allowed
from peftkit.recipe.mistakes import Mistakes, suggest
from peftkit.recipe.sections import Recipe
from peftkit.recipe.tree import Node
from peftkit.schemas import show


def translate(fault: ErrorDetails, tree: Node, homes: Mapping[str, list[str]], mistakes: Mistakes) -> None:
    """Add a pydantic error unless one is known there; `homes` are the keys of each section, by its dotted path."""
    path = fault["loc"]
    place, key = tree.find(path).place, ".".join(str(step) for step in path)
    if mistakes.has(key):
        return
    section, _, field = key.partition(".") if path and path[0] in SECTIONS and len(path) > 1 else ("", "", key)
    field = field.split(".")[0]
    match fault["type"]:
        case "extra_forbidden":
            mistakes.add(place, key, f"unknown key; {_suggest_key(section, field, homes)}")
        case "missing":
            mistakes.add(place, key, f"missing; allowed: {_forms(section, field)}")
        case "value_error":
            mistakes.add(place, key, fault["msg"].removeprefix("Value error, "))
        case kind:
            value, forms = fault["input"], _forms(section, field)
            guess = nearest(value, forms.split(", ")) if kind == "literal_error" and isinstance(value, str) else None
            hint = f"; did you mean '{guess}'?" if guess else ""
            mistakes.add(place, key, f"found {show(value)}; allowed: {forms}{hint}")


def _forms(section: str, field: str) -> str:
    """Say what a key allows; a section's place also takes text where the section has a short form."""
    if section:
        return allowed(SECTIONS[section], field)
    if field in SECTIONS:
        short = SECTIONS[field].short
        keys = f"a mapping with {', '.join(SECTIONS[field].model_fields)}"
        return f"a {short}, or {keys}" if short else keys
    return METHOD_FORMS if field == "method" else allowed(Recipe, field)


def _suggest_key(section: str, key: str, homes: Mapping[str, list[str]]) -> str:
    """Suggest a key of this section or, where other sections have this very key, theirs."""
    others = [f"{home}.{key}".lstrip(".") for home, keys in homes.items() if home != section and key in keys]
    if others:
        choices = " or ".join(f"'{other}'" for other in others)
        return f"allowed: {', '.join(homes[section])}; did you mean {choices}?"
    return suggest(key, homes[section])
