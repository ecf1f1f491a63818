"""One of the files of a folder changed at random, by what it is: bytes, values of JSON, and headers of safetensors."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import odd_values

CASES = 500
PORTIONS = [range(start, start + 50) for start in range(0, CASES, 50)]
HELD = range(6)
"""The cases that `make test` holds; all of them belong to `make test-all`."""


def spoil_json(path: Path, chance: random.Random) -> str:
    """Change a value of a JSON file, or of one of the lines of a file of them."""
    lines = path.read_bytes().split(b"\n") if path.suffix == ".jsonl" else [path.read_bytes()]
    number = chance.choice([index for index, line in enumerate(lines) if line.strip()])
    tree = json.loads(lines[number])
    told = odd_values.spoil(tree, chance)
    lines[number] = json.dumps(tree).encode()
    path.write_bytes(b"\n".join(lines))
    return told


def spoil_header(path: Path, chance: random.Random) -> str:
    """Change a value of what a safetensors file says of its tensors, or the size of one, which the bytes then lack."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    if chance.random() < 0.5:
        told = odd_values.spoil(header, chance)
    else:
        name = chance.choice(sorted(set(header) - {"__metadata__"}))
        shape = header[name]["shape"]
        told = f"another shape of {name}"
        header[name]["shape"] = chance.choice([[*shape, 1], shape[::-1], [10**8, *shape], shape[:-1], [*shape[:-1], 0]])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return told


def mutate(path: Path, chance: random.Random) -> str:
    """Change a file; returns what was done."""
    if path.suffix in (".json", ".jsonl") and chance.random() < 0.7:
        return f"{path.name}: {spoil_json(path, chance)}"
    if path.suffix == ".safetensors" and chance.random() < 0.5:
        return f"{path.name}: {spoil_header(path, chance)}"
    change = chance.choice(odd_values.BYTES)
    change(path, chance)
    return f"{path.name}: {change.__name__}"


def mutate_one(folder: Path, chance: random.Random) -> str:
    """Change one of the files below a folder; returns what was done."""
    return mutate(chance.choice(sorted(item for item in folder.rglob("*") if item.is_file())), chance)
