"""`peft check method`: methods that keep every promise, and ones that break one, each caught by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from draw import share

from peftkit import plugins
from peftkit.errors import PeftkitError
from peftkit.inspection import check_method, own_methods
from peftkit.inspection.promises import PROMISES
from peftkit.method import METHODS
from peftkit_cli.main import main

GOOD = """\
import random
from dataclasses import dataclass
import torch
from torch import Tensor, nn
from peftkit.layout import Site
from peftkit.method import Targeted
from peftkit.ports.adapter import Call
from peftkit.ports.linear import LinearAdapter


@dataclass(frozen=True, kw_only=True)
class Own(Targeted, name="own_scale"):
    start: float = 0.0

    def build(self, site: Site) -> LinearAdapter:
        return Scale(site, self.start)


class Scale(LinearAdapter):
    def __init__(self, site: Site, start: float):
        super().__init__(site)
        self.f = nn.Parameter(torch.full((site.outputs,), start))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(x) * (1 + self.f)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight * (1 + self.f[:, None]), None if bias is None else bias * (1 + self.f)
"""
FAULTS = {
    "changes what the model says": ("call(x) * (1 + self.f)", "call(x) + 0 * self.f"),
    "leaves the base as it was": (
        "        return call(x) * (1 + self.f)",
        "        self.site.module.weight.data.mul_(1.01)\n        return call(x) * (1 + self.f)",
    ),
    "is saved and loaded": (
        "        self.f = nn.Parameter(torch.full((site.outputs,), start))",
        "        self.f = nn.Parameter(torch.full((site.outputs,), start))\n        self.drawn = random.random()",
    ),
    "merges into the weights": ("weight * (1 + self.f[:, None])", "weight * (1 - self.f[:, None])"),
    "packed rows are each alone": ("call(x) * (1 + self.f)", "call(x) * (1 + self.f * x.shape[-2])"),
    "learns": ("(1 + self.f)\n\n", "(1 + self.f.detach() + 0 * self.f)\n\n"),
    "attaches": ("torch.full((site.outputs,), start)", "torch.full((0,), start)"),
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_STATE", str(tmp_path / "state"))

    def write(text: str) -> Path:
        (tmp_path / "own.py").write_text(text)
        return tmp_path / "own.py"

    yield write
    plugins.forget(tmp_path / "own.py")


def broken(file: Path) -> set[str]:
    (method,) = own_methods(str(file), {})
    return {finding.promise for finding in check_method(method) if finding.kept is False}


def test_a_right_method_keeps_all_and_a_start_elsewhere_is_none_of_them(write, capsys):
    file = write(GOOD)
    assert main(["check", "method", str(file)]) == 0
    said = capsys.readouterr().out
    assert "NO" not in said
    assert all(said.count(words) == 2 for words in PROMISES)
    (method,) = own_methods(str(file), {"start": 0.5})
    assert [each.kept for each in check_method(method) if each.promise.startswith("starts")] == [None, None]


@pytest.mark.parametrize("promise", [*PROMISES, "attaches"])
def test_each_promise_is_held(promise, write):
    if promise not in FAULTS:
        pytest.skip("a start elsewhere is allowed, and a packed base is refused by ports alone")
    right, wrong = FAULTS[promise]
    assert right in GOOD
    text = GOOD.replace(right, wrong)
    if promise == "is saved and loaded":
        text = text.replace("call(x) * (1 + self.f)", "call(x) * (1 + self.f) * self.drawn")
    assert promise in broken(write(text))


def test_a_broken_promise_ends_with_one(write, capsys):
    assert main(["check", "method", str(write(GOOD.replace(*FAULTS["merges into the weights"])))]) == 1
    assert "broken" in capsys.readouterr().out


def test_what_raises_is_told_and_the_rest_is_held(write):
    text = GOOD.replace(
        "        return weight * (1 + self.f[:, None])", "        raise KeyError('here')\n        return weight"
    )
    (method,) = own_methods(str(write(text)), {})
    found = [each for each in check_method(method) if each.kept is False]
    assert {each.promise for each in found} == {"merges into the weights"}
    assert "KeyError: 'here'" in found[0].told


@pytest.mark.parametrize("name", share("promises of methods", METHODS.names(), 12))
def test_methods_of_the_package_keep_them(name):
    try:
        found = list(check_method(METHODS[name]()))
    except PeftkitError:
        pytest.skip("it takes neither of the tiny models")
    assert [each for each in found if each.kept is False] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.py"], "nothing.py cannot be read"),
        (["lroa"], "Did you mean 'lora'"),
        (["lora", "rnak=2"], "Did you mean 'rank'"),
        (["lora", "rank"], "found 'rank'; allowed: KEY=VALUE"),
        (["lora", "rank=1000"], "rank"),
    ],
)
def test_what_is_wrong_in_the_command_is_told(words, said, capsys):
    assert main(["check", "method", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_file_without_a_method_is_told(write, capsys):
    assert main(["check", "method", str(write("x = 1\n"))]) == 2
    assert "registers no method" in capsys.readouterr().err
