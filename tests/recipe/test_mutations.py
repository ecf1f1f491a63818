"""Spoilt recipes: whatever is done to a valid recipe, the outcome is a recipe or one clean error."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe, load, shipped
from peftkit.recipe.compose import KEYS
from peftkit.recipe.tree import Loader

TEXTS = [path.read_text() for _, path, _ in shipped()]
PATHS = [f"{section}.{key}".lstrip(".") for section, keys in KEYS.items() for key in keys]
ODD = st.sampled_from(
    ["", " ", "\0", "\ud800", "\ufeff", "\x85", "‮", "é", "null", "1e-4", "=", "<<", "*a", "&a", "!!int", "~", "\t"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=10**50)
    | st.sampled_from([10**400, -(10**29), 2**64, 0, -1])
    | st.floats()
    | ODD
    | st.text(max_size=12)
    | st.sampled_from(["lora", "full", "e2e", "none", "auto", "bundled/tiny", "linear", "hardware/laptop"])
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=6) | ODD, below, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """List the paths of all values below the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, below in items for place in ((*path, key), *places(below, (*path, key)))]


def spoil(keys: dict, draw) -> dict:
    """Delete, rename, misspell, replace, wrap or move one value."""
    paths = places(keys)
    if not paths:
        return keys
    path = draw(st.sampled_from(paths))
    holder = keys
    for step in path[:-1]:
        holder = holder[step]
    key, value = path[-1], holder[path[-1]]
    kind = draw(st.sampled_from(["delete", "rename", "misspell", "replace", "wrap", "nest", "move"]))
    if kind == "replace":
        holder[key] = draw(VALUES)
    elif kind == "wrap":
        holder[key] = [value]
    elif kind == "nest":
        for _ in range(draw(st.sampled_from([1, 3, 31, 40]))):
            value = {key: value} if isinstance(key, str) else [value]
        holder[key] = value
    elif kind == "move":
        keys[draw(st.sampled_from([path.split(".")[-1] for path in PATHS]))] = copy.deepcopy(value)
    else:
        del holder[key]
        if isinstance(holder, dict) and kind == "rename":
            holder[draw(st.text(max_size=8) | ODD)] = value
        elif isinstance(holder, dict) and kind == "misspell" and isinstance(key, str):
            position = draw(st.integers(0, len(key)))
            holder[key[:position] + draw(st.sampled_from("aeiou_.x")) + key[position + 1 :]] = value
    return keys


def garble(content: bytes, draw) -> bytes:
    """Cut, overwrite, insert, double or swap some bytes."""
    start = draw(st.integers(0, len(content)))
    length = draw(st.integers(0, 40))
    kind = draw(st.sampled_from(["truncate", "remove", "overwrite", "insert", "double", "indent"]))
    rest = content[start + length :]
    if kind == "truncate":
        return content[:start]
    if kind == "remove":
        return content[:start] + rest
    if kind == "double":
        return content[: start + length] + content[start:]
    if kind == "indent":
        return content[:start] + content[start:].replace(b"\n", b"\n" + b" " * (length % 5), 2)
    huge = [b"9" * 5000, b"0x" + b"f" * 5000, b"[" * 100]
    syntax = st.sampled_from(huge) | st.sampled_from(
        [b"[", b"{", b"&a ", b"*a", b"!!float ", b"|\n", b": ", b"- ", b"'", b'"\\x', b"%YAML 9.9\n---\n", b"<<: "]
    )
    added = draw(st.binary(max_size=12) | syntax)
    return content[:start] + added + (rest if kind == "overwrite" else content[start:])


@st.composite
def spoilt(draw) -> tuple[bytes, list[str]]:
    """A shipped recipe after a few mutations, and a few overrides."""
    text = draw(st.sampled_from(TEXTS))
    if draw(st.booleans()):
        keys = yaml.load(text, Loader)
        for _ in range(draw(st.integers(1, 4))):
            keys = spoil(keys, draw)
        content = dump(keys)
    else:
        content = text.encode()
        for _ in range(draw(st.integers(1, 3))):
            content = garble(content, draw)
    key = (
        st.sampled_from(PATHS)
        | st.sampled_from(["method.lora.alpha", "method.0", "train.betas.0"])
        | st.text(max_size=8)
    )
    value = VALUES.map(lambda value: dump(value).decode().strip()) | st.text(max_size=8) | ODD
    return content, draw(
        st.lists(st.builds(lambda key, value: f"{key}={value}", key, value) | st.text(max_size=8), max_size=2)
    )


def dump(value: Any) -> bytes:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mutations")


@settings(max_examples=350, deadline=None)
@given(case=spoilt())
def test_spoilt_recipe_is_a_recipe_or_a_clean_error(folder, case):
    content, overrides = case
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    outcome = attempt(path, overrides)
    if isinstance(outcome, Recipe):
        path.write_text(outcome.to_yaml())
        assert load(path) == outcome
        assert outcome.methods()
    else:
        assert outcome.strip()
        assert "Traceback" not in outcome


def attempt(source: Any, overrides: list[str]) -> Recipe | str:
    """Load, or return what the one allowed error says; any other exception fails the test."""
    try:
        return load(source, overrides)
    except PeftkitError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), text=st.sampled_from(TEXTS))
def test_spoilt_mapping_is_a_recipe_or_a_clean_error(folder, data, text):
    keys = yaml.load(text, Loader)
    for _ in range(data.draw(st.integers(1, 4))):
        keys = spoil(keys, data.draw)
    outcome = attempt(keys, [])
    if isinstance(outcome, Recipe):
        folder.joinpath("resolved.yaml").write_text(outcome.to_yaml())
        assert load(folder / "resolved.yaml") == outcome
    else:
        assert outcome.strip()
