"""Adding one file is enough: a toy method is held to every law, and one that breaks its word is caught."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAWS = ROOT / "tests" / "laws"
TOY = '''"""A toy: a trainable factor for each output of frozen linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class Toy(Targeted, name="toy"):
    """(1 + f) W x with f [out], zero at the start."""

    summary: ClassVar[str] = "Trains a factor for each output of frozen linear layers. It merges into them."
    paper: ClassVar[str] = "none"
    family: ClassVar[str] = "toy"

    targets: Targets = "linear"

    def build(self, site: Site) -> LinearAdapter:
        return Factors(site)


class Factors(LinearAdapter):
    """Factors f [out] of the outputs."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.f = nn.Parameter(torch.zeros(site.outputs))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y * (1 + self.f).to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factors = 1 + self.f
        return weight * factors[:, None], None if bias is None else bias * factors
'''


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    """Return a copy of the core without its large files, which are linked."""
    core = tmp_path_factory.mktemp("toy") / "core"
    heavy = shutil.ignore_patterns("__pycache__", "bundled")
    shutil.copytree(ROOT / "core", core, ignore=heavy)
    (core / "peftkit/models/bundled").symlink_to(ROOT / "core/peftkit/models/bundled")
    for name in ("configs", "recipes"):
        (core.parent / name).symlink_to(ROOT / name)
    return core


WRONG = {
    "toy_frozen": ("return y * (1 + self.f)", "return y * (1 + self.f.detach())"),
    "toy_merge": ("weight * factors[:, None]", "weight + factors[:, None]"),
    "toy_start": ("torch.zeros(site.outputs)", "torch.ones(site.outputs)"),
}
"""Methods that break their word: what is replaced in the toy."""


@pytest.fixture(scope="module")
def told(overlay) -> str:
    """Return what `make test` says of the toy in all laws, and of those that break their word in the laws of it.

    One process for all of them: to start one and to find its tests takes longer than to run them.
    """
    assert all(right in TOY for right, _ in WRONG.values())
    files = {name: TOY.replace('"toy"', f'"{name}"').replace(*change) for name, change in WRONG.items()}
    for name, text in {"toy": TOY, **files}.items():
        (overlay / f"peftkit/methods/{name}.py").write_text(text, encoding="utf-8")
    paths = f"pythonpath={overlay} {ROOT / 'cli'} {ROOT / 'tests'}"
    chosen = "toy- or toy_ and (start_is or declared or merged_equals)"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", paths, "-v", "--tb=line", str(LAWS)]
    done = subprocess.run(
        [*command, "-k", chosen, "-m", "not thorough"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(overlay), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_new_file_is_held_to_every_law(told):
    held_of = {
        (path, law): outcome
        for path, law, outcome in re.findall(r"(test_\w+\.py)::(\w+)\[toy-0-[\w-]+\] (PASSED|SKIPPED)", told)
    }
    every = {
        (path.name, name)
        for path in LAWS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(name, position, architecture", path.read_text(encoding="utf-8"), re.M)
    }
    assert len(every) >= 20
    assert set(held_of) == every, told[-3000:]
    skipped = {law for (_, law), outcome in held_of.items() if outcome == "SKIPPED"}
    assert skipped == {"test_a_rank_above_the_layer_is_refused", "test_parity_with_hugging_face_peft_both_ways"}


def test_a_new_file_that_breaks_its_word_is_caught(told):
    failed = set(re.findall(r"::\w+\[(\w+)-0-[\w-]+\] FAILED", told))
    assert failed == set(WRONG), told[-3000:]
