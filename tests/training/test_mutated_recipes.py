"""Recipes changed at random, given to commands: they do what it says, or say where it is wrong."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import odd_values
import pytest
import yaml
from attempts import Ended, attempt, held
from draw import thorough
from plausible import SCHEMA, SECTIONS, WORDS, plausible
from small_runs import make_recipe

from peftkit import files, lock
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe, load, shipped
from peftkit.recipe.compose import KEYS
from peftkit.recipe.tree import Loader
from peftkit.training import session

CASES = 500
PORTIONS = [range(start, start + 25) for start in range(0, CASES, 25)]
HELD = range(10)
COMMANDS = ("validate", "estimate", "dry run", "train", "train", "train")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, few_validation_examples: None):
    monkeypatch.setattr(session.plot, "draw_loss", lambda path, *_: files.write_bytes(path, b"picture"))


@pytest.fixture(scope="module")
def recipes(source: Path) -> list[dict[str, Any]]:
    return make_all(source)


def make_all(source: Path) -> list[dict[str, Any]]:
    """Return recipes as people write them, those that ship among them, on a small model and small data."""
    small = make_recipe(source)
    reached = {"model": small["model"], "dataset": small["dataset"]}
    found = [yaml.load(path.read_text(), Loader) for _, path, _ in shipped()]
    small["train"] |= {"max_steps": 2}
    kinds = ["lora", "dora", "prefix-tuning", "ia3", ["lora", "prompt-tuning"], {"adalora": {"targets": ["linear"]}}]
    quantized = {
        "quantization": {"default": "nf4", "layers.0.*": "int8", "init": "loftq"},
        "method": {"lora": {"rank": 2}},
    }
    best = {"evaluate_every": 1, "keep_best": "validation_loss", "patience": 1}
    swept = {"rank": [1, 2], "train.learning_rate": [1e-3, 1e-2]}
    shapes = {"include": [], "sweep": {}, "compare": {}}
    return [
        *({**recipe, **reached, **shapes, **({"rank": 4} if "rank" in recipe else {})} for recipe in found),
        *({**small, "method": kind} for kind in kinds),
        {**small, **quantized},
        {**small, "method": "lora", "train": {**small["train"], **best}},
        {**small, "method": "lora", "train": {**small["train"], "strategy": {"mezo": {"epsilon": 1e-3}}}},
        {**small, "method": "lora", "sweep": swept},
    ]


def set_keys(recipe: dict[str, Any], chance: random.Random) -> str:
    """Give a few keys values that they may have."""
    told = []
    for _ in range(chance.choice([1, 1, 1, 2])):
        section = chance.choice([*SECTIONS, "train", "train", "dataset", "method"])
        if section == "method":
            recipe["method"] = plausible(SCHEMA["properties"]["method"], chance)
            told.append("method")
            continue
        key, facts = chance.choice(sorted(SECTIONS[section].get("properties", {}).items()))
        above = recipe if not section else recipe.setdefault(section, {})
        if isinstance(above, dict):
            above[key] = plausible(facts, chance)
            told.append(f"{section}.{key}".lstrip("."))
    return f"set {', '.join(told)}"


def any_value(chance: random.Random) -> Any:
    """Draw a value of any kind, a word of recipes among them."""
    return chance.choice(WORDS) if chance.random() < 0.3 else odd_values.value(chance)


def spoil(recipe: dict[str, Any], chance: random.Random) -> str:
    """Change the recipe's structure in a few places."""
    return ", ".join(odd_values.spoil(recipe, chance, any_value) for _ in range(chance.choice([1, 1, 2, 3])))


def written(recipe: dict[str, Any], chance: random.Random) -> str:
    """Write a recipe as YAML; what YAML cannot hold is escaped, as JSON does it."""
    if chance.random() < 0.3:
        return json.dumps(recipe)
    return yaml.safe_dump(
        recipe, sort_keys=False, allow_unicode=chance.random() < 0.5, default_flow_style=None, width=200
    )


def spoil_text(path: Path, chance: random.Random) -> str:
    """Change what is written, as an editor, another program or an attacker would."""
    text = path.read_text(encoding="utf-8", errors="surrogatepass")
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
    )
    line = chance.choice(
        [
            lines[at],
            f"{lines[at]} # {chance.choice(odd_values.ODD)!r}",
            "rank: 2",
            "<<: *x",
            "&x model: *x",
            "...",
            "---",
        ]
        + [
            "method: !!python/object/apply:os.system [true]",
            "rank: !!float 3",
            "- x",
            "\tx: 1",
            "? [a, b]\n: c",
            "%YAML 9.9",
        ]
        + [
            "train: {epochs: 1:30}",
            "rank: 2020-99-99",
            "rank: .nan",
            "rank: 0o7",
            "x: " + "[" * 3000,
            "x: '" + "y" * 300_000 + "'",
        ]
    )
    kind = chance.choice(["line", "line", "line", "bomb", "indent", "front", "cut"])
    if kind == "indent":
        lines[at] = " " * chance.choice([1, 2, 7]) + lines[at]
    elif kind != "bomb":
        lines.insert(0 if kind == "front" else at, line)
    changed = bomb + text if kind == "bomb" else "\n".join(lines[: at + 1] if kind == "cut" else lines)
    path.write_bytes(changed.encode("utf-8", "surrogatepass"))
    return f"{kind}: {line[:80]!r}"


