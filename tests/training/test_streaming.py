"""Runs on streamed data: in the order of the files, over and over, resumed bit for bit, refused beside whole data."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from small_runs import WORDS, make_recipe
from test_session import Stops, records

from peftkit import recipe
from peftkit.data import stream
from peftkit.errors import PeftkitError
from peftkit.plan import plan
from peftkit.training import Interrupted, session, train
from peftkit.training.preparation import prepare

BLOCK, ROWS = 8, 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)
    monkeypatch.setattr(stream, "BLOCK", BLOCK)


def line(number: int) -> str:
    completion = WORDS[number % len(WORDS)] + ("!" * (number % 4))
    return json.dumps({"prompt": f"row {number:03}", "completion": completion}) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streamed") / "train.jsonl"
    path.write_text("".join(map(line, range(ROWS))))
    return path


def load(source: Path, data: Path, dataset: dict[str, Any] | None = None, **train: Any) -> recipe.Recipe:
    keys = make_recipe(source, "lora", **{"max_steps": 9, "precision": "fp32", "batch_examples": 3, **train})
    asked = {"name": "jsonl", "path": str(data), "template": "plain", "streaming": True, **(dataset or {})}
    return recipe.load({**keys, "dataset": asked})


def prompts(chosen: recipe.Recipe, blocks: int) -> list[list[str]]:
    """Return the prompts of each micro-batch of the first blocks."""
    prepared = prepare(chosen)
    batches, words = prepared.batches, prepared.loaded.tokenizer
    return [
        [words.decode(batches.encoded[at].ids[4:7]) for at in indices]
        for block in range(blocks)
        for indices in batches.plan(block)
    ]


def test_examples_come_in_the_order_of_their_file_and_again_from_the_front(source: Path, data: Path):
    found = prompts(load(source, data), 5)
    assert [len(batch) for batch in found] == [3, 3, 2] * 2 + [3, 1] + [3, 3, 2] * 2
    numbers = [int(prompt) for batch in found for prompt in batch]
    assert numbers == [*range(ROWS), *range(2 * BLOCK)]


def test_a_buffer_shuffles_within_itself(source: Path, data: Path):
    numbers = [int(prompt) for batch in prompts(load(source, data, {"buffer": 10}), 2) for prompt in batch]
    first, second = numbers[:10], numbers[10:]
    assert sorted(first) == list(range(10))
    assert sorted(second) == list(range(10, 20))
    assert first != sorted(first)
    assert [number - 10 for number in second] != first


@pytest.mark.parametrize("buffer", [None, 10])
@pytest.mark.parametrize("stop", [2, 3, 7])
def test_a_resumed_run_is_the_whole_one_bit_for_bit(stop: int, buffer: int | None, source: Path, data: Path, tmp_path):
    chosen = load(source, data, {"buffer": buffer}, accumulation=2)
    train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(stop, signal.SIGINT))
    train(chosen, tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    assert records(whole) == records(parts)
    name = "adapter/adapter.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_file_that_never_ends_is_trained_on(source: Path, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    os.mkfifo(path)
    written = []

    def write() -> None:
        try:
            with path.open("w") as file:
                while True:
                    file.write(line(len(written)))
                    written.append(1)
        except BrokenPipeError:
            pass

    threading.Thread(target=write, daemon=True).start()
    result = train(load(source, path, max_steps=6), tmp_path / "run")
    assert result.steps == 6
    assert len(written) < 50_000


def test_a_plan_reads_one_block(source: Path, data: Path, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(map(line, range(3 * BLOCK))) + "not JSON\n")
    planned = plan(load(source, path))
    assert (planned.steps, planned.examples) == (9, BLOCK)


@pytest.mark.parametrize(
    ("dataset", "train", "message"),
    [
        ({}, {"max_steps": None}, "found dataset.streaming without train.max_steps"),
        ({}, {"epochs": 2.0}, "found dataset.streaming and train.epochs, which takes all data"),
        ({}, {"group_prompts": True}, "and train.group_prompts"),
        ({"limit": 5}, {}, "and dataset.limit"),
        ({"fraction": 0.5}, {}, "and dataset.fraction"),
        ({"validation": 0.5}, {}, "and dataset.validation"),
        ({"streaming": False, "buffer": 5}, {}, "found dataset.buffer 5 without dataset.streaming"),
    ],
)
def test_what_takes_all_of_the_data_is_refused(dataset, train, message: str, source: Path, data: Path):
    with pytest.raises(PeftkitError, match=message):
        load(source, data, dataset, **train)


def test_classes_are_to_be_named(source: Path, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n}", "label": n % 2}) + "\n" for n in range(ROWS)))
    keys = load(source, path).resolved()
    with pytest.raises(PeftkitError, match="'classification' takes options from all training examples"):
        prepare(recipe.load({**keys, "objective": "classification"}))
    named = recipe.load({**keys, "objective": {"classification": {"labels": [0, 1]}}})
    assert prepare(named).encoded.examples == BLOCK
