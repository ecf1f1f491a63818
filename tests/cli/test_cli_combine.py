"""`peft combine`: what it writes is a run for the other commands, and every misuse is told."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from random_runs import write_random_run

from peftkit.adaptation import TENSORS
from peftkit.recipe import load
from peftkit.tensor_file import read_tensors

RECIPE = {"model": "bundled/tiny", "dataset": "bundled/e2e", "generation": {"max_new_tokens": 4}}


@pytest.fixture
def runs(tmp_path):
    """Two runs of different ranks, and one of a soft prompt."""
    methods = ({"lora": {"rank": 2}}, {"lora": {"rank": 3, "targets": "mlp"}}, {"prompt-tuning": {"length": 3}})
    recipes = [load({**RECIPE, "method": method}) for method in methods]
    return [write_random_run(tmp_path / f"run-{index}", recipe, 0.02) for index, recipe in enumerate(recipes)]


def test_the_result_is_a_run_for_the_other_commands(peft, runs, tmp_path):
    output = tmp_path / "both"
    done = peft("combine", runs[0], runs[1] / "adapter", "--how", "concatenate", "--weights", "2,-1", "-o", output)
    assert done.code == 0, done.err
    assert f"written to {output}" in done.out
    recipe = load(output / "recipe.yaml")
    (method,) = recipe.methods()
    assert (method.name, recipe.dataset.name) == ("lora", "bundled/e2e")
    origin = json.loads((output / "adapter" / "adapter.json").read_text())["combined"]
    assert origin["how"] == "concatenate"
    assert [(each["name"], each["weight"]) for each in origin["adapters"]] == [
        (str(runs[0]), 2.0),
        (str(runs[1] / "adapter"), -1.0),
    ]
    content = (runs[0] / "adapter" / TENSORS).read_bytes()
    assert origin["adapters"][0]["files"][TENSORS] == hashlib.sha256(content).hexdigest()
    assert peft("eval", output, "--limit", 2).code == 0
    assert peft("generate", output, "name[Blue Spice]").code == 0
    assert peft("merge", output, "--output", tmp_path / "merged").code == 0
    assert peft("export", output, "--format", "hf-peft", "--output", tmp_path / "exported").code == 0


def test_what_is_combined_can_be_combined(peft, runs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert peft("combine", runs[0], runs[1], "--how", "concatenate", "-o", first).code == 0
    done = peft("combine", first, first, "--how", "svd", "--rank", "3", "-o", second, "--json")
    report = json.loads(done.out)
    assert report["relative_error"] == pytest.approx(0, abs=1e-6)
    assert report["methods"] == ["lora"]


def test_prompts_are_averaged(peft, runs, tmp_path):
    done = peft("combine", runs[2], runs[2], "--how", "average", "-o", tmp_path / "mean", "--json")
    assert [each["weight"] for each in json.loads(done.out)["adapters"]] == [1.0, 1.0]
    before, after = (read_tensors(folder / "adapter" / TENSORS) for folder in (runs[2], tmp_path / "mean"))
    assert all(torch.allclose(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "1", "--how", "concatanate"], "'concatanate' is not a way to combine. Did you mean 'concatenate'?"),
        (["0", "--how", "svd"], "at least two are combined"),
        (["0", "1", "--how", "svd", "--weights", "1"], "--weights: found 1 for 2 runs"),
        (["0", "1", "--how", "svd", "--weights", "1,x"], "--weights: found '1,x'"),
        (["0", "1", "--how", "svd", "--weights", "1,inf"], "allowed: finite numbers"),
        (["0", "1", "--how", "linear", "--rank", "2"], "'linear' keeps all of them"),
        (["0", "1", "--how", "linear"], "lora: rank is 2 in"),
        (["0", "2", "--how", "svd"], "(prompt-tuning) does not add a low-rank pair"),
        (["0", "missing", "--how", "svd"], "is neither a run folder nor an adapter folder"),
    ],
)
def test_misuse_is_told_and_nothing_is_left(peft, runs, tmp_path, arguments, message):
    named = [runs[int(word)] if index < 2 and word.isdigit() else word for index, word in enumerate(arguments)]
    done = peft("combine", *named, "--output", tmp_path / "out")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_run_without_an_adapter_and_adapters_without_a_recipe_are_refused(peft, runs, tmp_path):
    runs[0].joinpath("adapter").rename(tmp_path / "alone")
    done = peft("combine", runs[0], runs[1], "--how", "svd", "--output", tmp_path / "out")
    assert (done.code, "has no adapter: its training has not ended" in done.err) == (2, True)
    done = peft("combine", tmp_path / "alone", tmp_path / "alone", "--how", "svd", "--output", tmp_path / "out")
    assert (done.code, "there is no recipe.yaml beside" in done.err) == (2, True)


def test_a_full_folder_is_left_alone(peft, runs):
    done = peft("combine", runs[0], runs[1], "--how", "svd", "--output", runs[2])
    assert (done.code, "exists and is not empty" in done.err) == (2, True)
    assert load(runs[2] / "recipe.yaml").method[0].name == "prompt-tuning"