def overrides(chance: random.Random) -> list[str]:
    """Draw a few settings for the command line."""
    if chance.random() < 0.85:
        return []
    keys = [f"{section}.{key}".lstrip(".") for section, names in KEYS.items() for key in names]
    keys += ["method.lora.rank", "method.0", "train.betas.0", "x.y", "sweep.rank", "model..name"]
    return [f"{chance.choice(keys)}={json.dumps(any_value(chance))}" for _ in range(chance.choice([1, 1, 2]))]


MUTATIONS: list[Callable[[dict[str, Any], random.Random], str]] = [set_keys, set_keys, spoil, spoil]


def make_case(recipes: list[dict[str, Any]], folder: Path, chance: random.Random) -> tuple[Path, list[str], str]:
    """Write a changed recipe; returns its path, the settings beside it, and what was changed."""
    recipe = copy.deepcopy(chance.choice(recipes))
    path = folder / "recipe.yaml"
    how = chance.choice(["structure"] * 6 + ["text", "bytes"])
    told = ""
    if how == "structure":
        told = chance.choice(MUTATIONS)(recipe, chance)
    path.write_bytes(written(recipe, chance).encode("utf-8", "surrogatepass"))
    if how == "text":
        told = spoil_text(path, chance)
    elif how == "bytes":
        change = chance.choice(odd_values.BYTES)
        change(path, chance)
        told = change.__name__
    return path, overrides(chance), told


def read(path: Path, given: list[str]) -> Recipe | None:
    """Load a recipe, or return None where it is refused."""
    try:
        return load(path, given)
    except PeftkitError:
        return None


def much(recipe: Recipe) -> bool:
    """Whether training it for two steps is asked to be more work than a test can wait for."""
    train, model = recipe.train, recipe.model.init or {}
    sizes = [value for value in model.values() if isinstance(value, int)]
    answers = (recipe.generation.max_new_tokens or 0, recipe.generation.num_beams, train.score_every and 64)
    return (
        train.accumulation > 8
        or train.compile
        or max(sizes, default=0) > 4096
        or recipe.model.name is not None
        or bool(train.score_every and max(map(int, filter(None, answers))) > 4)
    )


def names_place(ended: Ended, path: Path, given: list[str]) -> bool:
    """Whether a refusal says what it is about: the file, a key, a setting, or a path that stands in the recipe."""
    keys = {key for names in KEYS.values() for key in names} | set(WORDS)
    said = ended.err
    return path.name in said or "override" in said or any(re.search(rf"\b{re.escape(key)}\b", said) for key in keys)


def check(case: int, recipes: list[dict[str, Any]], place: Path) -> None:
    """Give one changed recipe to one command, in a folder of its own."""
    chance, work, outputs = random.Random(f"recipe {case}"), place / "work", place / "outputs"
    for folder in (work, outputs):
        folder.mkdir(parents=True)
    os.chdir(outputs)
    path, given, told = make_case(recipes, work, chance)
    about = f"case {case}: {told}, in {path}"
    before = held(work)
    recipe = read(path, given)
    command = chance.choice(COMMANDS)
    if recipe is not None and command == "train" and much(recipe):
        command = "dry run"
    run = outputs / "run"
    arguments = {
        "validate": ["validate", path, *given],
        "estimate": ["estimate", path, *given],
        "dry run": ["train", path, *given, "--dry-run", "--output", run],
        "train": ["train", path, *given, "train.max_steps=2", "train.epochs=null", "--output", run],
    }[command]
    ended = attempt(arguments, about)
    assert held(work) == before, f"{about}: what was given is changed"
    if ended.code == 2:
        assert names_place(ended, path, given), f"{about}: says not where\n{ended}"
    if command != "train":
        assert not list(outputs.iterdir()), f"{about}: {command} left something\n{ended}"
    elif ended.code == 0:
        assert list(outputs.rglob("summary.json")), f"{about}: no result\n{ended}"
    elif run.exists():
        left = [item for item in run.iterdir() if item.name != lock.NAME and item not in files.leftovers(run)]
        assert not left or list(run.rglob("recipe.yaml")), f"{about}: {left} is left\n{ended}"


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_a_changed_recipe(cases: range, recipes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for case in cases:
        check(case, recipes, tmp_path / str(case))
        os.chdir(tmp_path)
        shutil.rmtree(tmp_path / str(case))
