"""Who may import whom: the list of allowed pairs, which covers imports at the top, inside functions and for types."""

from __future__ import annotations

import ast
import graphlib
import re

import pytest
from sources import CODE, CORE, ROOT, arrows, imports, shown, tree

ALLOWED = {
    package: set(below.split())
    for package, below in {
        # What everything stands on.
        "errors": "",
        "keys": "errors",
        "resources": "",
        "versions": "__version__",
        "registry": "errors",
        "options": "errors registry",
        "strict_json": "",
        "posix": "",
        "machine": "posix",
        "files": "errors posix strict_json",
        "hub": "errors machine",
        "consent": "errors files",
        "plugins": "consent errors registry",
        "schemas": "errors files",
        "free_memory": "errors machine",
        "lock": "errors files posix",
        "visible": "",
        "tensor_file": "errors files",
        "plot": "files",
        "trained_prompts": "errors files tensor_file",
        # Tensors: kernels, packed weights, the places in a model, and what sits there.
        "kernels": "",
        "quantization": "errors kernels options registry schemas",
        "pruning": "errors options quantization registry",
        "families": "errors registry resources",
        "layout": "errors families quantization",
        "device": "errors layout machine",
        "ports": "errors kernels keys layout quantization",
        "layers": "errors kernels keys layout ports quantization",
        "hooks": "layout ports",
        "method": "errors hooks keys layout options ports registry",
        "methods": "errors hooks kernels keys layers layout method ports quantization registry trained_prompts",
        "adaptation": "__version__ errors files hooks keys layers free_memory layout method methods ports quantization "
        "schemas tensor_file",
        "budget": "adaptation errors layout method",
        # Text: data, metrics, and the tasks that are made of both.
        "metrics": "errors files registry schemas",
        "data": "errors files kernels keys machine registry schemas strict_json",
        "tasks": "data errors files keys metrics registry",
        # How gradients are computed, and how a step is made of them.
        "objectives": "data errors kernels layout metrics options registry",
        "engine": "adaptation data device errors kernels layout method objectives ports quantization",
        "optim": "errors quantization registry",
        "strategies": "adaptation data engine errors optim options registry",
        # What a recipe says, and the model that it makes.
        "loggers": "errors options registry",
        "recipe": "adaptation errors files loggers method objectives optim options plugins pruning quantization "
        "registry resources schemas strategies tasks",
        "models": "consent data errors families files free_memory hub layout pruning quantization recipe registry "
        "schemas tensor_file",
        "calibration": "data errors layout models objectives pruning recipe tasks",
        "assembly": "adaptation calibration data device errors families layout method models objectives "
        "quantization recipe",
        "conversion": "errors files recipe registry",
        "doctor": "device kernels versions",
        # Runs: what they take, what they answer, and the loop itself.
        "estimation": "adaptation data device engine errors layout machine models objectives optim plot "
        "quantization free_memory recipe strategies",
        "generation": "data errors files kernels keys ports schemas tasks",
        "evaluation": "adaptation assembly data device engine errors estimation files generation lock metrics recipe "
        "schemas tasks versions",
        "training": "adaptation assembly data device engine errors estimation evaluation files layout lock metrics "
        "loggers models objectives optim plot recipe schemas strategies tasks tensor_file versions",
        "plan": "adaptation assembly data estimation keys recipe tasks training",
        "suggestion": "errors plan recipe resources",
        "inspection": "adaptation assembly data engine errors estimation files keys layout method models objectives "
        "optim plugins ports quantization recipe tasks training",
        "profiling": "data engine errors estimation files kernels layout ports recipe training",
        "together": "adaptation assembly data device engine errors files lock method models objectives ports "
        "recipe strategies training",
        # What is made of runs.
        "suites": "assembly data device errors evaluation files recipe registry schemas tasks versions",
        "export": "__version__ adaptation assembly data errors families files free_memory layers layout method methods "
        "models ports quantization recipe registry schemas tasks tensor_file",
        "interchange": "adaptation assembly data errors export files hub layers layout method methods quantization "
        "recipe registry schemas tasks tensor_file",
        "report": "assembly errors evaluation files method metrics plot recipe resources suites tasks training visible",
        "comparison": "adaptation assembly budget errors evaluation files layout lock method models recipe report "
        "tasks tensor_file training",
        # The door for programs in Python.
        "api": "assembly comparison data errors evaluation generation interchange models recipe report suites tasks "
        "training",
        "__init__": "api",
    }.items()
}
"""The packages and single files of the core, from the bottom up, each with those that it may import."""
TRANSFORMERS = ("families", "models", "data/bounded.py", "ports/attention.py", "quantization", "generation", "export")
"""Where transformers is imported: places in the core."""


def pairs(allowed: dict[str, set[str]]) -> set[tuple[str, str]]:
    return {(package, target) for package, targets in allowed.items() for target in targets}


