"""A command that was stopped after any single operation on files is given again, and ends as if it had not been."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from attempts import attempt, held
from draw import some, thorough
from small_data import FORMS, PAIRS, Form, write
from small_runs import make_recipe
from watching import watcher

COMMANDS: dict[str, list[str]] = {
    "merge": ["merge", "{run}", "--output", "{into}/x"],
    "merge dequantized": ["merge", "{packed}", "--into", "dequantized", "--output", "{into}/x"],
    "merge requantized": ["merge", "{packed}", "--requantize", "--bound", "9", "--output", "{into}/x"],
    "export": ["export", "{run}", "--format", "hf-peft", "--output", "{into}/x"],
    "export merged": ["export", "{run}", "--format", "merged", "--output", "{into}/x"],
    "export bits": ["export", "{run}", "--format", "bitdelta", "--output", "{into}/x"],
    "combine": ["combine", "{run}", "{run}", "--how", "concatenate", "--output", "{into}/x"],
    "quantize": ["quantize", "{merged}", "--format", "int8", "--output", "{into}/x"],
    "report": ["report", "{run}", "--output", "{into}/x"],
    "eval": ["eval", "{recipe}", "output={into}", "eval.batch_size=1"],
}
HELD = some("stopped commands", list(COMMANDS), 2)
STATES = 5
"""Of each command that `make test` holds."""
TIMES = ("wall_s", "tokens_per_second")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs, a merged model and a recipe with data to be scored: what the commands are given."""
    place = tmp_path_factory.mktemp("given")
    form = next(form for form in FORMS if form.records is PAIRS)
    write(
        Form(form.name, [*PAIRS, *({"prompt": f"{n}?", "completion": "No."} for n in range(9))], *forms_rest(form)),
        place,
    )
    recipe: dict[str, Any] = make_recipe(place / "source", "lora", max_steps=1)
    recipe |= {"dataset": {"name": form.name, "path": str(place)}, "generation": {"max_new_tokens": 2}}
    for name, storage in (("run", "none"), ("packed", "nf4")):
        (place / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"quantization": storage}))
        attempt(["train", place / "recipe.yaml", "--output", place / name], name)
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    attempt(["merge", place / "run", "--output", place / "merged"], "merged")
    attempt(["eval", place / "run"], "scored")
    return {name: place / name for name in ("run", "packed", "merged")} | {"recipe": place / "recipe.yaml"}


def forms_rest(form: Form) -> tuple[Any, ...]:
    """Return what a form has but its name and records."""
    return form.write, form.files, form.objective


def result(folder: Path) -> dict[str, Any]:
    """Return what is in a folder, without clocks."""
    found: dict[str, Any] = held(folder)
    for name in found:
        if name.endswith(".json"):
            content = json.loads((folder / name).read_text())
            found[name] = {key: value for key, value in content.items() if key not in TIMES}
    return found


@pytest.mark.parametrize("name", [name if name in HELD else thorough(name) for name in COMMANDS])
@pytest.mark.parametrize("every", [False, thorough(True)], ids=["drawn", "every"])
def test_from_every_state_a_command_ends(name: str, every: bool, given: dict[str, Path], tmp_path: Path):
    def arguments(into: Path) -> list[str]:
        return [part.format(into=into, **given) for part in COMMANDS[name]]

    before = {path: held(path.parent) for path in given.values()}
    (tmp_path / "whole").mkdir()
    with watcher().watching(tmp_path / "whole", tmp_path / "states") as states:
        ended = attempt(arguments(tmp_path / "whole"), name)
    assert ended.code == 0, ended
    assert len(states) > 2
    expected = result(tmp_path / "whole")
    drawn = range(len(states)) if every else some(f"states of {name}", range(len(states)), STATES)
    for state in (states[number] for number in drawn):
        partly = (state / "x").exists() and name != "eval"
        ended = attempt(arguments(state), f"{name} from {state}")
        if ended.code == 2:
            assert partly, ended
            assert "is not empty" in ended.err, ended
        assert result(state) == expected, state
        shutil.rmtree(state)
    assert {path: held(path.parent) for path in given.values()} == before
