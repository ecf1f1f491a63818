"""The code as it is read by the tests of the architecture: files, what they import, and the registries they fill."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from peftkit.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "peftkit"
CODE = sorted(path for root in ("core", "cli", "benchmarks", "tools") for path in (ROOT / root).rglob("*.py"))


def shown(path: Path) -> str:
    """Return a file's place in the checkout."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


@cache
def tree(path: Path) -> ast.Module:
    """Return the parsed file; who reads it changes nothing."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Iterate over (module, line) of every import of a file: at its top, inside functions, and for types alone."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant):
                yield str(named.value), node.lineno


def package(module: str) -> str | None:
    """Return the package of the core, or its single file, that a module belongs to."""
    first, *rest = module.split(".")
    return rest[0] if first == "peftkit" and rest else None


def arrows(core: Path = CORE) -> dict[tuple[str, str], list[str]]:
    """Return each pair (package, package that it imports) with the places of the imports."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in sorted(core.rglob("*.py")):
        own = path.relative_to(core).parts[0].removesuffix(".py")
        for module, line in imports(path):
            target = package(module)
            if target is not None and target != own:
                places[own, target].append(f"{shown(path)}:{line}")
    return places


def registries() -> list[Registry]:
    """Return every registry that a module of the core makes at its top."""
    made = []
    for path in sorted(CORE.rglob("*.py")):
        for node in tree(path).body:
            if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.value).startswith("Registry("):
                parts = path.relative_to(CORE.parent).with_suffix("").parts
                module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
                made.append(getattr(module, ast.unparse(node.target)))
    return made
