"""Load a recipe: read it, bring its parts together, check every key, and tell all mistakes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from peftkit.errors import PeftkitError
from peftkit.recipe import compose
from peftkit.recipe.catalogue import find
from peftkit.recipe.choices import dataset_names, quantization_formats
from peftkit.recipe.describe import words
from peftkit.recipe.mistakes import Mistakes, Place, suggest
from peftkit.recipe.sections import Recipe
from peftkit.recipe.translate import translate
from peftkit.recipe.tree import Node, from_python, read_file

if TYPE_CHECKING:
    from peftkit.method import Method


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a YAML file, the name of a shipped recipe (`e2e/lora`) or a mapping.

    `overrides` are `key=value` texts, each the same as that edit in the file. Parts named in `include` are laid under
    the recipe's own keys. Raises PeftkitError that tells every mistake with its file and line.
    """
    mistakes = Mistakes()
    if isinstance(source, Mapping):
        tree, folder = from_python(source, Place("recipe"), mistakes), Path.cwd()
    else:
        path = find(source)
        tree, folder = read_file(path, mistakes), path.parent
    parts = [text for text in overrides if text.partition("=")[0].strip().split(".")[0] == "include"]
    tree = compose.override(compose.expand(tree, mistakes), parts, mistakes)
    tree = compose.include(tree, folder, mistakes)
    tree = compose.override(tree, [text for text in overrides if text not in parts], mistakes)
    if mistakes.final:
        mistakes.check()
    return _validate(tree, mistakes)


def _validate(tree: Node, mistakes: Mistakes) -> Recipe:
    """Check every key of the expanded `tree`; names and options of methods are checked in their registry."""
    keys = tree.plain()
    homes = dict(compose.KEYS)
    if "method" in tree.value:
        keys["method"] = _complete_methods(tree, keys, homes, mistakes)
    _check_names(tree, mistakes)
    recipe = None
    try:
        recipe = Recipe.model_validate(keys)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            translate(fault, tree, homes, mistakes)
    mistakes.check()
    if recipe is None:
        raise PeftkitError("the recipe is not valid")
    return recipe


def _complete_methods(
    tree: Node, keys: dict[str, Any], homes: dict[str, list[str]], mistakes: Mistakes
) -> list[dict[str, Any]]:
    """Return the chosen methods with every option written out; the recipe's `rank` moves into those that have one.

    `homes` learns the options of each method, for suggestions.
    """
    from peftkit.method import METHODS

    rank = keys.get("rank") if type(keys.get("rank")) is int and keys["rank"] >= 1 else None
    choices: list[dict[str, Any]] = []
    reached, ranked = False, ""
    for item in tree.value["method"].value:
        ((name, options),) = item.value.items()
        if name not in METHODS:
            mistakes.add(item.place, "method", f"found '{name}', which is no method; {suggest(name, METHODS.names())}")
            continue
        names = [field.name for field in dataclasses.fields(METHODS[name])]
        homes[f"method.{name}"] = names
        given = options.plain()
        if rank is not None and "rank" in names:
            ranked, reached = name, reached or "rank" not in given
            given = {"rank": rank, **given}
        choices.append({"name": name, "options": _complete(METHODS[name], given, options, mistakes)})
    if reached:
        keys["rank"] = None
    elif rank is not None and not mistakes.tells("method"):
        reason = f"'{ranked}' sets its own: write method.{ranked}.rank" if ranked else "no chosen method has a rank"
        mistakes.add(tree.value["rank"].place, "rank", f"found {rank}, and {reason}")
    return choices


def _complete(method: type[Method], given: dict[str, Any], options: Node, mistakes: Mistakes) -> dict[str, Any]:
    """Return every option of a method; a wrong one is told where it stands, found by trying each alone."""
    from peftkit.method import schema

    meanings = schema(method)["properties"]
    known = {key: value for key, value in given.items() if key in meanings}
    for key in [key for key in given if key not in meanings]:
        place = options.value[key].place
        mistakes.add(place, f"method.{method.name}.{key}", f"unknown key; {suggest(key, meanings)}")
    try:
        return method.from_options(known).options()
    except PeftkitError as error:
        told = False
        for key, value in known.items():
            try:
                method.from_options({key: value})
            except PeftkitError as fault:
                reason = str(fault).removeprefix(f"{method.name}: ").removeprefix(f"{key}: ")
                place, allowed = options.find((key,)).place, words(meanings[key])
                mistakes.add(place, f"method.{method.name}.{key}", f"{reason}; allowed: {allowed}")
                told = True
        if not told:
            mistakes.add(options.place, f"method.{method.name}", str(error).removeprefix(f"{method.name}: "))
    return {}


def _check_names(tree: Node, mistakes: Mistakes) -> None:
    """Check the names that other parts of the package register."""
    for path, choices in ((("dataset", "name"), dataset_names()), (("quantization", "format"), quantization_formats())):
        node = tree.find(path)
        if isinstance(node.value, str) and node.value not in choices:
            mistakes.add(node.place, ".".join(path), f"found '{node.value}'; {suggest(node.value, choices)}")
