"""Files that are read back: one that is not what it should be is refused with its file, its key and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from model_folders import section, write_model

from peftkit import schemas
from peftkit.adaptation import attach, describe_adapter, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.evaluation.stored import read_answers, read_report
from peftkit.generation.journal import Journal
from peftkit.method import build_methods
from peftkit.models import packed_cache
from peftkit.models.load import load
from peftkit.models.tiny import tiny
from peftkit.schemas import Stored
from peftkit.tasks import TASKS
from peftkit.training import log, summary


class Inner(Stored):
    kind: Literal["good", "bad"] = "good"
    names: list[str] = []


class Outer(Stored):
    count: schemas.Count
    inner: Inner | None = None


@dataclass
class Fields:
    size: int
    share: float | None = None


@pytest.mark.parametrize(
    ("schema", "value", "told"),
    [
        (Outer, [], "found an empty list; allowed: an object"),
        (Outer, {}, "count is missing"),
        (Outer, {"count": "3"}, "count: found '3' (text); allowed: a whole number"),
        (Outer, {"count": True}, "count: found true; allowed: a whole number"),
        (Outer, {"count": -1}, "count: found -1 (a whole number); allowed: greater than or equal to 0"),
        (Outer, {"count": 1, "inner": 4}, "inner: found 4 (a whole number); allowed: an object"),
        (Outer, {"count": 1, "inner": {"names": [1]}}, "inner.names.0: found 1 (a whole number); allowed: text"),
        (Outer, {"count": 1, "inner": {"kind": "goood"}}, "allowed: good, bad; did you mean 'good'?"),
        (Outer, {"count": 1, "inner": {"names": ["\ud800"]}}, "half of a surrogate pair"),
        (Outer, {"count": 1, "else": {"\udfff": 1}}, "half of a surrogate pair"),
        (Outer, {"count": 1, "else": json.loads("[" * 101 + "]" * 101)}, "nested more than 100 levels deep"),
        (Fields, {"size": 1, "share": float("nan")}, "share: found nan (a number); allowed: a number that is finite"),
        (Fields, {"size": 1, "shade": 2}, "shade is not a key of it"),
        (dict[str, float], {"x": "y"}, "x: found 'y' (text); allowed: a number"),
    ],
)
def test_a_fault_is_told_with_key_and_value(schema: Any, value: Any, told: str, tmp_path: Path):
    with pytest.raises(PeftkitError) as caught:
        schemas.check(schema, value, "the/file", "Do this.")
    assert str(caught.value).startswith("the/file: ")
    assert told in str(caught.value)
    assert str(caught.value).endswith((". Do this.", "? Do this."))


def test_what_fits_is_returned_as_it_is(tmp_path: Path):
    value = {"count": 2, "inner": {"kind": "bad", "more": [1.5, None]}, "else": "\u2028"}
    assert schemas.check(Outer, value, "x") is value
    (tmp_path / "file").write_text(json.dumps(value))
    assert schemas.read(tmp_path / "file", Outer) == value
    assert schemas.check(Fields, {"size": 1}, "x") == {"size": 1}


DESCRIPTION = {
    "format": 1,
    "methods": [{"name": "lora", "options": {"rank": 2}}],
    "base": {"name": "tiny", "fingerprint": "f", "quantization": {"format": "none", "options": {}, "modules": {}}},
}


def changed(value: Any, key: str, other: Any) -> Any:
    """Return a value with another one at a dotted key."""
    whole = json.loads(json.dumps(value))
    *above, last = [int(step) if step.isdigit() else step for step in key.split(".")]
    place = whole
    for step in above:
        place = place[step]
    place[last] = other
    return whole


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("base.quantization", "x"),
        ("base.quantization.modules", {"q": "nf4"}),
        ("base.name", {}),
        ("base", None),
        ("methods.0.name", {"x": 1}),
        ("methods.0.options", [1]),
        ("methods", {"lora": {}}),
        ("format", "1"),
        ("children", {"a": {}}),
    ],
)
def test_a_description_of_an_adapter_that_is_none(key: str, other: Any, tmp_path: Path):
    (tmp_path / "adapter.json").write_text(json.dumps(changed(DESCRIPTION | {"children": {}}, key, other)))
    with pytest.raises(PeftkitError, match=rf"adapter\.json does not describe an adapter: {key.partition('.')[0]}"):
        describe_adapter(tmp_path)


def test_an_adapter_of_sizes_that_its_tensors_have_not_takes_no_memory(tmp_path: Path):
    model = tiny("llama")
    adaptation = attach(model, build_methods([("prefix-tuning", {"length": 3})]))
    save_adapter(adaptation, tmp_path / "a", {"name": "tiny"})
    adaptation.remove()
    path = tmp_path / "a" / "adapter.json"
    for length in (10**8, 10**12, 2**62):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(changed(content, "methods.0.options.length", length)))
        with pytest.raises(PeftkitError, match=r"adapter\.safetensors: .*(memory|wanted)"):
            load_adapter(model, tmp_path / "a", None)
    path.write_text(json.dumps(changed(json.loads(path.read_text()), "methods.0.options.length", 4)))
    with pytest.raises(PeftkitError, match=r"has the shape \[3, .*and \[4, .* is wanted"):
        load_adapter(model, tmp_path / "a", None)


def test_places_of_a_sparse_change_beyond_the_weight_are_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = tiny("llama")
    adaptation = attach(model, build_methods([("fishmask", {"density": 0.01})]))
    save_adapter(adaptation, tmp_path / "a", {"name": "tiny"})
    adaptation.remove()
    tensors = load_file(tmp_path / "a" / "adapter.safetensors")
    next(tensor for key, tensor in tensors.items() if key.endswith("indices"))[0] = 2**30
    save_file(tensors, tmp_path / "a" / "adapter.safetensors")
    with pytest.raises(PeftkitError, match="places beyond its"):
        load_adapter(model, tmp_path / "a", None)


MODEL_FAULTS: dict[str, tuple[str, Any, str]] = {
    "model_max_length": ("tokenizer_config.json", "x", "model_max_length: found 'x'"),
    "eos_token": ("tokenizer_config.json", [1], "eos_token: found a list"),
    "eos_token_id": ("generation_config.json", {"x": 1}, "eos_token_id: found a mapping"),
    "pad_token_id": ("generation_config.json", [[1]], "pad_token_id: found a list"),
    "model_type": ("config.json", 3, "model_type: found 3"),
}


@pytest.mark.parametrize("key", MODEL_FAULTS)
def test_a_file_of_a_model_that_is_none(key: str, tmp_path: Path):
    name, other, told = MODEL_FAULTS[key]
    folder = write_model(tmp_path / "model")
    path = folder / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, key: other}))
    with pytest.raises(PeftkitError) as caught:
        load(section(folder))
    assert str(path) in str(caught.value)
    assert f": {told}" in str(caught.value)


def test_kept_formats_that_are_damaged_are_chosen_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for content in ({"format": 1}, {"format": "nf5", "options": {}}, []):
        (tmp_path / packed_cache.CHOICE).write_text(json.dumps(content))
        assert packed_cache.choice(tmp_path) is None
    assert "The formats are chosen again." in caplog.text


TURN = {"turn_id": 1, "input_text": "a"}
TALK = {"id": "c", "source": "cnn", "questions": [TURN], "answers": [TURN], "additional_answers": {"0": [TURN]}}


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("data.0.answers.0.input_text", 3),
        ("data.0.questions.0.turn_id", "1"),
        ("data.0.additional_answers", []),
        ("data.0.source", {}),
        ("data.0.id", 1),
        ("data", {}),
    ],
)
def test_an_official_file_of_coqa_that_is_none(key: str, other: Any, tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps([{"id": "c", "turn_id": 1, "answer": "a"}]))
    (tmp_path / "r.json").write_text(json.dumps({"data": [TALK]}))
    assert TASKS["coqa"].score_files(tmp_path / "p.json", tmp_path / "r.json")["em"] == 100
    (tmp_path / "r.json").write_text(json.dumps(changed({"data": [TALK]}, key, other)))
    place = key.replace("data.0.", ", conversation 1: ") if "." in key else f": {key}"
    with pytest.raises(PeftkitError, match=rf"r\.json{place}: found .*; allowed: "):
        TASKS["coqa"].score_files(tmp_path / "p.json", tmp_path / "r.json")


RECORD = {"step": 1, "loss": 2.0, "epoch": 0.1, "tokens": 3, "trained_tokens": 2, "tokens_per_s": 1.0, "memory": 9}
REPORT = {"scores": {"f1": 1.0}, "dataset": "coqa", "split": "test", "limit": None, "examples": 1, "model": "m"}
ANSWER = {"id": "1", "prompt": "p", "prediction": "a", "references": ["a"]}
TOLD = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "tokens": 3, "tokens_per_second": 1.0}
TOLD |= {"peak_memory_bytes": 4, "wall_s": 0.5, "losses": {"validation": None}}
READERS: dict[str, tuple[Any, Callable[[Path], Any], list[tuple[str, Any]]]] = {
    "log.jsonl": (
        RECORD | {"elapsed_s": 1.0},
        lambda path: log.read(path, log.WholeStepRecord),
        [("loss", "x"), ("step", 0), ("step", None), ("tokens", []), ("scores", {"f1": None})],
    ),
    "summary.json": (TOLD, summary.read_told, [("losses", None), ("total_parameters", 0), ("wall_s", "1")]),
    "eval.json": (REPORT, read_report, [("scores", {}), ("scores", {"f1": "1"}), ("limit", 0), ("examples", None)]),
    "answers.jsonl": (
        ANSWER,
        lambda path: read_answers(path, path, 1),
        [("references", []), ("references", [1]), ("prediction", None), ("id", 7)],
    ),
}


@pytest.mark.parametrize(
    ("name", "key", "other"), [(name, *fault) for name, (_, _, faults) in READERS.items() for fault in faults]
)
def test_a_file_of_a_run_that_is_none(name: str, key: str, other: Any, tmp_path: Path):
    whole, read, _ = READERS[name]
    path = tmp_path / name
    path.write_text(json.dumps(whole) + "\n")
    assert read(path)
    path.write_text(json.dumps(whole | {key: other}) + "\n")
    with pytest.raises(PeftkitError, match=rf"{name}.*: {key}"):
        read(path)


def test_answers_that_are_not_as_many_as_the_report_says_are_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ANSWER) + "\n")
    with pytest.raises(PeftkitError, match=r"holds 1 answers, and r\.json is of 2"):
        read_answers(tmp_path / "a.jsonl", tmp_path / "r.json", 2)


def test_a_whole_summary_is_read_and_one_of_other_types_is_refused(tmp_path: Path):
    whole = dict.fromkeys(("examples", "dropped_examples", "trained_tokens"), 1) | TOLD
    whole |= {"model": "m", "methods": ["lora"], "dataset": "d", "epochs": 1.0, "device": "cpu", "precision": "fp32"}
    whole |= {"versions": {"torch": "2"}, "losses": {"first": 1.0, "validation": None}}
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(whole))
    assert summary.read(path).methods == ["lora"]
    for key, other in (("methods", "lora"), ("epochs", "1"), ("unknown", 1), ("versions", {"torch": 2})):
        path.write_text(json.dumps(whole | {key: other}))
        with pytest.raises(PeftkitError, match=rf"summary\.json: {key}"):
            summary.read(path)


def test_a_journal_goes_on_up_to_a_record_that_was_changed(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    journal = Journal(path, "key")
    for chunk in range(3):
        journal.append({"chunk": chunk, "wall_s": 0.5, "answers": [[chunk, "text", [1, 2], True, False]]})
    assert [record["chunk"] for record in Journal(path, "key").records] == [0, 1, 2]
    lines = path.read_text().split("\n")
    for other in ("{}", "[]", lines[2].replace("[1, 2]", '"x"'), lines[2].replace("0.5", "null")):
        path.write_text("\n".join([*lines[:2], other, *lines[3:]]))
        assert [record["chunk"] for record in Journal(path, "key").records] == [0]


def test_a_state_of_random_numbers_that_is_none_is_refused():
    from peftkit.engine.snapshot import set_random_state

    cpu = torch.device("cpu")
    before = torch.get_rng_state()
    for state in ({}, {"cpu": torch.zeros(3)}, {"cpu": torch.zeros(7, dtype=torch.uint8)}):
        with pytest.raises(PeftkitError, match="random numbers"):
            set_random_state(state, cpu)
    assert torch.equal(torch.get_rng_state(), before)
