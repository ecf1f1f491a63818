"""Sizes: a function fits a screen, a method is short, a file is one thing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from sources import CODE, ROOT, shown

FUNCTION, METHOD, FILE = 60, 150, 300
"""Lines at most."""
EXCEPTIONS: dict[str, str] = {}
"""Files that may be longer, each with the reason."""
FORBIDDEN = ("utils", "helpers", "common", "misc")


def too_long(place: str, text: str) -> list[str]:
    """Say what of a file is longer than allowed."""
    faults = []
    lines, limit = len(text.splitlines()), METHOD if place.startswith("core/peftkit/methods/") else FILE
    if lines > limit and place not in EXCEPTIONS:
        faults.append(f"{place}: {lines} lines, {limit} allowed")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION:
                faults.append(f"{place}: {node.name} has {length} lines, {FUNCTION} allowed")
    return faults


def badly_named(place: str, text: str) -> list[str]:
    """Say what of a file has no docstring, or a name that says nothing."""
    parsed = ast.parse(text)
    faults = [] if ast.get_docstring(parsed) or not parsed.body else [f"{place}: no module docstring"]
    faults += [f"{place}: the name says nothing"] if Path(place).stem in FORBIDDEN else []
    for node in parsed.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            faults += [] if ast.get_docstring(node) else [f"{place}: {node.name} has no docstring"]
            if node.name.startswith(("Base", "Abstract")) or node.name.endswith("Manager"):
                faults.append(f"{place}: {node.name}: the name says nothing")
    return faults


@pytest.mark.parametrize("check", [too_long, badly_named])
def test_every_file(check):
    faults = [fault for path in CODE for fault in check(shown(path), path.read_text(encoding="utf-8"))]
    assert not faults, "\n".join(faults)


def test_exceptions_are_needed():
    for place in EXCEPTIONS:
        assert len((ROOT / place).read_text(encoding="utf-8").splitlines()) > FILE, place


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("core/peftkit/data/x.py", "\n" * (FILE + 1)),
        ("core/peftkit/methods/x.py", "\n" * (METHOD + 1)),
        ("cli/peftkit_cli/x.py", "def f():\n" + "    pass\n" * FUNCTION),
    ],
)
def test_planted_lengths_are_seen(place, text):
    assert too_long(place, text)
    assert not too_long(place, text.removesuffix("    pass\n").removesuffix("\n"))


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("x.py", "x = 1"),
        ("utils.py", '"""X."""'),
        ("x.py", '"""X."""\ndef f(): ...'),
        ("x.py", '"""X."""\nclass BaseThing:\n    """X."""'),
        ("x.py", '"""X."""\nclass ThingManager:\n    """X."""'),
    ],
)
def test_planted_names_are_seen(place, text):
    assert badly_named(place, text)
    assert not badly_named("x.py", '"""X."""\ndef f():\n    """X."""\nclass Thing:\n    """X."""')
