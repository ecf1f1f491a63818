"""A layer on the last token learns labels: from rows of a file to a run, its scores, its folder and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import make_recipe
from torch import nn

from peftkit import evaluation, recipe
from peftkit.adaptation import attach
from peftkit.assembly import assemble
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded
from peftkit.data.example import Example, Turn
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.passes import Plain
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.objectives.classification import Classification
from peftkit.plan import plan
from peftkit.training.preparation import digest
from peftkit.training.session import train

KINDS = {"cold": "snow frost ground", "hot": "sun fire lava"}
CPU = torch.device("cpu")


def write_rows(folder: Path, classes: dict[str, str] = KINDS, **splits: int) -> Path:
    """Write lines of a text and a label that a word of the text tells."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in {"train": 24, "validation": 9, **splits}.items():
        lines = []
        for number in range(count):
            label = sorted(classes)[number % len(classes)]
            word = classes[label].split()[number // 2 % 3]
            lines.append(json.dumps({"text": f"{'a ' * (number % 4)}{word}", "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def labelled(folder: Path, objective: Any = "classification", method: Any = "lora", **options: Any) -> dict[str, Any]:
    """Return a recipe of a small model that tells labels apart."""
    data = options.pop("data", None) or write_rows(folder / "labelled")
    given = make_recipe(folder, method, **{"max_steps": 30, "schedule": "constant", "warmup": 0.0, **options})
    return {**given, "objective": objective, "dataset": {"name": "jsonl", "path": str(data)}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small run once."""
    folder = tmp_path_factory.mktemp("classes")
    options = {"evaluate_every": 20, "keep_best": "accuracy", "learning_rate": 0.05, "max_steps": 60}
    train(recipe.load(labelled(folder, **options)), folder / "run")
    return folder / "run"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_learns_reports_and_keeps_its_best(finished: Path):
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[0]["trained_tokens"] == 4
    assert {"accuracy", "f1", "f1_macro", "matthews"} <= records[0].keys()
    measured = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in measured] == [20, 40, 60]
    best = read(finished / "summary.json")["best"]
    assert best["metric"] == "accuracy"
    assert best["value"] == max(record["scores"]["accuracy"] for record in measured) > 0.8


def test_the_adapter_names_its_objective_and_holds_its_layer(finished: Path):
    described = read(finished / "adapter" / "adapter.json")
    assert described["objective"] == {"name": "classification", "options": {"labels": ["cold", "hot"]}}
    subject = assemble(recipe.load(finished / "recipe.yaml"), finished / "adapter", headed=True)
    assert subject.objective == Classification(labels=("cold", "hot"))
    assert {"objective/weight", "objective/bias"} <= subject.adaptation.state().keys()
    base = sum(p.numel() for name, p in subject.module.named_parameters() if "seated" not in name)
    assert subject.adaptation.total == base + subject.adaptation.trainable


def test_evaluation_gives_the_scores_of_validation_and_each_probability(finished: Path):
    report = evaluation.evaluate(finished, split="validation")
    best = read(finished / "summary.json")
    assert report["scores"] == pytest.approx(best["scores"])
    assert report["loss"] == pytest.approx(best["losses"]["validation"], rel=1e-5)
    assert read(finished / "eval" / "jsonl-validation.json")["scores"] == report["scores"]
    lines = (finished / "eval" / "jsonl-validation.predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 9 == report["examples"]
    for one in records:
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert one["prediction"] == max(one["probabilities"], key=one["probabilities"].__getitem__)
    right = sum(one["label"] == one["prediction"] for one in records)
    assert report["scores"]["accuracy"] == right / 9


def test_what_needs_the_models_own_head_is_refused(finished: Path):
    with pytest.raises(PeftkitError, match=r"trained for the objective 'classification', by a layer .*exported"):
        assemble(recipe.load(finished / "recipe.yaml"), finished / "adapter")
    with pytest.raises(PeftkitError, match="only `peft eval` reads"):
        evaluation.answer(finished, "ice")
    with pytest.raises(PeftkitError, match="an untrained model has none"):
        evaluation.evaluate(finished, base=True)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path):
    whole = recipe.load(labelled(tmp_path, max_steps=6, save_every=3))
    train(whole, tmp_path / "whole")
    train(whole, tmp_path / "cut")
    for path in (tmp_path / "cut" / "summary.json", tmp_path / "cut" / "checkpoints" / "step-00000006"):
        path.rename(tmp_path / path.name)
    train(whole, tmp_path / "cut", resume=True)
    contents = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "cut")]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("arrangement", [Arrangement(), Arrangement(share=False), Arrangement(flat=False)], ids=str)
def test_the_loss_of_rows_together_is_that_of_each_alone(arrangement: Arrangement):
    """Value and gradients, of packed, shared and padded rows; one is the beginning of another, one a single token."""
    model: Any = tiny("llama").eval()
    objective = Classification(labels=("a", "b", "c"))
    adaptation = attach(model, [METHODS["lora"].from_options({})])
    module = objective.build(adaptation.layout)
    adaptation.modules["objective"] = module
    texts = [[*range(20, 32), 40], [*range(20, 32), 41, 42], list(range(20, 32)), [7]]
    rows = [Encoded(ids, [-100] * len(ids), number % 3) for number, ids in enumerate(texts)]
    plain = Plain(Engine(model, arrangement), objective, adaptation, CPU)
    batch = objective.collate(rows, 0)
    assert (batch.trained, batch.terms) == (4, [1, 1, 1, 1])
    result = plain.backward([batch], 1)
    gradients = [parameter.grad.clone() for _, parameter in adaptation.parameters() if parameter.grad is not None]
    assert len(gradients) == len(adaptation.parameters())
    model.zero_grad()
    module.zero_grad()
    model.eval()
    hidden = [model.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0, -1] for row in rows]
    logits = nn.functional.linear(torch.stack(hidden), module.weight, module.bias)
    loss = F.cross_entropy(logits, torch.tensor([row.label for row in rows]), reduction="sum")
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for gradient, (key, parameter) in zip(gradients, adaptation.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-3, msg=key)


def example(number: int, **meta: Any) -> Example:
    return Example(f"train.jsonl:{number}", (Turn("user", "ice"),), ("x",), meta)


def test_classes_are_those_of_the_training_split_in_order():
    objective = Classification().settle([example(at, label=label) for at, label in enumerate(["b", 10, 9, "a", 10])])
    assert objective.labels == (9, 10, "a", "b")
    assert Classification(labels=("x", "y")).settle([example(1, label="y")]).labels == ("x", "y")


@pytest.mark.parametrize("labels", [["a"], ["1", 1]])
def test_classes_that_cannot_be_told_apart_are_refused(labels: list[Any]):
    with pytest.raises(PeftkitError, match="at least two different ones"):
        Classification().settle([example(at, label=label) for at, label in enumerate(labels)])


def test_an_unknown_label_is_told_with_its_line(tmp_path: Path):
    data = write_rows(tmp_path / "labelled")
    with (data / "validation.jsonl").open("a") as file:
        file.write('{"text": "fog", "label": "grey"}\n')
    given = recipe.load(labelled(tmp_path, data=data, evaluate_every=1))
    with pytest.raises(PeftkitError, match=r"validation.jsonl:10: the label 'grey' is none .*'cold', 'hot'"):
        train(given, tmp_path / "run")


def test_rows_and_objective_that_do_not_go_together_are_refused(tmp_path: Path):
    with pytest.raises(PeftkitError, match=r"train.jsonl:1 has a label and no answer"):
        plan(recipe.load(labelled(tmp_path, "cross-entropy")))
    answers = tmp_path / "answers"
    answers.mkdir()
    (answers / "train.jsonl").write_text('{"prompt": "ice", "completion": "cold"}\n')
    with pytest.raises(PeftkitError, match=r"train.jsonl:1 has no label"):
        plan(recipe.load(labelled(tmp_path, data=answers)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_every": 1}, "score_every: the objective 'classification' generates no answers"),
        ({"keep_best": "accurracy", "evaluate_every": 1}, "found 'accurracy'; allowed: .*mean 'accuracy'"),
        ({"keep_best": "BLEU-4", "evaluate_every": 1}, "found 'BLEU-4'; allowed: validation_loss, accuracy, f1,"),
    ],
)
def test_a_score_that_is_never_measured_is_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(PeftkitError, match=message):
        plan(recipe.load(labelled(tmp_path, **options)))


def test_a_plan_counts_the_layer(tmp_path: Path):
    planned, other = plan(recipe.load(labelled(tmp_path))), plan(recipe.load(make_recipe(tmp_path, "lora")))
    assert planned.trainable - other.trainable == 2 * 16 + 2
    assert planned.memory.parts["activations"] > 0


def test_what_tells_data_apart_has_the_labels_where_there_are_some():
    bare, one, two = (Encoded([5, 6], [-100, -100], label) for label in (None, 0, 1))
    assert len({digest([row]) for row in (bare, one, two)}) == 3
    assert len(Batches([one, two], batch_examples=2, collate=Classification(labels=("a", "b")).collate)) == 2
