"""Tasks of lm-eval on adapted models and their bases; tasks of our own, since there is no hub."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from random_runs import write_random_run

from peftkit import suites
from peftkit.adaptation import load_adapter
from peftkit.errors import PeftkitError
from peftkit.evaluation import prepare
from peftkit.models.load import load as load_model
from peftkit.recipe import load as load_recipe
from peftkit.report import report
from peftkit.report.document import Table
from peftkit.suites.kinds import lm_eval
from peftkit_cli.main import main

INSTALLED = all(importlib.util.find_spec(name) for name in lm_eval.PACKAGES)
with_harness = pytest.mark.skipif(not INSTALLED, reason="peftkit[lm-eval] is not installed")

DOCS = [
    {"question": "The Hidden Gate is near", "choices": [" the river", " a pub of some kind", " x"], "answer": 0},
    {"question": "Food that is cheap and", "choices": [" good", " bad in every way"], "answer": 1},
    {"question": "", "choices": [" The pub", " A restaurant that serves"], "answer": 0},
]
CHOICE = """task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: '{data}'}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
metadata: {{version: 2.0}}
"""
TEXT = """task: own_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: '{data}'}}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{max_gen_toks: 5, until: ["\\n\\n"]}}
metric_list:
  - {{metric: exact_match}}
"""
ROLLING = """task: own_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: '{data}'}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}{{{{choices[0]}}}}"
metric_list:
  - {{metric: word_perplexity}}
