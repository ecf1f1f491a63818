"""Values that somebody's reader takes for something else, and texts and trees that are changed by them at random.

Each change takes a `random.Random`, which alone decides: a failing case is done again from its number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutations import cut, flip, inside, lengthen, make_folder, make_link, put_number

from peftkit import files

Change = Callable[[Path, random.Random], None]
"""Changes a file."""


def remove(path: Path, chance: random.Random) -> None:
    """Take the file away."""
    files.remove(path)


def encode_otherwise(path: Path, chance: random.Random) -> None:
    """Write a text in another encoding, or with marks and line ends that other programs write."""
    text = path.read_bytes().decode("utf-8", "replace")
    other = chance.choice(["utf-16", "utf-32", "utf-16-le", "latin-1", "cp1252", "marked", "twice", "returns", "old"])
    forms = {
        "marked": lambda: b"\xef\xbb\xbf" + text.encode(),
        "twice": lambda: b"\xef\xbb\xbf" * 2 + text.encode(),
        "returns": lambda: text.replace("\n", "\r\n").encode(),
        "old": lambda: text.replace("\n", "\r").encode(),
    }
    path.write_bytes(forms[other]() if other in forms else text.encode(other, "replace"))


def repeat(path: Path, chance: random.Random) -> None:
    """Write some of the lines twice."""
    lines = path.read_bytes().splitlines(keepends=True) or [b""]
    at = chance.randrange(len(lines))
    path.write_bytes(b"".join([*lines[: at + 1], *lines[at:]]))


BYTES: list[Change] = [*(flip, cut, lengthen, put_number, make_folder, make_link, remove, encode_otherwise, repeat)]
"""What is done to a file whatever it holds."""
ODD = [
    *("", " ", "\t", "\n", "a\0b", "\ud800", "\ufeff", "x\x85y", "x\u2028y\u2029z", "\u202emirrored", "ß" * 5000),
    *("e\u0301\u0302" * 40, "\x1b[31mred\x1b[0m", "a\rb", "👩‍👩‍👧‍👦", "<|im_end|>", "</s>", "{{ x }}", "%s%n"),
    *("~nouser/x", "../..", "/dev/null", "/dev/full", ".", "/", "null", "NaN", "1e-4", "0x10", "1:30", "2020-99-99"),
    *("yes", "=", "<<", "*a", "!!int", "a=b", "[bold]"),
]
"""Texts that some reader, writer, terminal or template takes for something else."""
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 1.5, -0.0, 0.1, 1e-320, 1e308, -1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 2**64),
    *(10**29, 10**31, 10**400, float("nan"), float("inf"), float("-inf")),
]
"""Numbers at the borders of what whole numbers and floats hold, and beyond."""


def value(chance: random.Random, depth: int = 0) -> Any:
    """Draw any value that JSON and YAML can write."""
    kinds = (
        ["number", "number", "text", "text", "plain", "list", "mapping"] if depth < 3 else ["number", "text", "plain"]
    )
    match chance.choice(kinds):
        case "number":
            return chance.choice(NUMBERS)
        case "text":
            return chance.choice(ODD)
        case "plain":
            return chance.choice([None, True, False])
        case "list":
            return [value(chance, depth + 1) for _ in range(chance.choice([0, 1, 1, 3]))]
        case _:
            return {
                chance.choice([*ODD, "id", "name"]): value(chance, depth + 1) for _ in range(chance.choice([0, 1, 2]))
            }


def spoil(tree: Any, chance: random.Random, draw: Callable[[random.Random], Any] = value) -> str:
    """Change one value of a tree in its place; returns what was done. `draw` makes what is put there."""
    found = list(inside(tree))
    if not found:
        return "nothing to change"
    holder, key = chance.choice(found)
    kinds = ["replace", "replace", "replace", "delete", "wrap", "nest", "text"]
    kind = chance.choice(
        [*kinds, "rename", "misspell", "add", "move"] if isinstance(holder, dict) else [*kinds, "repeat"]
    )
    there = holder[key]
    match kind:
        case "replace":
            holder[key] = draw(chance)
        case "delete":
            del holder[key]
        case "wrap":
            holder[key] = chance.choice([[there], {"x": there}, [there, there]])
        case "nest":
            for _ in range(chance.choice([3, 31, 40, 200])):
                there = [there]
            holder[key] = there
        case "text":
            holder[key] = str(there)
        case "rename":
            holder[chance.choice(ODD)] = holder.pop(key)
        case "misspell":
            name, at = str(key), chance.randrange(len(str(key)) + 1)
            holder[name[:at] + chance.choice("aeiou_. ") + name[at + 1 :]] = holder.pop(key)
        case "add":
            holder[chance.choice([*ODD, "extra", "rank", "role"])] = draw(chance)
        case "move":
            other, _ = chance.choice(found)
            if isinstance(other, dict):
                other[key] = json.loads(json.dumps(there))
        case "repeat":
            holder.append(there)
    return f"{kind} at {key!r}"
