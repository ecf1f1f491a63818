"""Bring the parts of a recipe together: short forms, included parts, and overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftkit import files, resources
from peftkit.recipe.mistakes import Mistakes, Place, suggest
from peftkit.recipe.section import Section
from peftkit.recipe.sections import Recipe
from peftkit.recipe.tree import Node, read_file, read_text
from peftkit.schemas import show

PARTS = 100
"""Included files at most, each counted as often as it is included."""

PART_KINDS = ("models", "methods", "datasets", "quantization", "hardware", "generation")
"""The folders of `configs/` that hold parts of recipes."""

METHOD_FORMS = "a method's name, {name: {option: value}}, or a list of those"
SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
KEYS: dict[str, list[str]] = {"": list(Recipe.model_fields)} | {
    name: list(section.model_fields) for name, section in SECTIONS.items()
}
"""The keys of the top (empty name) and of each section."""


def expand(tree: Node, mistakes: Mistakes) -> Node:
    """Write short forms out: text in a section's place, a method's name, one method instead of a list."""
    keys: dict[str, Node] = {}
    for key, node in tree.value.items():
        if node.value is None and (key in SECTIONS or key == "method"):
            continue
        short = SECTIONS[key].short if key in SECTIONS else None
        if short and isinstance(node.value, str):
            node = Node({short: node}, node.place)
        elif key == "include" and isinstance(node.value, str):
            node = Node([node], node.place)
        elif key == "method":
            node = expand_methods(node, mistakes)
        keys[key] = node
    return Node(keys, tree.place)


def expand_methods(node: Node, mistakes: Mistakes, home: str = "method") -> Node:
    """Return a list of one-key mappings {name: options}; mistakes are noted at the key `home`."""
    items = []
    for item in node.value if isinstance(node.value, list) else [node]:
        if isinstance(item.value, str):
            items.append(Node({item.value: Node({}, item.place)}, item.place))
            continue
        written = show(item.value)
        if isinstance(item.value, dict) and len(item.value) == 1:
            ((name, options),) = item.value.items()
            if options.value is None or isinstance(options.value, dict):
                items.append(Node({name: Node(options.value or {}, options.place)}, item.place))
                continue
            written = f"{show(options.value)} as the options of '{name}'"
        elif isinstance(item.value, dict):
            written = f"a mapping of {len(item.value)} keys"
        mistakes.add(item.place, home, f"found {written}; allowed: {METHOD_FORMS}")
    return Node(items, node.place)


def merge(under: Node, over: Node) -> Node:
    """Lay one expanded recipe over another.

    Mappings are merged key by key, anything else is replaced; a section that names another model, data set, format or
    other methods than the one below replaces it whole, so that no key of the one reaches the other.
    """
    merged = dict(under.value)
    for key, node in over.value.items():
        below = merged.get(key)
        if below is None:
            merged[key] = node
        elif key == "method":
            merged[key] = _merge_methods(below, node)
        else:
            short = SECTIONS[key].short if key in SECTIONS else None
            merged[key] = node if short and _renamed(below, node, short) else _merge_values(below, node)
    return Node(merged, over.place)


def _renamed(under: Node, over: Node, short: str) -> bool:
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)) or short not in over.value:
        return False
    return short not in under.value or under.value[short].plain() != over.value[short].plain()


def _merge_values(under: Node, over: Node) -> Node:
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = _merge_values(merged[key], node) if key in merged else node
    return Node(merged, over.place)


def _merge_methods(under: Node, over: Node) -> Node:
    if not (isinstance(under.value, list) and isinstance(over.value, list)):
        return over
    if [list(item.value) for item in under.value] != [list(item.value) for item in over.value]:
        return over
    return Node([_merge_values(*pair) for pair in zip(under.value, over.value, strict=True)], over.place)


def part_names() -> list[str]:
    """List the parts that a recipe can include by name, such as `hardware/laptop`."""
    folder = resources.folder("configs")
    return sorted(f"{kind}/{path.stem}" for kind in PART_KINDS for path in (folder / kind).glob("*.yaml"))


def include(tree: Node, folder: Path, mistakes: Mistakes) -> Node:
    """Lay `tree` over the parts that it includes, and these over theirs; file names are relative to `folder`."""
    return _include(expand(tree, mistakes), folder, mistakes, (), [0])


def _include(tree: Node, folder: Path, mistakes: Mistakes, above: tuple[Path, ...], count: list[int]) -> Node:
    keys = dict(tree.value)
    parts = keys.pop("include", Node(None, tree.place))
    own = Node(keys, tree.place)
    if parts.value is None:
        return own
    if not isinstance(parts.value, list) or not all(isinstance(part.value, str) for part in parts.value):
        forms = "a list of parts, such as [hardware/laptop]"
        mistakes.add(parts.place, "include", f"found {show(parts.plain())}; allowed: {forms}", final=True)
        return own
    below = Node({}, tree.place)
    for part in parts.value:
        path = _find(part, folder, mistakes)
        count[0] += 1
        if path is None:
            continue
        if path in above:
            chain = " → ".join(str(step) for step in (*above[above.index(path) :], path))
            mistakes.add(part.place, "include", f"found a circle: {chain}; take one of these out", final=True)
            continue
        if count[0] > PARTS:
            mistakes.add(part.place, "include", f"found more than {PARTS} parts; allowed: at most {PARTS}", final=True)
            break
        read = expand(read_file(path, mistakes), mistakes)
        below = merge(below, _include(read, path.parent, mistakes, (*above, path), count))
    return merge(below, own)


def _find(part: Node, folder: Path, mistakes: Mistakes) -> Path | None:
    name = part.value
    if Path(name).suffix in (".yaml", ".yml"):
        path = (folder / files.expanded(name)).resolve()
        if path.is_file():
            return path
        mistakes.add(part.place, "include", f"found '{name}', and there is no file {path}", final=True)
        return None
    if name in part_names():
        return (resources.folder("configs") / f"{name}.yaml").resolve()
    choices = suggest(name, part_names())
    fault = f"found '{name}', which is no part; {choices}; a file's name ends in .yaml"
    mistakes.add(part.place, "include", fault, final=True)
    return None


def override(tree: Node, texts: Sequence[str], mistakes: Mistakes) -> Node:
    """Set each `key=value` in the expanded `tree`, as the same edit in the file would; the value is YAML."""
    for text in texts:
        key, equals, written = text.partition("=")
        place = Place(f"override '{text if len(text) <= 80 else text[:77] + '...'}'")
        path = key.strip().split(".")
        if not equals or not all(path):
            mistakes.add(place, "", "allowed: key=value with a dotted key, such as train.epochs=2 or dataset.path=data")
            continue
        value = read_text(written, place, mistakes, key.strip())
        if value is not None:
            tree = expand(_set(tree, path, value, key.strip(), mistakes), mistakes)
    return tree


def _set(node: Node, path: list[str], value: Node, key: str, mistakes: Mistakes) -> Node:
    """Return `node` with `value` at `path`; missing mappings on the way are made."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    absent = Node(None, value.place)
    if node.value is None or isinstance(node.value, dict):
        keys = node.value or {}
        return Node({**keys, step: _set(keys.get(step, absent), rest, value, key, mistakes)}, node.place)
    if not isinstance(node.value, list):
        mistakes.add(value.place, key, f"found {show(node.value)} above '{step}'; allowed: a key that holds others")
        return node
    positions = [str(position) for position in range(len(node.value))]
    named = [i for i, item in enumerate(node.value) if isinstance(item.value, dict) and step in item.value]
    items = list(node.value)
    if step in positions:
        items[int(step)] = _set(items[int(step)], rest, value, key, mistakes)
    elif len(named) == 1:
        items[named[0]] = _set(items[named[0]], path, value, key, mistakes)
    else:
        names = [name for item in items if isinstance(item.value, dict) for name in item.value]
        fault = "stands there more than once" if named else "is not there"
        mistakes.add(value.place, key, f"'{step}' {fault}; {suggest(step, [*dict.fromkeys(names), *positions])}")
    return Node(items, node.place)