"""
GROUP = "group: own_group\ntask: [own_choice, own_text]\n"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with three tasks and a group of two of them, on three inputs of our own."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, text in (("choice", CHOICE), ("text", TEXT), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    (folder / "group.yaml").write_text(GROUP)
    (folder / "lost.yaml").write_text(CHOICE.format(data=folder / "gone.jsonl").replace("own_choice", "own_lost"))
    return folder


def write_run(folder: Path, method: str | dict, **keys) -> Path:
    """Write a run on the bundled model whose adapter has random weights."""
    recipe = load_recipe({"model": "bundled/tiny", "method": method, "dataset": "bundled/e2e", **keys})
    return write_random_run(folder, recipe, 0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("suites") / "run", "lora", eval={"batch_size": 2})


def requests(model, kind: str, arguments: list[tuple]) -> list:
    """Ask a model of lm-eval."""
    from lm_eval.api.instance import Instance

    asked = [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]
    return getattr(model, kind)(asked, disable_tqdm=True)


PAIRS = [("The Hidden Gate is near", " the river"), ("", "A pub"), ("x", " y z and more of it"), ("a b c", " d")]


def plain(loaded):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=3)


def adapted(loaded, soft=(), batch_size=3):
    from peftkit.suites.adapted import AdaptedLM

    return AdaptedLM(loaded.model, loaded.tokenizer, soft=soft, batch_size=batch_size, precision="fp32")


@with_harness
def test_the_base_answers_as_in_lm_eval_s_own_model():
    loaded = load_model(load_recipe({"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}).model)
    ours, theirs = adapted(loaded), plain(loaded)
    assert ours.max_length == theirs.max_length
    for kind, given in (
        ("loglikelihood", PAIRS),
        ("loglikelihood_rolling", [(a + b,) for a, b in PAIRS]),
        ("generate_until", [(a + b, {"max_gen_toks": 6, "until": ["\n"]}) for a, b in PAIRS]),
    ):
        assert requests(ours, kind, given) == requests(theirs, kind, given)


@with_harness
def test_the_adapted_model_answers_as_the_merged_one(run):
    recipe = load_recipe(run / "recipe.yaml")
    loaded = load_model(recipe.model)
    base = requests(adapted(loaded), "loglikelihood", PAIRS)
    adaptation = load_adapter(loaded.model, run / "adapter", loaded.fingerprint)
    found = requests(adapted(loaded), "loglikelihood", PAIRS)
    adaptation.merge_()
    merged = requests(plain(loaded), "loglikelihood", PAIRS)
    for (before, _), (ours, greedy), (theirs, theirs_greedy) in zip(base, found, merged, strict=True):
        assert abs(before - ours) > 1e-2
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert greedy == theirs_greedy


@with_harness
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "p-tuning"])
def test_soft_ids_stand_where_training_has_them(tmp_path, method):
    """Log-likelihoods and texts are those of the model on ids put together by hand, one text at a time."""
    run = write_run(tmp_path / "run", method)
    subject = prepare(load_recipe(run / "recipe.yaml"), run / "adapter")
    model, tokenizer, soft = subject.model, subject.tokenizer, list(subject.template.soft)
    assert bool(soft) == (method != "prefix-tuning")
    ours = adapted(subject, soft)
    assert ours.max_length == plain(subject).max_length - len(soft)
    assert plain(subject).tokenizer is tokenizer

    def ids(text: str) -> list[int]:
        encoded = tokenizer(text)["input_ids"] or [ours.prefix_token_id]
        first = int(encoded[0] == tokenizer.bos_token_id)
        return [*encoded[:first], *soft, *encoded[first:]]

    for (context, continuation), (value, _) in zip(PAIRS, requests(ours, "loglikelihood", PAIRS), strict=True):
        before = ids(context)
        after = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([before + after])).logits[0].detach().log_softmax(-1)
        places = range(len(before) - 1, len(before) + len(after) - 1)
        expected = sum(float(logits[place, token]) for place, token in zip(places, after, strict=True))
        assert value == pytest.approx(expected, abs=1e-3)
    contexts = [context for context, _ in PAIRS if context]
    options = {"max_gen_toks": 6, "until": ["\n"]}
    for context, text in zip(
        contexts, requests(ours, "generate_until", [(c, dict(options)) for c in contexts]), strict=True
    ):
        given = torch.tensor([ids(context)])
        mask = torch.ones_like(given)
        found = model.generate(given, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        expected = tokenizer.decode(found[0, given.shape[1] :], skip_special_tokens=True)
        assert text == expected.split("\n")[0].split(tokenizer.eos_token)[0]


@with_harness
def test_soft_ids_stand_behind_padding_and_a_first_bos():
    loaded = load_model(load_recipe({"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}).model)
    loaded.tokenizer.bos_token = loaded.tokenizer.eos_token
    ours, bos = adapted(loaded, soft=[900, 901]), loaded.tokenizer.bos_token_id
    ids = torch.tensor([[bos, bos, 7, 8], [bos, 5, 6, 7], [5, bos, 6, 7]])
    assert ours._widened(ids, torch.tensor([1, 0, 0])).tolist() == [
        [bos, bos, 900, 901, 7, 8],
        [bos, 900, 901, 5, 6, 7],
        [900, 901, 5, bos, 6, 7],
    ]
    with pytest.raises(PeftkitError, match="repetition_penalty"):
        ours._model_generate(ids, 9, ["."], attention_mask=torch.ones_like(ids), repetition_penalty=1.2)


@with_harness
def test_tied_weights_stay_as_they_are():
    loaded = load_model(load_recipe({"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}).model)
    head, table = loaded.model.get_output_embeddings(), loaded.model.get_input_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    adapted(loaded)
    assert head.weight is not table.weight
    assert "tie_weights" not in loaded.model.__dict__


@with_harness
def test_scores_are_written_printed_and_reported(run, tasks, capsys, tmp_path):
    asked = ["eval", str(run), "--suite", "lm-eval:own_choice,own_rolling", "--suite-path", str(tasks)]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert re.search(r"own_choice +acc +\d\.\d{4} ", told)
    assert "word_perplexity" in told
    assert main([*asked, "--base", "--json", "--limit", "2"]) == 0
    base = json.loads(capsys.readouterr().out)
    assert (base["adapter"], base["limit"], base["scores"][0]["inputs"]) == (None, 2, 2)
    written = json.loads((run / "eval" / "lm-eval-own_choice.json").read_text())
    metrics = {row["metric"]: row for row in written["scores"]}
    assert list(metrics) == ["acc", "acc_norm"]
    assert metrics["acc"]["value"] in [pytest.approx(n / 3) for n in range(4)]
    assert (metrics["acc"]["inputs"], metrics["acc"]["shots"], metrics["acc"]["version"]) == (3, 0, 2.0)
    assert written["adapter"][0]["name"] == "lora"
    assert {path.name for path in (run / "eval").iterdir()} == {
        f"lm-eval-own_{name}{ending}.json" for name in ("choice", "rolling") for ending in ("", "-base")
    }
    page = report([run], tmp_path / "report")
    table = next(block for block in page.blocks if isinstance(block, Table) and block.heads[0] == "task")
    assert list(table.heads) == ["task", "untrained bundled/tiny", "1"]
    name, untrained, adapted_score = table.rows[0]
    assert name == "own_choice, acc"
    assert untrained.startswith(f"{base['scores'][0]['value']:.4f}")
    assert untrained.endswith(" (of 2)")
    assert adapted_score.startswith(f"{metrics['acc']['value']:.4f} ± ")


@with_harness
def test_scores_are_lm_eval_s_own(run, tasks):
    """The same tasks through its whole program give the same figures."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = suites.evaluate(run, "lm-eval:own_group", folder=tasks, base=True)
    loaded = load_model(load_recipe(run / "recipe.yaml").model)
    index = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs = simple_evaluate(model=plain(loaded), tasks=["own_group"], task_manager=index, log_samples=False)
    assert {row["task"] for row in found["scores"]} == {"own_choice", "own_text"}
    for row in found["scores"]:
        assert row["value"] == theirs["results"][row["task"]][f"{row['metric']},{row['filter']}"]
        assert row["shots"] == theirs["n-shot"][row["task"]]


