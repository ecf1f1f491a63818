"""The commands as functions: light to import, the same recipes and results, models that transformers can use."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import peftkit
from peftkit import Observer, Recipe, TrainedRun, api, compare, evaluate, load, train
from peftkit.errors import PeftkitError
from peftkit.evaluation import answers
from peftkit.models.load import tokenizer_of

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "pydantic", "numpy", "yaml"}
GIVEN = {
    "model": "bundled/tiny",
    "method": "lora",
    "rank": 4,
    "dataset": {"name": "bundled/e2e", "limit": 32},
    "train": {"max_steps": 4, "batch_examples": 4, "learning_rate": 0.01},
    "generation": {"max_new_tokens": 12},
}
PROMPTS = ["name[The Mill], eatType[pub]", "name[Café Leie], food[Belgian], area[riverside]"]


class Steps(Observer):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.ended: dict[str, Any] | None = None

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def end(self, summary: dict[str, Any]) -> None:
        self.ended = summary


def test_importing_the_package_loads_nothing_of_it():
    script = (
        "import sys, peftkit; loaded = set(sys.modules); assert 'train' in dir(peftkit); "
        "from peftkit import train; assert train.__module__ == 'peftkit.api'; print(*loaded)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "core")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "peftkit" in loaded
    assert not loaded & HEAVY


def test_the_package_has_these_names_and_no_others():
    assert set(peftkit.__all__) == set(api.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        peftkit.trian  # type: ignore[attr-defined]  # noqa: B018


def test_every_function_is_typed_and_says_what_it_raises():
    for function in (train, evaluate, compare, load):
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
            assert parameter.name in (function.__doc__ or ""), f"{function.__name__}: {parameter.name}"
        assert "Raises PeftkitError" in (function.__doc__ or "")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[Recipe, Path]]:
    """Keep what `train` and `compare` pass on, and do nothing else."""
    kept: list[tuple[Recipe, Path]] = []
    monkeypatch.setattr(api, "train_recipe", lambda recipe, folder, **rest: kept.append((recipe, folder)))
    monkeypatch.setattr(api, "compare_recipe", lambda recipe, folder, watcher: kept.append((recipe, folder)))
    return kept


def test_a_recipe_is_the_same_in_every_form(asked, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GIVEN), encoding="utf-8")
    for source in (GIVEN, path, str(path), Recipe.load(GIVEN), Recipe.load(path)):
        train(source, tmp_path / "run")
    assert len(asked) == 5
    assert len({recipe.to_yaml() for recipe, _ in asked}) == 1
    train("quickstart")
    assert asked[-1] == (Recipe.load("quickstart"), Path("runs/quickstart"))


@pytest.mark.parametrize("form", [lambda given: given, Recipe.load])
def test_overrides_change_every_form(asked, form):
    train(form(GIVEN), "run", overrides=["dataset.limit=5", "train.max_steps=9"])
    recipe, folder = asked[0]
    assert (recipe.dataset.limit, recipe.train.max_steps, folder) == (5, 9, Path("run"))
    assert recipe.method[0].options["rank"] == 4


def test_a_comparison_takes_its_options_as_values(asked):
    compare(GIVEN, "side-by-side", methods=["lora", "lora+prompt-tuning"], budget=2e4, seeds=3)
    compare("quickstart", methods="all")
    (first, folder), (second, default) = asked
    assert [[choice.name for choice in entry] for entry in first.compare.methods] == [
        ["lora"],
        ["lora", "prompt-tuning"],
    ]
    assert (first.compare.budget, first.compare.seeds, folder) == (2e4, 3, Path("side-by-side"))
    assert len(second.compare.methods) > 50
    assert default == Path("runs/compare-quickstart")


def test_a_recipe_without_a_file_needs_a_folder(asked):
    with pytest.raises(PeftkitError, match="output is missing"):
        train(GIVEN)
    train({**GIVEN, "output": "somewhere"})
    assert asked[0][1] == Path("somewhere")


def test_mistakes_are_those_of_the_command(tmp_path):
    with pytest.raises(PeftkitError, match=r"rnak: unknown key.*did you mean 'rank'"):
        train({**GIVEN, "rnak": 3}, tmp_path / "run")
    with pytest.raises(PeftkitError, match="is not a run folder"):
        load(tmp_path)
    with pytest.raises(PeftkitError, match="suite_path is tasks without suite"):
        evaluate(GIVEN, suite_path="tasks")
    with pytest.raises(PeftkitError, match="split is 'test', and a task of a suite"):
        evaluate(GIVEN, suite="lm-eval:x", split="test")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, TrainedRun]:
    """A short run of each kind of method: merged, at attention, soft prompts beside LoRA, rows made of the prompt."""
    folder = tmp_path_factory.mktemp("runs")
    soft = {"prompt-tuning": {"length": 3, "init": "random"}}
    methods = {"lora": "lora", "prefix": "prefix-tuning", "soft": ["lora", soft], "late": "late-prompt-tuning"}
    given = {key: value for key, value in GIVEN.items() if key != "rank"}
    return {name: train({**given, "method": method}, folder / name) for name, method in methods.items()}


def test_an_observer_sees_every_step_and_the_run_comes_back_with_its_figures(tmp_path):
    steps = Steps()
    run = train(GIVEN, tmp_path / "run", observer=steps)
    assert [record["step"] for record in steps.records] == [1, 2, 3, 4]
    assert steps.ended is not None
    assert run.summary.as_dict() == steps.ended
    assert Path(run) == run.folder == tmp_path / "run"
    assert train(GIVEN, tmp_path / "run", resume=True).summary == run.summary


def test_an_error_of_an_observer_ends_the_run(tmp_path):
    class Wrong(Observer):
        def step(self, record: dict[str, Any]) -> None:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        train(GIVEN, tmp_path / "run", observer=Wrong())


def test_a_run_is_scored_by_its_folder_or_as_it_was_returned(runs):
    run = runs["lora"]
    reports = [evaluate(target, limit=2, split="validation") for target in (run, run.folder, str(run.folder))]
    assert reports[0]["examples"] == 2
    assert all(report["scores"] == reports[0]["scores"] for report in reports)
    untrained = evaluate(GIVEN, limit=2, split="validation")
    assert untrained["adapter"] is None
    assert evaluate(run, limit=2, split="validation", base=True)["scores"] == untrained["scores"]


@pytest.mark.parametrize("name", ["lora", "prefix", "soft", "late"])
def test_transformers_generates_what_the_run_answers(runs, name):
    ours = answers(runs[name].folder, PROMPTS, ["generation.stop=[]"])
    model, tokenizer = load(runs[name])
    inputs = tokenizer([f"{prompt}\n" for prompt in PROMPTS], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.generate(**inputs)
    assert torch.equal(output[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    new = output[:, inputs["input_ids"].shape[1] :]
    theirs = [text.partition("\n")[0].strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    assert theirs == ours
    assert new.shape[1] <= 12


def test_a_pipeline_answers_messages(runs):
    from transformers import pipeline

    model, tokenizer = load(runs["soft"])
    answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (said,) = answer([{"role": "user", "content": PROMPTS[0]}], max_new_tokens=12)
    text = said["generated_text"][-1]["content"]
    assert text.partition("\n")[0].strip() == answers(runs["soft"].folder, PROMPTS[:1])[0]


def test_the_base_of_a_run_is_the_model_without_the_adapter(runs):
    tokenizer = tokenizer_of(Recipe.load(GIVEN).model)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        adapted, bare = (load(runs["lora"], base=base)[0](input_ids=ids).logits for base in (False, True))
        other = load(runs["prefix"], base=True)[0](input_ids=ids).logits
    assert torch.equal(bare, other)
    assert not torch.allclose(adapted, bare)


def test_what_answers_without_text_is_refused(tmp_path):
    rows = "".join(f'{{"text": "{"ab"[n % 2] * 9}", "label": {n % 2}}}\n' for n in range(4))
    (tmp_path / "train.jsonl").write_text(rows, encoding="utf-8")
    dataset = {"name": "jsonl", "path": str(tmp_path / "train.jsonl")}
    run = train({**GIVEN, "dataset": dataset, "objective": "classification"}, tmp_path / "run")
    with pytest.raises(PeftkitError, match="classification"):
        load(run)
