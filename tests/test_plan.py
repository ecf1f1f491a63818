"""A plan says what the run then does, and reads no weight."""

from __future__ import annotations

import json

import pytest
from model_folders import write_model

from peftkit import recipe as recipes
from peftkit.data import encoding, records, tables
from peftkit.errors import PeftkitError
from peftkit.plan import plan
from peftkit.training import train


@pytest.fixture
def given(tmp_path):
    write_model(tmp_path / "base")
    rows = [{"prompt": f"number {index}", "completion": "x" * (index + 1)} for index in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tmp_path / "base"),
        "method": {"lora": {"targets": ["q", "mlp"]}},
        "rank": 4,
        "dataset": {"name": "jsonl", "path": str(tmp_path / "train.jsonl")},
        "train": {"epochs": 2, "batch_examples": 4, "accumulation": 2},
    }


def test_the_plan_is_what_the_run_does(given, tmp_path):
    planned = plan(recipes.load(given))
    assert planned.matched["q"] == (2, "model.layers.0.self_attn.q_proj")
    assert {role: count for role, (count, _) in planned.matched.items()} == {"q": 2, "gate": 2, "up": 2, "down": 2}
    assert planned.trainable == 2 * 4 * (32 + 32 + 3 * (32 + 64))
    assert (planned.steps, planned.epochs, planned.examples) == (4, 2.0, 12)
    assert planned.example[-1] == ("x</s>", True)
    assert planned.example[0][0].endswith("number0")
    summary = train(recipes.load(given), tmp_path / "run")
    assert (summary.steps, summary.tokens) == (planned.steps, planned.tokens)
    assert (summary.trainable_parameters, summary.total_parameters) == (planned.trainable, planned.total)


def test_the_estimate_has_every_part(given):
    parts = plan(recipes.load(given)).memory.parts
    assert parts["optimizer"] == 2 * parts["gradients"] == 2 * 4 * plan(recipes.load(given)).trainable
    given["train"]["gradient_checkpointing"] = True
    assert plan(recipes.load(given)).memory.parts["activations"] < parts["activations"]


def test_the_estimate_asks_the_optimizer_for_its_states(given):
    given["method"], given["rank"] = {"galore": {"targets": ["q", "mlp"]}}, 4
    parts = plan(recipes.load(given)).memory.parts
    assert parts["gradients"] == 2 * 4 * (32 * 32 + 3 * 32 * 64)
    assert parts["optimizer"] == 2 * 4 * 4 * ((2 * 32 + 32) + 3 * (2 * 64 + 32))


def test_of_a_large_set_that_no_run_has_encoded_a_part_is_read(given, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 3)
    monkeypatch.setattr(encoding, "processes", lambda: 1)
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    made = []
    monkeypatch.setattr(tables, "parse_line", lambda line: made.append(line.number) or records.parse_line(line))
    monkeypatch.setattr("peftkit.plan.READ", 6)
    about = plan(recipes.load(given))
    assert set(made) == {1, 3, 5, 7, 9, 11}
    assert any("planned from 6 of 12 examples" in notice for notice in about.notices)
    assert (about.steps, about.epochs, about.examples) == (4, 2.0, 12)
    summary = train(recipes.load(given), tmp_path / "run")
    assert 0.8 * summary.tokens < about.tokens < summary.tokens
    exact = plan(recipes.load(given))
    assert (exact.steps, exact.tokens) == (summary.steps, summary.tokens)
    assert not any("planned from" in notice for notice in exact.notices)


def test_no_weight_is_read(given, tmp_path):
    (tmp_path / "base" / "model.safetensors").unlink()
    assert plan(recipes.load(given)).total > 0


def test_faults_are_found_before_anything_heavy(given):
    given["method"] = {"lora": {"targets": ["c_atn"]}}
    with pytest.raises(PeftkitError, match="'c_atn' matches no linear module"):
        plan(recipes.load(given))
    given["method"], given["rank"] = "lora", 400
    with pytest.raises(PeftkitError, match="rank 400 is larger than"):
        plan(recipes.load(given))
