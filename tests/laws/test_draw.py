"""`make test` meets every method, trial, architecture, family and format somewhere, and all together are the cross."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest
import test_families
import test_quantized
from draw import concerns, some, turn
from subjects import COSTLY, SUBJECTS, drawn

from peftkit.method import METHODS
from peftkit.models.tiny import ARCHITECTURES
from peftkit.quantization.quantizer import QUANTIZERS


def laws() -> dict[str, int]:
    """Return the laws of every subject, and of how many methods each costly one holds one; 0 for the others."""
    found = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and {"name", "position"} <= {each.arg for each in node.args.args}:
                marks = [
                    re.fullmatch(r"pytest\.mark\.costly(?:\((\d+)\))?", ast.unparse(m)) for m in node.decorator_list
                ]
                found[node.name] = next((int(mark[1] or COSTLY) for mark in marks if mark), 0)
    return found


def test_every_plain_law_holds_every_method_and_the_laws_together_every_trial():
    met, costly_laws = defaultdict(int), defaultdict(int)
    assert len(laws()) >= 20
    for law, costly in laws().items():
        held = drawn(law, costly)
        names = {name for name, _, _ in held}
        if costly:
            assert len(names) >= len(METHODS.names()) / costly / 2
            for name in names:
                costly_laws[name] += 1
        else:
            assert names == set(METHODS.names())
        for subject in held:
            met[subject] += 1
            met[subject[:2]] += 1
    assert {subject[:2] for subject in SUBJECTS} <= set(met)
    assert len(set(SUBJECTS) - set(met)) <= len(SUBJECTS) / 50
    assert min(count for subject, count in met.items() if len(subject) == 2) >= 3
    assert set(costly_laws) == set(METHODS.names())


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
