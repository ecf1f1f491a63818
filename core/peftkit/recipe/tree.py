"""Read YAML, or a Python mapping, into a tree that remembers at which line each value stands."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.recipe.mistakes import Mistakes, Place
from peftkit.schemas import show

BYTES, NODES, DEPTH = 2**18, 20_000, 32
"""A recipe is a page of text: what is larger, or grows larger through aliases, is a mistake or an attack."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = (type(None), bool, int, float, str)
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+\Z")


class Loader(yaml.SafeLoader):
    """yaml.SafeLoader that also reads `1e-4` as a number, which YAML 1.1 takes for text, and refuses deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node, unless it stands too deep."""
        if self.depth > DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested too deeply (allowed: {DEPTH} levels)", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """yaml.SafeDumper that puts text which looks like `1e-4` in quotes, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out where it stands."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape what is not printable: PyYAML would take the line breaks of Unicode for its own."""
        style = None if data.replace("\n", "").isprintable() else '"'
        return self.represent_scalar(_TAG + "str", data, style=style)


Dumper.add_representer(str, Dumper.represent_str)
for _class in (Loader, Dumper):
    _class.add_implicit_resolver(_TAG + "float", _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Node:
    """A value with its place; `value` is a dict of nodes, a list of nodes, or a scalar."""

    value: Any
    place: Place

    def children(self) -> Iterator[tuple[str | int, Node]]:
        """Iterate over (key or index, node); a scalar has none."""
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)

    def plain(self) -> Any:
        """Return the value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def find(self, path: tuple[str | int, ...]) -> Node:
        """Return the node at `path`, or the deepest one on the way to it."""
        node = self
        for step in path:
            child = dict(node.children()).get(step)
            if child is None:
                break
            node = child
        return node


def read_file(path: Path, mistakes: Mistakes) -> Node:
    """Read a YAML file whose top is a mapping; what is wrong is added to `mistakes`, and an empty mapping returned."""
    place = Place(str(path), 1)
    try:
        with files.explained("read", path), path.open("rb") as file:
            content = file.read(BYTES + 1)
        text = content.decode("utf-8-sig")
    except PeftkitError as error:
        mistakes.add(Place(str(path)), "", str(error), final=True)
        return Node({}, place)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        fault = f"byte {error.start} is not UTF-8; save the file as UTF-8 text"
        mistakes.add(Place(str(path), line), "", fault, final=True)
        return Node({}, place)
    if len(content) > BYTES:
        mistakes.add(Place(str(path)), "", f"found more than {BYTES} bytes; is this file a recipe?", final=True)
        return Node({}, place)
    node = read_text(text, place, mistakes)
    if node is None:
        return Node({}, place)
    if not isinstance(node.value, dict):
        written = "an empty file" if node.value is None else show(node.value)
        fault = f"found {written}; allowed: a mapping of keys, such as 'model: bundled/tiny'"
        mistakes.add(node.place, "", fault, final=True)
        return Node({}, place)
    return node


def read_keys(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top is a mapping, as plain values; PeftkitError that tells every mistake."""
    mistakes = Mistakes()
    node = read_file(path, mistakes)
    mistakes.check()
    return node.plain()


def read_text(text: str, place: Place, mistakes: Mistakes, key: str = "") -> Node | None:
    """Read one YAML document (a file, or an override's value, which stands at `key`); None after a mistake."""
    loader = None
    try:
        loader = Loader(text)
        return _Reader(loader, place, mistakes).read(key)
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        mistakes.add(_lined(place, before.count("\n")), "", f"not a text: {error.reason}", final=True)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        parts = [part for part in (error.context, error.problem) if part]
        mistakes.add(_lined(place, mark.line if mark else 0), "", f"not valid YAML: {', '.join(parts)}", final=True)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML's scanner lets the failed conversion of an escape such as "\UFFFFFFFF" through.
        mistakes.add(place, "", f"not valid YAML: {error}", final=True)
    finally:
        if loader is not None:
            loader.dispose()
    return None


