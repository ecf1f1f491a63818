"""Data changed at random, given to commands: they read it, or say in which file and row it is wrong."""

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
from attempts import attempt, held
from draw import thorough
from mutations import inside
from small_data import FORMS, Form, write
from small_runs import make_recipe

from peftkit import files, lock
from peftkit.tasks import TASKS
from peftkit.training import session

CASES = 500
PORTIONS = [range(start, start + 25) for start in range(0, CASES, 25)]
HELD = range(len(FORMS))
COMMANDS = ("validate", "train", "train", "eval")
TEMPLATE = (
    "{% if tools %}<s>tools\n{{ tools | tojson }}</s>{% endif %}{% for message in messages %}<s>{{ message.role }}\n"
    "{{ message.content }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
PLACE = re.compile(r"\b(line|row|record|entry|byte|element) \d|\[\d+\]|:\d+")
"""Where in a file something stands."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, few_validation_examples: None):
    monkeypatch.setattr(session.plot, "draw_loss", lambda path, *_: files.write_bytes(path, b"picture"))


def make_all(source: Path) -> list[dict[str, Any]]:
    """Return a recipe of a model without a chat template, and one with it, both without data."""
    made = []
    for name in ("plain", "chat"):
        recipe = make_recipe(source / name, "lora", max_steps=2, batch_examples=2)
        recipe["train"]["max_length"] = 300
        recipe["generation"] = {"max_new_tokens": 3}
        recipe["eval"] = {"limit": 2, "batch_size": 2}
        made.append(recipe)
    settings = source / "chat" / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE}))
    return made


@pytest.fixture(scope="module")
def recipes(source: Path) -> list[dict[str, Any]]:
    return make_all(source / "data")


def spoil_records(form: Form, path: Path, chance: random.Random) -> str:
    """Change the structure of the records, or what one of them says."""
    records = copy.deepcopy(form.records)
    told = ", ".join(odd_values.spoil(records, chance) for _ in range(chance.choice([1, 1, 1, 2])))
    path.write_bytes(form.write(records))
    return told


def spoil_texts(form: Form, path: Path, chance: random.Random) -> str:
    """Put an odd text, a long one or a word that readers look for into a text of a record."""
    records = copy.deepcopy(form.records)
    texts = [(holder, key) for holder, key in inside(records) if isinstance(holder[key], str)]
    holder, key = chance.choice(texts)
    there = holder[key]
    at = chance.randrange(len(there) + 1)
    odd = chance.choice(
        [*odd_values.ODD, "y" * 10**6, "#### x", "Q: A:", " | ", "&x;", "]]>", "<!DOCTYPE x>", '"', "'", ",", "\\u12"]
    )
    holder[key] = there[:at] + odd + there[at:]
    path.write_bytes(form.write(records))
    return f"{odd[:20]!r} in the text at {key!r}"


def put_something(form: Form, path: Path, chance: random.Random) -> str:
    """Put in the place of the file what no record is."""
    odd = [
        "",
        "\n",
        "\n" * 1000,
        "[]",
        "{}",
        "null",
        "[1]",
        "[[]]",
        "{",
        "\0" * 100,
        "﻿",
        "x",
        "\r\n\r\n",
        "PAR1",
        "PAR1PAR1",
    ]
    content = chance.choice(odd)
    path.write_text(content, encoding="utf-8", newline="")
    return f"the file is {content[:10]!r}"


def spoil_bytes(form: Form, path: Path, chance: random.Random) -> str:
    """Change the bytes of the file, or what it is."""
    change = chance.choice(odd_values.BYTES)
    change(path, chance)
    return change.__name__


MUTATIONS: list[Callable[[Form, Path, random.Random], str]] = [spoil_records, spoil_records, spoil_texts, spoil_bytes]
MUTATIONS += [spoil_bytes, put_something]
INSIDE = (spoil_records, spoil_texts)
"""What is wrong then is wrong at a place within the file."""


def section(form: Form, folder: Path, chance: random.Random) -> dict[str, Any]:
    """Write the recipe's section of the data, at times with keys that change how they are read."""
    found: dict[str, Any] = {"name": form.name, "path": str(folder)}
    if form.name == "jsonl" and chance.random() < 0.3:
        found |= chance.choice(
            [
                {"ignore": ["id", "system"]},
                {"columns": {"completion": "answer"}},
                {"columns": {"prompt": "completion", "completion": "prompt"}},
                {"validation": chance.choice([0.3, 0.99])},
                {"system": "fold"},
                {"template": chance.choice(["plain", "chat"])},
                {"fraction": 0.01, "limit": 1},
            ]
        )
    return found


def check(case: int, recipes: list[dict[str, Any]], place: Path) -> None:
    """Give changed data to one command, in a folder of its own."""
    chance, work, outputs = random.Random(f"data {case}"), place / "work", place / "outputs"
    outputs.mkdir(parents=True)
    form = FORMS[case % len(FORMS)]
    paths = write(form, work / "data")
    recipe = {**copy.deepcopy(chance.choice(recipes)), "dataset": section(form, work / "data", chance)}
    recipe |= {"objective": form.objective} if form.objective else {}
    scored = TASKS[form.name].metrics and not form.objective
    command = chance.choice(COMMANDS if scored else COMMANDS[:-1])
    path = paths[-1] if command == "eval" else chance.choice(paths[:2])
    mutation = chance.choice(MUTATIONS)
    told = mutation(form, path, chance)
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    about = f"case {case}: {told}, in {path}"
    before, run = held(work), outputs / "run"
    os.chdir(outputs)
    arguments = {
        "validate": ["validate", work / "recipe.yaml"],
        "train": ["train", work / "recipe.yaml", "--output", run],
        "eval": ["eval", work / "recipe.yaml", f"output={run}"],
    }[command]
    ended = attempt(arguments, about)
    assert held(work) == before, f"{about}: what was given is changed"
    if ended.code == 2:
        said = ended.err.replace(str(work / "recipe.yaml"), "")
        key = "dataset." in said
        named = key or str(work / "data") in said or any(item.name in said for item in paths)
        assert named, f"{about}: names no file\n{ended}"
        whole = key or "cannot be read as Parquet" in said
        assert whole or mutation not in INSIDE or PLACE.search(said), f"{about}: names no place\n{ended}"
    if command == "train" and ended.code == 0:
        assert (run / "summary.json").exists(), f"{about}: no result\n{ended}"
    if command == "validate" or (command == "train" and ended.code == 2):
        left = list(outputs.iterdir())
        assert not left or (run / "recipe.yaml").exists(), f"{about}: {left} is left\n{ended}"
    if run.exists():
        halves = [item for item in run.rglob("*") if item in files.leftovers(item.parent) or item.name == lock.NAME]
        assert not halves, f"{about}: {halves} is left\n{ended}"


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_changed_data(cases: range, recipes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for case in cases:
        check(case, recipes, tmp_path / str(case))
        os.chdir(tmp_path)
        shutil.rmtree(tmp_path / str(case))


@pytest.mark.parametrize("number", range(len(FORMS)))
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_unchanged_data_are_read(number: int, chat: bool, recipes: list[dict[str, Any]], tmp_path: Path):
    """What the changes are made to is sound: each form with a template that can write it."""
    form = FORMS[number]
    write(form, tmp_path / "data")
    recipe = {**recipes[chat], "dataset": {"name": form.name, "path": str(tmp_path / "data")}}
    recipe |= {"objective": form.objective} if form.objective else {}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ended = attempt(["train", tmp_path / "recipe.yaml", "--output", tmp_path / "run"], form.name)
    tools = not chat and "tools" in json.dumps(form.records)
    assert ended.code == (2 if tools else 0), ended
