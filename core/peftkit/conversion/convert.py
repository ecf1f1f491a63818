"""From a file of another tool to a recipe that has been checked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftkit import files
from peftkit.conversion.tool import TOOLS, Config, Tool
from peftkit.errors import PeftkitError
from peftkit.recipe import load
from peftkit.recipe.mistakes import Mistakes, Place
from peftkit.recipe.tree import Dumper, read_keys, read_text

FLAG = re.compile(r"(?m)(^|\s)--[A-Za-z]")
KEY = re.compile(r"(?m)^[A-Za-z_]\w*:(\s|$)")
SHOWN = 8
"""Keys of an unknown file that an error names."""


@dataclass(frozen=True)
class Converted:
    """A recipe, and what of the configuration is not in it."""

    tool: str
    text: str
    """The recipe as YAML."""
    told: tuple[str, ...]
    """A line for each key without counterpart, or of which something has to be known."""


def convert(path: Path) -> Converted:
    """Translate a configuration of LLaMA-Factory, Axolotl, TRL or Hugging Face peft into a recipe that loads.

    Raises PeftkitError for a file of no known tool, or of several, and for values that no recipe can hold.
    """
    values = read(path)
    tool = tool_of(path, values)
    config = Config(str(path), values)
    keys = tool.recipe(config)
    try:
        load(keys)
    except PeftkitError as error:
        raise PeftkitError(f"{path}: the recipe that it is translated into does not load:\n{error}") from None
    text = yaml.dump(keys, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return Converted(tool.name, f"# Translated from {tool.name}.\n{text}", tuple(config.told()))


def read(path: Path) -> dict[str, Any]:
    """Return the keys of a file: JSON, a command line with `--key value`, or YAML."""
    text = files.read_text(path)
    if path.suffix == ".json":
        values = files.parse_json(text, str(path))
        if not isinstance(values, dict):
            raise PeftkitError(f"{path}: found {type(values).__name__}; allowed: an object with keys.")
        return values
    return flags(path, text) if FLAG.search(text) and not KEY.search(text) else read_keys(path)


def flags(path: Path, text: str) -> dict[str, Any]:
    """Return the flags of a command line, lines of which may end in a backslash; several values are a list."""
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise PeftkitError(f"{path}: the command line cannot be read: {error}.") from None
    found: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if key in found:
                raise PeftkitError(f"{path}: --{key} stands twice; allowed: once.")
            found[key] = [value] if equals else []
        elif key is not None:
            found[key].append(word)
    return {key: _value(path, key, values) for key, values in found.items()}


def _value(path: Path, key: str, words: list[str]) -> Any:
    mistakes = Mistakes()
    read = [read_text(word, Place(str(path)), mistakes, key) for word in words]
    mistakes.check()
    values = [None if node is None else node.plain() for node in read]
    return True if not values else values[0] if len(values) == 1 else values


def tool_of(path: Path, values: Mapping[str, Any]) -> Tool:
    """Return the tool whose keys a file has; PeftkitError for none or several."""
    found = {name: sorted(tool.markers & values.keys()) for name, tool in TOOLS.items()}
    known = {name: keys for name, keys in found.items() if keys}
    if len(known) == 1:
        return TOOLS[next(iter(known))]
    if known:
        each = "; ".join(f"{', '.join(keys)} of {TOOLS[name].name}" for name, keys in known.items())
        raise PeftkitError(f"{path}: found keys of several tools: {each}; allowed: those of one.")
    names = list(values)
    keys = ", ".join(map(str, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    tools = "; ".join(f"{tool.name} ({', '.join(sorted(tool.markers))})" for _, tool in TOOLS.items())
    raise PeftkitError(f"{path}: found {keys or 'no keys'}, which tell no known tool; allowed, with a key of: {tools}.")