def test_every_import_is_on_the_list():
    unlisted = {pair: places for pair, places in arrows().items() if pair not in pairs(ALLOWED)}
    assert not unlisted


def test_no_pair_of_the_list_is_unused():
    unused = pairs(ALLOWED) - arrows().keys()
    assert not unused


def test_every_package_is_on_the_list():
    packages = {path.stem for path in CORE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert packages == ALLOWED.keys()


def ordered(allowed: dict[str, set[str]]) -> list[str]:
    """Return the packages from the bottom up; raises CycleError for a circle."""
    return list(graphlib.TopologicalSorter(allowed).static_order())


def test_the_page_of_the_architecture_names_every_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {word.removesuffix(".py") for word in re.findall(r"[a-z_]+", page.replace(".py", ""))}
    packages = ALLOWED.keys() - {"__init__"}
    assert packages <= named, packages - named


def test_the_list_has_no_circle_and_reads_from_the_bottom_up():
    ordered(ALLOWED)
    position = {package: number for number, package in enumerate(["__version__", *ALLOWED])}
    upwards = [(package, target) for package, target in pairs(ALLOWED) if position[target] > position[package]]
    assert not upwards


def test_a_planted_circle_is_seen():
    with pytest.raises(graphlib.CycleError):
        ordered({**ALLOWED, "errors": {"training"}})


def test_a_planted_import_of_any_kind_is_seen(tmp_path):
    kinds = {
        "top": "from peftkit.training import loop\n",
        "function": "def late():\n    import peftkit.training.loop\n",
        "types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from peftkit import training\n",
        "dynamic": "import importlib\nloop = importlib.import_module('peftkit.training.loop')\n",
    }
    for name, text in kinds.items():
        (tmp_path / name / "errors").mkdir(parents=True)
        (tmp_path / name / "errors" / "late.py").write_text(text)
        assert arrows(tmp_path / name) == {("errors", "training"): [f"late.py:{len(text.splitlines())}"]}, name
    assert ("errors", "training") not in pairs(ALLOWED)


def test_a_planted_unused_pair_is_seen():
    assert ("errors", "training") in pairs({"errors": {"training"}}) - arrows().keys()


def outside(path: object, place: str, modules: list[tuple[str, int]]) -> list[str]:
    """Return the imports of `modules` that no file at `place` may have."""
    faults = []
    for module, line in modules:
        first = module.split(".")[0]
        allowed = any(place == home or place.startswith(f"{home}/") for home in TRANSFORMERS)
        if (
            first in ("peft", "pickle", "dill", "peftkit_cli")
            or (first == "transformers" and not allowed)
            or (first in ("pages", "synthetic", "pack_model"))
        ):
            faults.append(f"{path}:{line}: imports {module}")
    return faults


def test_the_core_imports_transformers_in_its_places_and_neither_pickles_nor_the_command_line():
    faults = []
    for path in sorted(CORE.rglob("*.py")):
        faults += outside(shown(path), path.relative_to(CORE).as_posix(), list(imports(path)))
    assert not faults


def test_the_command_line_opens_models_through_the_core_alone():
    taken = {module.split(".")[0] for path in (ROOT / "cli").rglob("*.py") for module, _ in imports(path)}
    assert not taken & {"transformers", "peft", "pickle", "dill"}


@pytest.mark.parametrize("module", ["transformers", "transformers.utils", "peft", "pickle", "peftkit_cli", "pages"])
def test_a_planted_import_of_what_is_elsewhere_is_seen(module):
    assert outside("x.py", "data/encode.py", [(module, 3)]) == [f"x.py:3: imports {module}"]
    assert bool(outside("x.py", "ports/attention.py", [(module, 3)])) != module.startswith("transformers")


FORBIDDEN = ("torch.load", "torch.save", "yaml.load", "eval", "exec", "pickle.load", "pickle.loads")


def forbidden(parsed: ast.AST) -> list[int]:
    """Return the lines that call what reads or runs code from files."""
    return [
        node.lineno for node in ast.walk(parsed) if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN
    ]


def test_nothing_runs_code_from_a_file():
    shipped = [path for path in CODE if path.is_relative_to(ROOT / "core") or path.is_relative_to(ROOT / "cli")]
    lines = {shown(path): forbidden(tree(path)) for path in shipped}
    assert not {path: found for path, found in lines.items() if found}


@pytest.mark.parametrize("call", FORBIDDEN)
def test_a_planted_call_is_seen(call):
    assert forbidden(ast.parse(f"x = 1\ny = {call}(x)")) == [2]


def test_what_posix_alone_has_is_imported_in_one_file():
    posix = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt", "spwd"}
    found = set()
    for path in (path for path in CODE if "benchmarks" not in path.parts):
        nodes = list(ast.walk(tree(path)))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        if names & posix:
            found.add(path.name)
    assert found == {"posix.py"}
