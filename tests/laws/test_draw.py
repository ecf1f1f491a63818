"""`make test` meets every method, trial, architecture, family and format somewhere, and all together are the cross."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest
import test_families
import test_quantized
from draw import concerns, some, turn
from subjects import SUBJECTS, drawn

from peftkit.method import METHODS
from peftkit.models.tiny import ARCHITECTURES
from peftkit.quantization.quantizer import QUANTIZERS


def laws() -> dict[str, bool]:
    """Return the laws of every subject, and whether each is costly."""
    found = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and {"name", "position"} <= {each.arg for each in node.args.args}:
                found[node.name] = "pytest.mark.costly" in [ast.unparse(each) for each in node.decorator_list]
    return found


def test_every_law_holds_every_method_and_the_laws_together_every_subject():
    met = defaultdict(int)
    assert len(laws()) >= 20
    for law, costly in laws().items():
        held = drawn(law, costly)
        assert {name for name, _, _ in held} == set(METHODS.names())
        assert costly or {subject[:2] for subject in held} == {subject[:2] for subject in SUBJECTS}
        for subject in held:
            met[subject] += 1
    assert set(met) == set(SUBJECTS)
    assert min(met.values()) >= 3


def test_every_family_and_every_format_is_drawn():
    assert {family for _, family in test_families.HELD} == set(ARCHITECTURES)
    assert {name for _, name in test_quantized.HELD} == set(QUANTIZERS.names())


def test_a_draw_is_the_same_everywhere():
    assert turn("a case", 1000) == 150
    assert some("a case", ["lora", "ia3", "full"], 2) == some("a case", ["full", "lora", "ia3"], 2)


@pytest.mark.parametrize(
    ("parameters", "module", "mine"),
    [
        (["tied-lora", 0, "llama"], "test_start", True),
        (["lora", 0, "llama"], "test_start", False),
        ([("lora", "tied-lora")], "test_session", True),
        ([{"tied-lora": {"rank": 2}}], "test_session", True),
        (["core/peftkit/methods/tied_lora.py"], "test_sizes", True),
        ([Path("methods/tied_lora.py")], "test_sizes", True),
        ([], "test_tied_lora", True),
        ([], "test_lora", False),
    ],
)
def test_a_test_of_an_entry_is_known_by_its_parameters_or_its_file(parameters, module, mine):
    assert concerns(parameters, module, "tied-lora") == mine
