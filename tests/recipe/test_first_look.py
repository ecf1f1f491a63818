"""Mistakes that need no torch are told before it is imported, in the words of the whole check."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from facts import facts

from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.recipe import load, shipped
from peftkit.recipe.describe import fits
from peftkit.recipe.first_look import first_look, methods

RIGHT = {"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}
WRONG = {
    "an unknown key": {**RIGHT, "rnak": 8},
    "a key of another section": {**RIGHT, "max_steps": 8},
    "an unknown key of a section": {**RIGHT, "train": {"max_stpes": 8}},
    "a wrong type": {**RIGHT, "rank": "eight"},
    "a wrong type in a section": {**RIGHT, "train": {"max_steps": "many"}},
    "a wrong choice": {**RIGHT, "train": {"schedule": "cosinus"}},
    "an unknown method": {**RIGHT, "method": "lorra"},
    "an unknown method of several": {**RIGHT, "method": ["lora", {"prompt-tunning": {}}]},
    "an unknown option": {**RIGHT, "method": {"lora": {"rnak": 3}}},
    "an option of a wrong type": {**RIGHT, "method": {"lora": {"rank": "three"}}},
    "an option out of bounds": {**RIGHT, "method": {"lora": {"rank": 0}}},
    "an option that is a list": {**RIGHT, "method": {"lora": {"targets": [3]}}},
    "nothing to train": {"model": "bundled/tiny", "dataset": "bundled/e2e"},
    "two mistakes": {**RIGHT, "rnak": 8, "train": {"max_steps": 0}},
}
CHILD = """
import json, sys
from peftkit.errors import PeftkitError
from peftkit.recipe import load
for recipe in json.load(sys.stdin):
    try:
        load(recipe)
    except PeftkitError as error:
        print(json.dumps([str(error), "torch" in sys.modules]))
"""

COMMAND = """
import sys
from peftkit_cli.main import main
code = main(sys.argv[1:])
sys.exit(90 if "torch" in sys.modules else code)
"""


def test_mistakes_are_told_without_torch_and_in_the_words_of_the_whole_check():
    command, given = [sys.executable, "-c", CHILD], json.dumps(list(WRONG.values()))
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(WRONG)
    for (label, recipe), (message, imported) in zip(WRONG.items(), told, strict=True):
        assert not imported, label
        with pytest.raises(PeftkitError) as raised:
            load(recipe)
        assert str(raised.value) == message, label


@pytest.mark.parametrize("name", METHODS.names())
def test_what_a_method_takes_is_not_refused(name):
    for options in ({}, *facts(name).trials):
        taken = METHODS[name].from_options(options).options()
        assert all(fits(methods()[name][key], value) for key, value in taken.items())


def test_shipped_recipes_have_no_mistakes(monkeypatch):
    seen = []

    def look(tree, mistakes):
        first_look(tree, mistakes)
        mistakes.check()
        seen.append(tree)

    monkeypatch.setattr("peftkit.recipe.loading.complete_start", lambda tree, mistakes: (look(tree, mistakes), tree)[1])
    names = [name for name, *_ in shipped()]
    for name in names:
        load(name, ["sweep={}"])
    assert len(seen) == len(names) > 5


@pytest.mark.parametrize("command", ["train", "validate", "estimate", "compare", "eval", "profile"])
def test_every_command_tells_a_mistake_without_torch(command: str, tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: bundled/tiny\nmethod: lorra\ndataset: bundled/e2e\n")
    done = subprocess.run([sys.executable, "-c", COMMAND, command, str(recipe)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{recipe}:2: method: found 'lorra', which is no method" in done.stderr