def from_python(value: Any, place: Place, mistakes: Mistakes, key: str = "", depth: int = 0) -> Node:
    """Turn plain Python values into a tree whose nodes all stand at `place`."""
    if depth > DEPTH:
        mistakes.add(place, key, f"nested too deeply; allowed: {DEPTH} levels")
        return Node(None, place)
    match value:
        case Mapping():
            below = {
                str(name): from_python(item, place, mistakes, f"{key}.{name}" if key else str(name), depth + 1)
                for name, item in value.items()
                if _sound(name, place, key, mistakes) is not None
            }
            return Node(below, place)
        case list() | tuple():
            items = enumerate(value)
            return Node([from_python(item, place, mistakes, f"{key}.{i}", depth + 1) for i, item in items], place)
        case PurePath():
            return Node(str(value), place)
        case None | bool() | int() | float() | str() if type(value) in _SCALARS:
            return Node(_sound(value, place, key, mistakes), place)
    mistakes.add(
        place, key, f"found a {type(value).__name__}; allowed: text, numbers, true, false, null, lists, mappings"
    )
    return Node(None, place)


def _lined(place: Place, offset: int) -> Place:
    return place._replace(line=place.line + offset) if place.line else place


def _sound(value: Any, place: Place, key: str, mistakes: Mistakes) -> Any:
    """Return a scalar that can be written out again: no NaN, infinity, endless digits, NUL or half characters."""
    if type(value) is int and abs(value) >= 10**30:
        mistakes.add(place, key, "found a whole number of more than 30 digits; allowed: at most 30")
        return None
    if isinstance(value, float) and not math.isfinite(value):
        mistakes.add(place, key, f"found {value}; allowed: a finite number")
        return None
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        mistakes.add(place, key, "found text with a NUL or half a character; allowed: text that UTF-8 can hold")
        return None
    return value


class _Reader:
    """One YAML document on its way from PyYAML's nodes to ours."""

    def __init__(self, loader: Loader, place: Place, mistakes: Mistakes):
        self.loader, self.place, self.mistakes = loader, place, mistakes
        self.count = 0

    def read(self, key: str) -> Node:
        root = self.loader.get_single_node()
        return Node(None, self.place) if root is None else self.convert(root, key, 0)

    def convert(self, node: yaml.Node, key: str, depth: int) -> Node:
        place = _lined(self.place, node.start_mark.line)
        self.count += 1
        if self.count > NODES or depth > DEPTH:
            # An alias inside the value that it names ends here too: it is nested without end.
            limit = f"{DEPTH} levels" if depth > DEPTH else f"{NODES} values, aliases written out"
            raise yaml.MarkedYAMLError(
                problem=f"too much in '{key[:60]}' (allowed: {limit})", problem_mark=node.start_mark
            )
        match node:
            case yaml.MappingNode(tag=tag) if tag == _TAG + "map":
                return Node(self.mapping(node, key, depth), place)
            case yaml.SequenceNode(tag=tag) if tag == _TAG + "seq":
                items = enumerate(node.value)
                return Node([self.convert(item, f"{key}.{i}", depth + 1) for i, item in items], place)
            case yaml.ScalarNode():
                return Node(_sound(self.scalar(node, key, place), place, key, self.mistakes), place)
        self.mistakes.add(place, key, f"found the tag {node.tag!r}; allowed: plain values without tags")
        return Node(None, place)

    def mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Node]:
        """Convert a mapping; keys are text as written, each at most once; `<<` brings the keys of other mappings."""
        own: dict[str, Node] = {}
        brought: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = _lined(self.place, key_node.start_mark.line)
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.add(place, key, "found a list or a mapping as a key; allowed: text")
                continue
            name = _sound(key_node.value, place, key, self.mistakes)
            if name is None:
                continue
            value = self.convert(value_node, f"{key}.{name}" if key else name, depth + 1)
            if key_node.tag == _TAG + "merge":
                for source in value.value if isinstance(value.value, list) else [value]:
                    brought = {**(source.value if isinstance(source.value, dict) else {}), **brought}
            elif name in own:
                path = f"{key}.{name}" if key else name
                self.mistakes.add(place, path, f"written twice, first at line {own[name].place.line}; keep one of them")
            else:
                own[name] = Node(value.value, place)
        return {**brought, **own}

    def scalar(self, node: yaml.ScalarNode, key: str, place: Place) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value", "merge"):
            return node.value
        if kind not in ("null", "bool", "int", "float"):
            self.mistakes.add(place, key, f"found the tag {node.tag!r}; allowed: plain values without tags")
            return None
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            self.mistakes.add(place, key, f"found {show(node.value)}, which is no valid number; put text in quotes")
            return None
