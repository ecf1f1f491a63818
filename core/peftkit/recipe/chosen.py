"""The methods that a recipe chooses, with every option written out; a wrong one is told where it stands."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

from peftkit.errors import PeftkitError
from peftkit.options import Options, schema
from peftkit.recipe.choices import methods
from peftkit.recipe.compose import expand_methods
from peftkit.recipe.describe import fits, words
from peftkit.recipe.first_look import unknown_method
from peftkit.recipe.mistakes import Mistakes, Place, suggest
from peftkit.recipe.tree import Node
from peftkit.schemas import show

if TYPE_CHECKING:
    from peftkit.method import Method

ALL = "all"
"""Stands for every registered method in a comparison."""


def complete_methods(
    tree: Node, keys: dict[str, Any], homes: dict[str, list[str]], mistakes: Mistakes
) -> list[dict[str, Any]]:
    """Return the chosen methods with every option written out.

    The recipe's `rank` and `quantization.init` move into those that have the option. `homes` learns the options of each
    method, for suggestions.
    """
    registered = methods()
    rank = keys.get("rank") if type(keys.get("rank")) is int and keys["rank"] >= 1 else None
    choices: list[dict[str, Any]] = []
    reached, ranked, started = False, "", False
    section = keys.get("quantization")
    chooses = isinstance(section, dict) and section.get("init") is not None
    start = tree.find(("quantization", "init")) if chooses else None
    for item in tree.value["method"].value:
        ((name, options),) = item.value.items()
        if name not in registered:
            mistakes.add(item.place, "method", unknown_method(name, registered.names()))
            continue
        names = [field.name for field in dataclasses.fields(registered[name])]
        homes[f"method.{name}"] = names
        given = options.plain()
        if rank is not None and "rank" in names:
            ranked, reached = name, reached or "rank" not in given
            given = {"rank": rank, **given}
        if start is not None and _takes(registered[name], "init", start.plain()):
            started, given = True, {"init": start.plain(), **given}
        choices.append(
            {"name": name, "options": complete_options(registered[name], given, options, f"method.{name}", mistakes)}
        )
    if start is not None and not started:
        mistakes.add(start.place, "quantization.init", f"found {start.plain()}, and no chosen method has an init")
    if reached:
        keys["rank"] = None
    elif rank is not None and not mistakes.has("method"):
        reason = f"'{ranked}' sets its own: write method.{ranked}.rank" if ranked else "no chosen method has a rank"
        mistakes.add(tree.value["rank"].place, "rank", f"found {rank}, and {reason}")
    return choices


def _takes(method: type[Method], key: str, value: Any) -> bool:
    """Say whether a method has an option that takes this value."""
    try:
        method.from_options({key: value})
    except PeftkitError:
        return False
    return True


def complete_options(
    cls: type[Options], given: dict[str, Any], options: Node, home: str, mistakes: Mistakes
) -> dict[str, Any]:
    """Return every option of an entry; a wrong one is told where it stands, seen by trying each alone."""
    meanings = schema(cls).get("properties", {})
    known = {key: value for key, value in given.items() if key in meanings}
    for key in [key for key in given if key not in meanings]:
        mistakes.add(options.value[key].place, f"{home}.{key}", f"unknown key; {suggest(key, meanings)}")
    try:
        return cls.from_options(known).options()
    except PeftkitError as error:
        named = False
        for key, value in known.items():
            try:
                cls.from_options({key: value})
            except PeftkitError as fault:
                reason = str(fault).removeprefix(f"{cls.name}: ").removeprefix(f"{key}: ")
                place = _place(options.find((key,)), reason)
                found = reason if fits(meanings[key], value) else f"found {show(value)}"
                mistakes.add(place, f"{home}.{key}", f"{found}; allowed: {words(meanings[key])}")
                named = True
        if not named:
            mistakes.add(options.place, home, str(error).removeprefix(f"{cls.name}: "))
    return {}


def _place(option: Node, reason: str) -> Place:
    """Return where an option is wrong: at the key of its own mapping with which the reason begins, if it does."""
    quoted = re.match(r"'([^']*)': ", reason)
    below = option.value.get(quoted[1]) if quoted and isinstance(option.value, dict) else None
    return option.place if below is None else below.place


def complete_compared(node: Node, own: list[dict[str, Any]], mistakes: Mistakes) -> list[list[dict[str, Any]]]:
    """Return the entries of `compare.methods`, each a list of methods with every option.

    `own` are the recipe's methods: a bare name that is the only one of them stands for it with its options.
    """
    home, entries, registered = "compare.methods", [], methods()
    items = node.value if isinstance(node.value, list) else [node]
    if any(item.value == ALL for item in items):
        items = [Node(name, item.place) for item in items for name in (registered.names() if item.value == ALL else ())]
    for item in items:
        if isinstance(item.value, str) and [item.value] == [choice["name"] for choice in own]:
            entries.append(own)
            continue
        if isinstance(item.value, str):
            item = Node([Node(name.strip(), item.place) for name in item.value.split("+")], item.place)
        entry = []
        for choice in expand_methods(item, mistakes, home).value:
            ((name, options),) = choice.value.items()
            if name in registered:
                entry.append(
                    {
                        "name": name,
                        "options": complete_options(
                            registered[name], options.plain(), options, f"{home}.{name}", mistakes
                        ),
                    }
                )
            else:
                choices = suggest(name, [*registered.names(), ALL])
                mistakes.add(choice.place, home, f"found '{name}', which is no method; {choices}")
        if entry or not mistakes.has(home):
            entries.append(entry)
    return entries
