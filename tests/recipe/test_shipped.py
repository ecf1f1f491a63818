"""Every recipe that ships: it loads, says what it is, and its resolved form reproduces it."""

from __future__ import annotations

import re

import pytest

from peftkit.recipe import load, shipped

NAMES = [name for name, _, _ in shipped()]


def test_the_catalogue_has_the_promised_recipes():
    promised = {"quickstart", "bundled/tiny", "custom/jsonl", "e2e/lora", "e2e/full"}
    assert promised | {"webnlg/lora", "gsm8k/lora", "coqa/lora"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads_and_reproduces(name, tmp_path):
    recipe = load(name)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(recipe.to_yaml())
    assert load(resolved) == recipe
    assert recipe.methods()


@pytest.mark.parametrize(("name", "path", "head"), shipped(), ids=NAMES)
def test_recipe_is_headed_by_what_it_is(name, path, head):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", comment[0])
    assert schema
    assert (path.parent / schema[1]).resolve().is_file()
    assert head
    assert head == comment[1].removeprefix("# ")
    for key in ("source: ", "expected: ", "memory: ", "time: "):
        assert any(key in line for line in comment), key


def test_names_find_recipes_wherever_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("e2e/lora") == load("recipes/e2e/lora.yaml") == load("recipes/e2e/lora")


def test_quickstart_needs_no_network():
    recipe = load("quickstart")
    assert recipe.model.name == "bundled/tiny"
    assert recipe.dataset.name == "bundled/e2e"
