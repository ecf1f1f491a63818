"""Going on from a trained adapter: its methods, options and tensors are the start, and nothing else is taken."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_recipe
from test_session import Stops, records

from peftkit import recipe
from peftkit.adaptation import DESCRIPTION, TENSORS, digests
from peftkit.assembly import assemble, read_run
from peftkit.errors import PeftkitError
from peftkit.evaluation import answer
from peftkit.plan import plan
from peftkit.tensor_file import read_tensors, write_tensors
from peftkit.together import Job, train_together
from peftkit.training import Interrupted, train
from peftkit.training.preparation import prepare
from peftkit_cli.main import main

METHODS: dict[str, Any] = {
    "lora": {"lora": {"rank": 3, "alpha": 6.0, "targets": ["q", "down"]}},
    "full": "full",
    "adalora": {"adalora": {"rank": 2, "initial_rank": 3, "warmup": 0.2, "final": 0.4, "interval": 1}},
    "two of them": ["prompt-tuning", {"ia3": {}}],
    "prefix-tuning": {"prefix-tuning": {"length": 3, "projection": 8}},
    "fishmask": {"fishmask": {"density": 0.1}},
    "pissa": {"lora": {"rank": 2, "init": "pissa"}},
    "combination": "mam-adapter",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("going-on")


def keys(source: Path, method: Any, **train_keys: Any) -> dict[str, Any]:
    """A recipe whose losses say what the model computes: without dropout, each step on all examples."""
    made = make_recipe(source, method, **{"max_steps": 3, "batch_examples": 40, **train_keys})
    made["model"]["init"]["attention_dropout"] = 0.0
    return made


@pytest.fixture(scope="module")
def first(source: Path) -> Path:
    train(recipe.load(keys(source, METHODS["lora"])), source / "first")
    return source / "first"


def onward(source: Path, run: Path, **train_keys: Any) -> dict[str, Any]:
    made = {**keys(source, None, **train_keys), "adapter": str(run)}
    del made["method"]
    return made


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_first_loss_is_that_of_the_trained_adapter(source, tmp_path, method):
    train(recipe.load(keys(source, method)), tmp_path / "one")
    wanted = recipe.load(onward(source, tmp_path / "one"))
    prepared = prepare(wanted)
    batches = prepared.batches
    trained = assemble(read_run(tmp_path / "one"), tmp_path / "one" / "adapter")
    batch = batches.collate(batches.plan(0)[0], 0)
    ids, labels = batch.input_ids, batch.labels
    with torch.no_grad():
        logits = trained.model(input_ids=ids, attention_mask=batch.attention_mask).logits
    known = labels[:, 1:] != -100
    expected = torch.nn.functional.cross_entropy(logits[:, :-1][known].float(), labels[:, 1:][known]).item()
    state = prepared.adaptation.state()
    saved = read_tensors(tmp_path / "one" / "adapter" / TENSORS)
    assert state.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in state.items())
    train(wanted, tmp_path / "two")
    assert losses(tmp_path / "two")[0] == pytest.approx(expected, abs=2e-5)
    assert losses(tmp_path / "two")[-1] < losses(tmp_path / "two")[0]
    other = read_tensors(tmp_path / "two" / "adapter" / TENSORS)
    assert any(not torch.equal(tensor, saved[key]) for key, tensor in other.items() if key in saved)


def test_what_it_goes_on_from_is_recorded_and_not_needed_once_it_is_trained(source, first, tmp_path):
    old = Path(shutil.copytree(first, tmp_path / "old"))
    train(recipe.load(onward(source, old)), tmp_path / "new")
    description = json.loads((tmp_path / "new" / "adapter" / DESCRIPTION).read_text())
    assert description["went_on_from"]["folder"] == str(old)
    assert description["went_on_from"]["files"] == digests(first / "adapter")
    assert description["methods"] == json.loads((first / "adapter" / DESCRIPTION).read_text())["methods"]
    said = answer(tmp_path / "new", "red")
    shutil.rmtree(old)
    assert answer(tmp_path / "new", "red") == said
    assert main(["report", str(tmp_path / "new"), "--output", str(tmp_path / "report")]) == 0
    with pytest.raises(PeftkitError, match="adapter: "):
        recipe.load(tmp_path / "new" / "recipe.yaml")


def test_an_adapter_folder_and_equal_options_do_as_well(source, first):
    whole = recipe.load(onward(source, first))
    assert whole.method == recipe.load(keys(source, METHODS["lora"])).method
    for method in ("lora", METHODS["lora"], {"lora": {"alpha": 6}}):
        assert recipe.load({**onward(source, first / "adapter"), "method": method}).method == whole.method
    assert recipe.load({**onward(source, first), "rank": 3}).method == whole.method
    assert recipe.load(onward(source, first), ["method.lora.learning_rate=0.5"]).methods()[0].learning_rate == 0.5
    again = recipe.load(whole.resolved())
    assert again == whole


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "dora"}, r"method: found dora, and the adapter in .*first is lora"),
        ({"method": ["lora", "ia3"]}, r"method: found lora \+ ia3, and the adapter"),
        ({"method": {"lora": {"rank": 4}}}, r"method.lora.rank: found 4 .* has 3"),
        ({"method": {"lora": {"targets": ["q"]}}}, r"method.lora.targets: found a list"),
        ({"method": {"lora": {"rnak": 4}}}, r"method.lora.rnak: unknown key; .*did you mean 'rank'"),
        ({"rank": 8}, r"rank: found 8 .* has 3"),
        ({"adapter": "runs/nowhere"}, r"adapter: runs/nowhere is neither a run folder nor an adapter folder"),
        ({"adapter": 3}, r"adapter: "),
    ],
)
def test_what_differs_is_told_by_its_key(source, first, changes, words):
    with pytest.raises(PeftkitError, match=words):
        recipe.load({**onward(source, first), **changes})


@pytest.fixture
def changed(first: Path, tmp_path: Path) -> Iterator[Path]:
    return Path(shutil.copytree(first, tmp_path / "changed"))


@pytest.mark.parametrize("check", [plan, prepare], ids=["plan", "run"])
def test_an_adapter_of_another_base_objective_or_form_is_refused(source, changed, check):
    path = changed / "adapter" / DESCRIPTION
    original = json.loads(path.read_text())

    def refused(words: str, **new: Any) -> None:
        path.write_text(json.dumps({**original, **new}))
        with pytest.raises(PeftkitError, match=words):
            check(recipe.load(onward(source, changed)))

    if check is prepare:
        # A plan reads no weights that it could tell apart.
        refused("made for another base model", base={**original["base"], "fingerprint": "0" * 64})
    refused("built from the adapters: one", children={"one": {"files": {}}})
    refused("trained for the objective 'classification'", objective={"name": "classification", "options": {}})
    storage = {"format": "nf4", "options": {}, "modules": {}}
    refused("trained on weights stored as nf4", base={**original["base"], "quantization": storage})
    path.write_text(json.dumps(original))
    tensors = read_tensors(changed / "adapter" / TENSORS)
    key = next(iter(tensors))
    for damaged, words in (
        ({k: t for k, t in tensors.items() if k != key}, "lacks"),
        ({**tensors, key: tensors[key][:1]}, "shape"),
        ({**tensors, key: tensors[key] * float("nan")}, "NaN or infinity"),
    ):
        write_tensors(changed / "adapter" / TENSORS, damaged)
        with pytest.raises(PeftkitError, match=words):
            check(recipe.load(onward(source, changed)))


def test_a_plan_tells_it_and_counts_what_it_trains(source, first, tmp_path, capsys):
    planned = plan(recipe.load(onward(source, first)))
    assert planned.adapters == [f"goes on from the one in {first}"]
    assert planned.trainable == plan(recipe.load(keys(source, METHODS["lora"]))).trainable
    path = tmp_path / "onward.yaml"
    path.write_text(recipe.load(onward(source, first)).to_yaml())
    assert main(["validate", str(path)]) == 0
    assert f"goes on from the one in {first}" in capsys.readouterr().out
    assert main(["train", str(path), "--dry-run", "--output", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run").exists()
    assert main(["compare", str(path), "--methods", "lora", "--output", str(tmp_path / "compared")]) == 2
    assert "adapter=null" in capsys.readouterr().err


def test_a_run_that_is_stopped_goes_on_as_the_one_that_was_not_from_the_same_adapter_alone(source, changed, tmp_path):
    wanted = recipe.load(onward(source, changed, batch_examples=8, max_steps=6, save_every=1))
    train(wanted, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(wanted, tmp_path / "stopped", observer=Stops(3, signal.SIGTERM))
    path = changed / "adapter" / TENSORS
    content = path.read_bytes()
    tensors = read_tensors(path)
    write_tensors(path, {key: tensor + 1 for key, tensor in tensors.items()})
    with pytest.raises(PeftkitError, match="the adapter that it went on from changed since its checkpoint"):
        train(wanted, tmp_path / "stopped", resume=True)
    path.write_bytes(content)
    train(wanted, tmp_path / "stopped", resume=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    one, other = (read_tensors(tmp_path / name / "adapter" / TENSORS) for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    description = json.loads((tmp_path / "stopped" / "adapter" / DESCRIPTION).read_text())
    assert description["went_on_from"]["files"] == digests(changed / "adapter")


def test_it_goes_together_with_others(source, first, tmp_path):
    alone = recipe.load(onward(source, first, max_steps=2))
    train(alone, tmp_path / "alone")
    fresh = recipe.load(keys(source, METHODS["lora"], max_steps=2))
    places = {name: tmp_path / "together" / name for name in ("onward", "fresh")}
    train_together([Job("onward", alone, places["onward"]), Job("fresh", fresh, places["fresh"])])
    assert losses(tmp_path / "together" / "onward") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    assert losses(tmp_path / "together" / "fresh")[0] == pytest.approx(losses(first)[0], abs=1e-5)


@pytest.mark.parametrize("storage", ["nf4", {"format": "int4", "group_size": 8}, {"format": "nf2", "init": "loftq"}])
def test_it_stands_on_packed_weights(source, tmp_path, storage):
    made = {**keys(source, METHODS["lora"]), "quantization": storage}
    train(recipe.load(made), tmp_path / "one")
    wanted = recipe.load({**onward(source, tmp_path / "one"), "quantization": storage})
    prepared = prepare(wanted)
    saved = read_tensors(tmp_path / "one" / "adapter" / TENSORS)
    assert all(torch.equal(tensor, saved[key]) for key, tensor in prepared.adaptation.state().items())
    train(wanted, tmp_path / "two")
    assert losses(tmp_path / "two")[0] < losses(tmp_path / "one")[-1]
    with pytest.raises(PeftkitError, match="trained on weights stored as"):
        prepare(recipe.load(onward(source, tmp_path / "one")))


def test_a_classifier_goes_on_with_its_layer(source, tmp_path):
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps({"text": f"{w} {n}", "label": w}) + "\n" for n in range(8) for w in ("a", "b")))
    made = {**keys(source, "lora"), "objective": "classification", "dataset": {"name": "jsonl", "path": str(data)}}
    train(recipe.load(made), tmp_path / "one")
    wanted = recipe.load({**made, "adapter": str(tmp_path / "one")})
    saved = read_tensors(tmp_path / "one" / "adapter" / TENSORS)
    state = prepare(wanted).adaptation.state()
    assert any(key.startswith("objective/") for key in saved)
    assert state.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in state.items())
    turned = {**made, "adapter": str(tmp_path / "one"), "objective": {"classification": {"labels": ["b", "a"]}}}
    with pytest.raises(PeftkitError, match=r"trained for the objective 'classification'.*'labels'"):
        prepare(recipe.load(turned))
