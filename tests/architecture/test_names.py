"""Names: generic code knows no entry by name, each entry has its own file, and a class or a flag earns its name."""

from __future__ import annotations

import ast
import inspect
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from sources import CORE, ROOT, registries, shown, tree

from peftkit.export import FORMATS
from peftkit.export.hf_peft.converter import CONVERTERS
from peftkit.loggers import LOGGERS
from peftkit.method import METHODS
from peftkit.methods.inits import INITS
from peftkit.metrics import METRICS
from peftkit.objectives import DEFAULT as OBJECTIVE
from peftkit.objectives import OBJECTIVES
from peftkit.optim import DEFAULT, OPTIMIZERS
from peftkit.ports.adapter import Adapter
from peftkit.pruning import PRUNERS
from peftkit.quantization.foreign import READERS
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.strategies import DEFAULT as STRATEGY
from peftkit.strategies import STRATEGIES
from peftkit.suites.suite import SUITES
from peftkit.tasks import TASKS

ORDINARY = {"text", "full"}
"""Names that are also everyday words or keys of a format; they are looked for in comparisons alone."""
OWN = {"methods", "tasks", "metrics", "export", "inits", "formats", "readers", "objectives", "pruning", "strategies"}
OWN |= {"loggers", "kinds"}
"""Folders whose files each belong to one name."""
REGISTRIES = (
    METHODS,
    TASKS,
    METRICS,
    FORMATS,
    INITS,
    OPTIMIZERS,
    QUANTIZERS,
    OBJECTIVES,
    PRUNERS,
    STRATEGIES,
    LOGGERS,
    SUITES,
)
NAMES = {name for registry in REGISTRIES for name in registry.names()} - {DEFAULT, OBJECTIVE, STRATEGY}
HOMES = {Path(inspect.getfile(entry)) for _, entry in OPTIMIZERS.items()}
"""Files of entries in a folder that holds generic code too."""
FILES = [
    path
    for path in sorted([*CORE.rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
    if not OWN & set(path.relative_to(ROOT).parts[:-1]) and path not in HOMES
]
OWN_FILES = [registry for registry in registries() if registry not in (READERS, CONVERTERS)]
"""Registries whose entries are defined where they are registered.

Readers of packed layers are values of one class, and so are converters of one shape of tensors for several methods.
"""
EXCEPTIONS: dict[str, str] = {}
"""Flags of one user, each with the reason."""


def named(parsed: ast.AST) -> Iterator[tuple[str, int]]:
    """Iterate over (name, line) of registered names that stand as literals; docstrings are prose."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Compare):
            values = [leaf for side in (node.left, *node.comparators) for leaf in ast.walk(side)]
            yield from _registered(values, NAMES - {"text"})
        elif isinstance(node, ast.MatchValue):
            yield from _registered([node.value], NAMES - {"text"})
        elif isinstance(node, ast.Constant):
            yield from _registered([node], NAMES - ORDINARY)


def _registered(nodes: Sequence[ast.AST], names: set[str]) -> Iterator[tuple[str, int]]:
    for node in nodes:
        if isinstance(node, ast.Constant) and node.value in names:
            yield str(node.value), node.lineno


def test_generic_code_names_nothing():
    literals = [f"{shown(path)}:{line} names {name!r}" for path in FILES for name, line in named(tree(path))]
    assert not literals, "\n".join(literals)


def test_the_scan_sees_a_branch_on_a_name():
    assert list(named(ast.parse("if method.name == 'lora':\n    pass")))
    assert list(named(ast.parse("x = {'e2e': 1}")))
    assert not list(named(ast.parse("x = 'text'")))


@pytest.mark.parametrize("registry", OWN_FILES, ids=lambda registry: registry.kind)
def test_each_entry_has_a_file_of_its_own(registry):
    homes: dict[str, str] = {}
    for name, entry in registry.items():
        module = getattr(entry, "compute", entry).__module__
        assert module.startswith(registry.package), f"{name} is registered in {module}"
        assert module not in homes, f"{name} and {homes.get(module)} share {module}"
        homes[module] = name


def repeated(trees: Iterable[tuple[str, ast.Module]]) -> dict[str, list[str]]:
    """Return the public classes that several files define, with the files."""
    homes: dict[str, list[str]] = defaultdict(list)
    for place, parsed in trees:
        for node in parsed.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(place)
    return {name: places for name, places in homes.items() if len(places) > 1}


def test_a_public_class_has_a_name_of_its_own():
    several = repeated((shown(path), tree(path)) for path in sorted(CORE.rglob("*.py")))
    assert not several


def test_a_planted_second_class_is_seen():
    first, second = ast.parse("class Batch: ...\nclass _Own: ..."), ast.parse("class Batch: ...\nclass _Own: ...")
    assert repeated([("a.py", first), ("b.py", second)]) == {"Batch": ["a.py", "b.py"]}


def flags(base: type) -> dict[str, object]:
    """Return the class-level values of a base class with their defaults; fields and what computes are none."""
    own = inspect.get_annotations(base)
    return {
        name: value
        for name, value in vars(base).items()
        if not name.startswith("_")
        and (name not in own or "ClassVar" in str(own[name]))
        and not callable(value)
        and not isinstance(value, property | classmethod | staticmethod)
        and not hasattr(value, "__get__")
    }


def unused_flags(base: type, users: Sequence[type]) -> list[str]:
    """Return the flags of a base that fewer than two of its users set to something else than the default."""
    return [
        f"{base.__name__}.{name}"
        for name, default in flags(base).items()
        if sum(getattr(user, name) != default for user in users) < 2
    ]


def below(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from below(sub)


def bases() -> dict[type, list[type]]:
    """Return each class of the core that all entries of a registry derive from, and adapters', with those entries."""
    users: dict[type, list[type]] = {}
    for registry in registries():
        entries = [entry if isinstance(entry, type) else type(entry) for _, entry in registry.items()]
        for base in entries[0].__mro__ if entries else ():
            if base.__module__.startswith("peftkit") and all(issubclass(entry, base) for entry in entries):
                users[base] = entries
    users[Adapter] = [cls for cls in below(Adapter) if cls.__module__.startswith("peftkit.methods")]
    return users


def test_a_flag_of_a_base_class_has_two_users():
    alone = {flag for base, users in bases().items() if len(users) > 1 for flag in unused_flags(base, users)}
    assert alone == EXCEPTIONS.keys()


def test_bases_are_those_of_the_kinds():
    assert {"Method", "Task", "Quantizer", "Template", "Adapter"} <= {base.__name__ for base in bases()}


def test_a_planted_flag_is_seen():
    @dataclass
    class Kind:
        mergeable: ClassVar[bool] = True
        rare: ClassVar[bool] = False
        rank: int = 8

        @property
        def computed(self) -> bool:
            return False

    one = type("One", (Kind,), {"mergeable": False, "rare": True})
    other = type("Other", (Kind,), {"mergeable": False, "rank": 2})
    assert unused_flags(Kind, [one, other]) == ["Kind.rare"]


def test_no_two_test_files_have_one_name():
    """Folders of tests are no packages, so that pytest imports files by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name, count in Counter(names).items() if count > 1] == []
