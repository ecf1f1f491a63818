"""Perplexity by position and pass keys: held to plain sums over logits, on models whose answer is known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_runs import write_random_run

from peftkit import suites
from peftkit.errors import PeftkitError
from peftkit.evaluation import prepare
from peftkit.models.tiny import tiny
from peftkit.recipe import load as load_recipe
from peftkit.report import report
from peftkit.report.document import Table
from peftkit.suites.kinds import long_context
from peftkit_cli.main import main

BARE = {"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}


def run_of(folder: Path, method: str) -> Path:
    return write_random_run(folder, load_recipe({**BARE, "method": method}), 0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_of(tmp_path_factory.mktemp("long") / "run", "lora")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"The pub number {number} is near the river." for number in range(120)))
    return path


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_perplexities_are_those_of_the_logits_position_by_position(tmp_path, text, method):
    folder = run_of(tmp_path / "run", method)
    found = suites.evaluate(folder, "long-context:100,200", folder=text, limit=2)
    subject = prepare(load_recipe(folder / "recipe.yaml"), folder / "adapter")
    soft = list(subject.template.soft)
    assert bool(soft) == (method == "prompt-tuning")
    ids = subject.tokenizer(text.read_text())["input_ids"]
    surprise = torch.zeros(2, 200, dtype=torch.float64)
    for number in range(2):
        row = ids[number * 200 : (number + 1) * 200]
        with torch.no_grad():
            logits = subject.model(torch.tensor([soft + row])).logits[0, len(soft) :]
        for position in range(1, 200):
            surprise[number, position] = -logits[position - 1].log_softmax(-1)[row[position]]
    values = {score["metric"]: score["value"] for score in found["scores"] if score["task"] == "perplexity"}
    assert list(values) == ["positions 0-127", "positions 128-199", "first 100", "first 200"]
    for name, first, end in zip(values, (1, 128, 1, 1), (128, 200, 100, 200), strict=True):
        assert values[name] == pytest.approx(math.exp(surprise[:, first:end].mean()), rel=1e-4), name


def test_a_key_stands_where_it_is_asked_for_and_fits():
    tokenizer = prepare(load_recipe(BARE), None).tokenizer
    for depth, place in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        for prompt, key in long_context.examples(tokenizer, 300, depth, 3):
            told = tokenizer.decode([*prompt, *key])
            number = told.rpartition(" ")[2]
            assert re.fullmatch(r"\d{5}", number)
            assert told.count(number) == 3
            assert 270 < len(prompt) + len(key) <= 300
            notes = told.partition("\n\n")[2].partition("\n\n")[0]
            before, after = notes.split(long_context.NEEDLE.format(key=number).strip())
            assert len(before) / len(before + after) == pytest.approx(place, abs=0.1)
    again = list(long_context.examples(tokenizer, 300, 1.0, 3))
    assert again == list(long_context.examples(tokenizer, 300, 1.0, 3))
    assert len({tuple(key) for _, key in again}) == 3


@pytest.mark.parametrize("fault", [None, 0, 2])
def test_a_key_is_found_where_every_likeliest_token_is_its_own(monkeypatch, fault):
    """The model answers with what it is told to, but for one token of the key."""
    subject = prepare(load_recipe(BARE), None)
    ((prompt, key),) = long_context.examples(subject.tokenizer, 200, 0.5, 1)

    def model(input_ids, use_cache):
        assert input_ids[0].tolist() == [*prompt, *key[:-1]]
        logits = torch.zeros(1, input_ids.shape[1], 2048)
        for at, index in enumerate(key):
            logits[0, len(prompt) - 1 + at, index if at != fault else index + 1] = 1
        return SimpleNamespace(logits=logits)

    monkeypatch.setattr(long_context, "examples", lambda *args: iter([(prompt, key)]))
    (first, *_) = long_context.passkey([200], _with(subject, model), 1)
    assert (first["task"], first["metric"], first["value"]) == ("passkey-200", "depth 0", float(fault is None))


def _with(subject, model):
    model.config = subject.model.config
    return replace(subject, model=model)


def test_scores_are_written_printed_and_reported(run, text, capsys, tmp_path):
    asked = ["eval", str(run), "--suite", "long-context:128", "--suite-path", str(text), "--limit", "1"]
    assert main(asked) == 0
    assert re.search(r"perplexity +positions 0-127 +\d+\.\d{4} ", capsys.readouterr().out)
    assert main([*asked, "--base", "--json"]) == 0
    base = json.loads(capsys.readouterr().out)
    assert (base["adapter"], base["suite"], base["tasks"]) == (None, "long-context", ["perplexity", "passkey"])
    names = ["passkey-base.json", "passkey.json", "perplexity-base.json", "perplexity.json"]
    assert sorted(path.name for path in (run / "eval").iterdir()) == [f"long-context-{name}" for name in names]
    page = report([run], tmp_path / "report")
    table = next(block for block in page.blocks if isinstance(block, Table) and block.heads[0] == "task")
    assert any(row[0] == "perplexity, positions 0-127" for row in table.rows)


def test_without_a_path_the_text_is_that_of_the_split_and_lengths_follow_the_model(run):
    found = suites.evaluate(run, "long-context", limit=1)
    tasks = {score["task"] for score in found["scores"]}
    assert tasks == {"perplexity", "passkey-256", "passkey-512", "passkey-1024"}


@pytest.mark.parametrize(
    ("suite", "path", "message"),
    [
        ("long-context:many", None, "'many' is no length, and long-context or long-context:LENGTH"),
        ("long-context:512,-3", None, "'-3' is no length"),
        ("long-context:8", None, "'8' is no length, .* from 64 to 1,048,576"),
        ("long-context:64", "text", "64 tokens are asked for, and a pass key takes "),
        ("long-context:99999", "text", r"the text of .*text.txt has [\d,]+ tokens, and 99,999 are wanted"),
        ("long-context:128", "lost.txt", "lost.txt"),
        ("long-context:128", "folder", "no file in it ends in .txt"),
        ("long-contxt:128", None, "long-context or long-context:LENGTH"),
    ],
)
def test_what_cannot_be_asked_is_told(run, text, tmp_path, suite, path, message):
    (tmp_path / "folder").mkdir()
    place = None if path is None else text if path == "text" else tmp_path / path
    with pytest.raises(PeftkitError, match=message):
        suites.evaluate(run, suite, folder=place, limit=1)


def test_more_positions_than_a_model_has_are_refused_where_they_are_learnt():
    subject = prepare(load_recipe(BARE), None)
    assert long_context.checked([4096], subject) == [4096]
    with pytest.raises(PeftkitError, match="200 tokens are asked for, and this gpt2 model has 128 positions"):
        long_context.checked([100, 200], replace(subject, model=tiny("gpt2")))