@with_harness
@pytest.mark.parametrize(
    ("suite", "folder", "message"),
    [
        ("lm-eval:own_lost", True, "task 'own_lost' could not be loaded .*gone.jsonl"),
        ("lm-eval:own_choice", "none", "there is no such folder"),
    ],
)
def test_tasks_that_cannot_be_run_are_told(run, tasks, suite, folder, message):
    with pytest.raises(PeftkitError, match=message):
        suites.evaluate(run, suite, folder=tasks if folder is True else tasks / folder)


@with_harness
def test_a_task_that_is_not_there_is_told_with_its_neighbours(run, tasks, monkeypatch):
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager
    # Its own thousands of tasks take a minute to read.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **keys: whole(**{**keys, "include_defaults": False}))
    with pytest.raises(PeftkitError, match=r"has no task 'own_choise'. Did you mean own_choice"):
        suites.evaluate(run, "lm-eval:own_choise", folder=tasks)


@with_harness
def test_answers_that_do_not_fit_into_the_context_are_told(run, tasks, tmp_path):
    text = (tasks / "text.yaml").read_text().replace("max_gen_toks: 5", "max_gen_toks: 100000")
    (tmp_path / "long.yaml").write_text(text)
    with pytest.raises(PeftkitError, match=r"could not run the task 'own_text'.*maximum sequence length"):
        suites.evaluate(run, "lm-eval:own_text", folder=tmp_path)


@pytest.mark.parametrize("suite", ["arc_easy", "lm-eval", "lm-eval:", "lm-eval: ,", "helm:x"])
def test_a_suite_is_named_as_it_should_be(suite):
    with pytest.raises(PeftkitError, match=r"lm-eval:NAME,NAME,… is wanted.*commonsense8"):
        suites.chosen(suite)


def test_a_list_stands_for_its_tasks_each_once():
    kind, names = suites.chosen("lm-eval:piqa, commonsense8,glue")
    assert kind == "lm-eval"
    assert names == [
        "piqa",
        *(name for name in lm_eval.LISTS["commonsense8"] if name != "piqa"),
        "glue",
    ]
    assert len(lm_eval.LISTS["commonsense8"]) == 8


def test_the_tasks_of_one_call_share_a_wrapped_model(run, monkeypatch):
    """What is asked of the harness, without it: each task once, on the model that was wrapped for the first."""
    made, asked = [], []
    monkeypatch.setattr(lm_eval, "check_installed", lambda: None)
    monkeypatch.setattr(lm_eval.harness, "version", lambda: "0")
    monkeypatch.setattr(lm_eval.harness, "load", lambda names, folder: {name: name.upper() for name in names})
    monkeypatch.setattr(lm_eval.harness, "wrap", lambda subject, size: made.append((subject, size)) or object())

    def score(model, name, task, limit):
        asked.append((model, name, task, limit))
        return [{"task": name, "metric": "acc", "filter": "none", "value": 0.5, "stderr": None}]

    monkeypatch.setattr(lm_eval.harness, "score", score)
    found = suites.evaluate(run, "lm-eval:a,b", limit=3)
    assert [size for _, size in made] == [2]
    assert [rest for _, *rest in asked] == [["a", "A", 3], ["b", "B", 3]]
    assert asked[0][0] is asked[1][0]
    assert (found["suite"], found["tasks"], found["versions"]["lm-eval"]) == ("lm-eval", ["a", "b"], "0")
    for name in "ab":
        (run / "eval" / f"lm-eval-{name}.json").unlink()


def test_a_missing_package_is_told_with_the_extra(monkeypatch, run, capsys):
    monkeypatch.setattr(lm_eval.importlib.util, "find_spec", lambda name: None)
    assert main(["eval", str(run), "--suite", "lm-eval:arc_easy"]) == 2
    assert "pip install 'peftkit[lm-eval]'" in capsys.readouterr().err


def test_options_that_do_not_go_together_are_told(run, capsys):
    assert main(["eval", str(run), "--suite", "lm-eval:arc_easy", "--split", "test"]) == 2
    assert "own split" in capsys.readouterr().err
    assert main(["eval", str(run), "--suite-path", "x"]) == 2
    assert "without --suite" in capsys.readouterr().err
