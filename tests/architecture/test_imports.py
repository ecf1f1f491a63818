"""Who may import whom: the table of the architecture, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "core").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
LEVELS = [
    {"errors", "registry", "files", "tensor_file", "resources", "options", "versions", "plot", "__init__"},
    {"quantization"},
    {"kernels", "method", "layout", "ports", "layers", "methods"},
    {"adaptation", "data", "tasks", "metrics", "optim", "models"},
    {"objectives"},
    {"engine"},
    {"strategies"},
    {"recipe"},
    {"estimation", "generation"},
    {"evaluation", "suites", "export", "budget"},
    {"training"},
    {"profiling", "plan", "report"},
    {"comparison", "together"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
TRANSFORMERS = {"models", "generation", "export", "quantization/weight.py", "ports/attention.py"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Iterate over (module, line) of what a file imports to run; imports for types alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def part(module: str) -> str | None:
    """Return the part of the core that a module belongs to."""
    names = module.split(".")
    return names[1] if names[0] == "peftkit" and len(names) > 1 and names[1] in LEVEL else None


def core(path: Path) -> str:
    return path.relative_to(ROOT / "core" / "peftkit").as_posix()


CORE = [path for path in FILES if (ROOT / "core") in path.parents]


@pytest.mark.parametrize("path", CORE, ids=core)
def test_the_core_imports_downwards(path):
    own = core(path).split("/")[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no place in the table of the architecture"
    for module, line in imports(path):
        assert module.split(".")[0] != "peftkit_cli", f"{path}:{line}: the core imports the command line"
        target = part(module)
        if target is not None:
            assert LEVEL[target] <= LEVEL[own], f"{path}:{line}: {own} imports {target}, which is above it"


@pytest.mark.parametrize("path", CORE, ids=core)
def test_methods_import_methods_and_ports_alone(path):
    if not core(path).startswith("methods/"):
        pytest.skip("not a method")
    allowed = {"method", "methods", "layout", "ports", "layers", "kernels", "errors", "registry", "quantization"}
    for module, line in imports(path):
        assert part(module) in allowed | {None}, f"{path}:{line}: a method imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_imports_hugging_face_peft_or_loads_a_pickle(path):
    for module, line in imports(path):
        assert module.split(".")[0] not in ("peft", "pickle", "dill"), f"{path}:{line}: imports {module}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert called not in ("torch.load", "torch.save", "yaml.load", "eval", "exec"), (
            f"{path}:{node.lineno}: {called}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_transformers_is_imported_in_its_places_alone(path):
    place = path.relative_to(ROOT).as_posix().removeprefix("core/peftkit/")
    for module, line in imports(path):
        if module.split(".")[0] == "transformers":
            allowed = place in TRANSFORMERS or place.split("/")[0] in TRANSFORMERS
            assert allowed, f"{path}:{line}: imports {module}"


def test_the_walk_sees_what_it_should(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import peft\n"
        "def late():\n    from peftkit.training import loop\n"
    )
    found = [module for module, _ in imports(path)]
    assert "peftkit.training" in found
    assert "peft" not in found
