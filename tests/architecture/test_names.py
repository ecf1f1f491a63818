"""No generic file knows a method, format, task or metric by name: adding one touches its own file alone."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftkit.export import FORMATS
from peftkit.method import METHODS
from peftkit.methods.inits import INITS
from peftkit.metrics import METRICS
from peftkit.objectives import DEFAULT as OBJECTIVE
from peftkit.objectives import OBJECTIVES
from peftkit.optim import DEFAULT, OPTIMIZERS
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.strategies import DEFAULT as STRATEGY
from peftkit.strategies import STRATEGIES
from peftkit.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "peftkit"
ORDINARY = {"text", "full"}
"""Names that are also everyday words or keys of a format; they are looked for in comparisons alone."""
OWN = {"methods", "tasks", "metrics", "export", "inits", "formats", "objectives", "strategies"}
"""Folders whose files each belong to one name."""
REGISTRIES = (METHODS, TASKS, METRICS, FORMATS, INITS, OPTIMIZERS, QUANTIZERS, OBJECTIVES, STRATEGIES)
NAMES = {name for registry in REGISTRIES for name in registry.names()} - {DEFAULT, OBJECTIVE, STRATEGY}
HOMES = {Path(inspect.getfile(entry)) for _, entry in OPTIMIZERS.items()}
"""Files of entries in a folder that holds generic code too."""
FILES = [
    path
    for path in sorted([*CORE.rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
    if not OWN & set(path.relative_to(ROOT).parts[:-1]) and path not in HOMES
]


def named(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Iterate over (name, line) of registered names that stand as literals; docstrings are prose."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            values = [leaf for side in (node.left, *node.comparators) for leaf in ast.walk(side)]
            yield from _registered(values, NAMES - {"text"})
        elif isinstance(node, ast.MatchValue):
            yield from _registered([node.value], NAMES - {"text"})
        elif isinstance(node, ast.Constant):
            yield from _registered([node], NAMES - ORDINARY)


def _registered(nodes: list[ast.AST], names: set[str]) -> Iterator[tuple[str, int]]:
    for node in nodes:
        if isinstance(node, ast.Constant) and node.value in names:
            yield str(node.value), node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_generic_code_names_nothing(path):
    found = list(named(ast.parse(path.read_text(encoding="utf-8"))))
    assert not found, f"{path} names {found[0][0]!r} in line {found[0][1]}"


def test_the_scan_sees_a_branch_on_a_name():
    assert list(named(ast.parse("if method.name == 'lora':\n    pass")))
    assert list(named(ast.parse("x = {'e2e': 1}")))
    assert not list(named(ast.parse("x = 'text'")))


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_each_entry_has_a_file_of_its_own(registry):
    homes: dict[str, str] = {}
    for name, entry in registry.items():
        module = getattr(entry, "compute", entry).__module__
        assert module.startswith(registry.package), f"{name} is registered in {module}"
        assert module not in homes, f"{name} and {homes.get(module)} share {module}"
        homes[module] = name
