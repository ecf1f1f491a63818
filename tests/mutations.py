"""Folders changed at random: what a disk, a person or an enemy may do to one file of them, by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftkit import files

CASES = 500
PORTIONS = [range(start, start + 50) for start in range(0, CASES, 50)]
HELD = range(10)
"""The cases that `make test` holds; all of them belong to `make test-all`."""
SECONDS = 20.0
"""How long a case may take."""
OTHERS = (None, True, 0, -1, 1.5, 10**30, 1e300, "", "x", "\ud800", [], {}, [None], {"x": 1}, [[[1]]], "~nouser/x")
"""What is put in the place of a JSON value."""


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 8])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def lengthen(path: Path, chance: random.Random) -> None:
    more = chance.choice([b"\0", b"\n", b"}", b"{", b'{"step": 6}\n', b"\xff" * 9, b"[" * 99_999, b"&a [*a, *a]\n"])
    place = chance.randrange(path.stat().st_size + 1)
    content = path.read_bytes()
    path.write_bytes(content[:place] + more + content[place:])


def put_number(path: Path, chance: random.Random) -> None:
    """Write another value in the place of one of the digits of a text."""
    content = path.read_bytes()
    places = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    place = chance.choice(places or [0])
    value = chance.choice([b"null", b"-1", b"9" * 40, b"NaN", b"1e999", b'"x"', b"[]", b"{}", b"true", b"0"])
    path.write_bytes(content[:place] + value + content[place + 1 :])


def take_away(path: Path, chance: random.Random) -> None:
    files.remove(chance.choice([path, path, path.parent]) if "checkpoints" in str(path) else path)


def make_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(chance.choice(["nowhere", path.name, "/dev/null", ".."]))


def swap(path: Path, chance: random.Random) -> None:
    other = chance.choice([item for item in path.parents[chance.randrange(2)].rglob("*") if item.is_file()])
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    *(flip, cut, lengthen, put_number, take_away, make_folder, make_link, swap)
]


def exchange(path: Path, chance: random.Random) -> None:
    """Put a value of another type in the place of a JSON value, of one line where the file has several; else flip."""
    change(path, chance, lambda owner, key: owner.__setitem__(key, chance.choice(OTHERS)))


def drop(path: Path, chance: random.Random) -> None:
    """Take a JSON value away, with its key; else flip."""
    change(path, chance, lambda owner, key: owner.__delitem__(key))


def deepen(path: Path, chance: random.Random) -> None:
    """Nest a JSON value deeply; else flip."""
    deep: list[Any] = []
    for _ in range(chance.choice([99, 300, 900])):
        deep = [deep]
    change(path, chance, lambda owner, key: owner.__setitem__(key, deep))


def change(path: Path, chance: random.Random, action: Callable[[Any, Any], None]) -> None:
    lines = path.read_bytes().split(b"\n")
    parts = lines if path.suffix == ".jsonl" else [b"\n".join(lines)]
    number = chance.randrange(len(parts))
    try:
        holder = [json.loads(parts[number])]
    except ValueError:
        flip(path, chance)
        return
    places = list(inside(holder))
    action(*chance.choice(places[1:] or places))
    parts[number] = json.dumps(holder[0] if holder else None).encode()
    path.write_bytes(b"\n".join(parts))


def inside(top: Any) -> Iterator[tuple[Any, Any]]:
    """Iterate over (container, key) of every value inside `top`."""
    pairs = top.items() if isinstance(top, dict) else enumerate(top) if isinstance(top, list) else ()
    for key, value in pairs:
        yield top, key
        yield from inside(value)


MUTATIONS: list[Callable[[Path, random.Random], None]] = [*DAMAGES, exchange, exchange, exchange, drop, deepen]
"""What a file of JSON may meet; `DAMAGES` are for files of any kind."""


def mutate(folder: Path, chance: random.Random, mutations: list[Callable[[Path, random.Random], None]]) -> str:
    """Change one of the files below `folder`; returns what was done, in words."""
    path = chance.choice(sorted(item for item in folder.rglob("*") if item.is_file() and item.stat().st_size))
    done = chance.choice(mutations)
    done(path, chance)
    return f"{done.__name__} of {path.relative_to(folder)}"


def content(folder: Path) -> dict[Path, bytes]:
    """Return what every file below `folder` holds."""
    return {item: item.read_bytes() for item in folder.rglob("*") if item.is_file()}
