"""The trained adapter that a recipe goes on from: its methods and options are the recipe's, or agree with it."""

from __future__ import annotations

from typing import Any

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.recipe.choices import described_methods, methods
from peftkit.recipe.mistakes import Mistakes
from peftkit.recipe.tree import Node, from_python
from peftkit.schemas import show

Described = list[tuple[str, dict[str, Any]]]
FREE = ("learning_rate",)
"""Options of methods that another run may have: what its adapter computes does not depend on them."""


def complete_start(tree: Node, mistakes: Mistakes) -> Node:
    """Return the expanded `tree` with the methods of its `adapter` and their options; what differs is a mistake."""
    node = tree.value.get("adapter")
    if node is None or not isinstance(node.value, str) or not node.value:
        return tree
    try:
        described = described_methods(files.expanded(node.value))
    except PeftkitError as error:
        mistakes.add(node.place, "adapter", str(error), final="method" not in tree.value)
        return tree
    keys = dict(tree.value)
    own = keys.get("method")
    given = own.value if own is not None else [Node({name: Node({}, node.place)}, node.place) for name, _ in described]
    if own is not None and [list(item.value) for item in given] != [[name] for name, _ in described]:
        found, there = (" + ".join(names) for names in ([n for item in given for n in item.value], dict(described)))
        fault = f"found {found}, and the adapter in {node.value} is {there}; leave 'method' out, or name that"
        mistakes.add(own.place, "method", fault)
        return tree
    _check_shared(tree, keys, described, node.value, mistakes)
    completed = []
    for item, (name, options) in zip(given, described, strict=True):
        named = item.value[name].value
        for key, value in named.items():
            _agrees(name, key, value, options, f"method.{name}.{key}", node.value, mistakes)
        rest = {key: value for key, value in options.items() if key not in named}
        whole = Node({**from_python(rest, node.place, mistakes).value, **named}, item.place)
        completed.append(Node({name: whole}, item.place))
    keys["method"] = Node(completed, node.place if own is None else own.place)
    return Node(keys, tree.place)


def _check_shared(tree: Node, keys: dict[str, Node], described: Described, folder: str, mistakes: Mistakes) -> None:
    """Check the keys of the recipe that options of methods are taken from."""
    storage = tree.value.get("quantization")
    sections = {"rank": tree.value, "quantization.init": storage.value if storage is not None else {}}
    for home, section in sections.items():
        option = home.rpartition(".")[2]
        value = section.get(option) if isinstance(section, dict) else None
        have = [(name, options) for name, options in described if option in options]
        if value is None or value.value is None or not have:
            continue
        for name, options in have:
            _agrees(name, option, value, options, home, folder, mistakes)
        if home == option:
            del keys[option]


def _agrees(
    name: str, key: str, value: Node, options: dict[str, Any], home: str, folder: str, mistakes: Mistakes
) -> None:
    """Note an option that the adapter has otherwise; an unknown or wrong one is told with the others."""
    if key not in options or key in FREE:
        return
    try:
        mine = methods()[name].from_options({key: value.plain()}).options()[key]
    except PeftkitError:
        return
    if mine != options[key]:
        fault = f"found {show(value.plain())}, and the adapter in {folder} has {show(options[key])}; leave it out"
        mistakes.add(value.place, home, fault)
