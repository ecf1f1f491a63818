"""What `look` tells of a recipe's data: pieces and marks of tokens, lengths, repeats, and the reason of each loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit import recipe as recipes
from peftkit.data.encode import IGNORED, Encoded
from peftkit.data.stream import BLOCK
from peftkit.errors import PeftkitError
from peftkit.inspection import Look, TokenPiece, look, token_pieces
from peftkit.inspection.data import WITHOUT_SOFT_PROMPTS
from peftkit.layout import Layout
from peftkit.method import METHODS, expand
from peftkit.models.load import tokenizer_of
from peftkit.models.tiny import tiny
from peftkit.training import encoded as encoding

Looking = Callable[..., Look]
LONG = "the cat sat on the mat " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizer_of(recipes.load("quickstart").model)


@pytest.fixture
def looking(tmp_path: Path) -> Looking:
    """Look at records of a file, with the sections of a recipe beside them."""

    def at(
        records: list[dict[str, Any]],
        numbers: list[int] | None = None,
        split: str = "train",
        data: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Look:
        (tmp_path / "data").mkdir(exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
        dataset = {"name": "jsonl", "path": str(tmp_path / "data"), **(data or {})}
        given = {"model": "bundled/tiny", "method": "lora", "dataset": dataset}
        return look(recipes.load({**given, **keys}), split, numbers)

    return at


def pair(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def test_pieces_are_the_text_and_marks_are_the_labels(tokenizer):
    prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Ask ☕ twice:", " yes ☕☕"))
    row = Encoded(prompt + answer, [IGNORED] * len(prompt) + answer)
    pieces = token_pieces(row, tokenizer)
    assert "".join(piece.text for piece in pieces) == "Ask ☕ twice: yes ☕☕"
    assert "".join(piece.text for piece in pieces if piece.trained) == " yes ☕☕"
    assert sum(piece.tokens for piece in pieces) == len(row.ids)
    assert sum(piece.tokens for piece in pieces if piece.trained) == len(answer)
    assert len(pieces) < len(row.ids), "the tokens of one character are one piece"


def test_a_character_that_is_cut_in_two_still_ends_where_the_mark_does(tokenizer):
    ids = tokenizer("☕", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    pieces = token_pieces(Encoded(ids, [IGNORED, *ids[1:]]), tokenizer)
    assert [piece.trained for piece in pieces][:2] == [False, True]
    assert sum(piece.tokens for piece in pieces) == len(ids)


def test_rows_of_a_soft_prompt_are_named():
    class Letters:
        def decode(self, ids, **options):
            return "".join(chr(index) for index in ids)

    row = Encoded([900, 901, 65, 66], [IGNORED, IGNORED, IGNORED, 66])
    assert token_pieces(row, Letters(), (900, 901)) == [
        TokenPiece("[soft prompt 1]", False),
        TokenPiece("[soft prompt 2]", False),
        TokenPiece("A", False),
        TokenPiece("B", True),
    ]


def test_a_recipe_with_a_soft_prompt_shows_it_and_counts_it(looking):
    plain = looking([pair("a", "b")])
    soft = looking([pair("a", "b")], method={"prompt-tuning": {"length": 3, "init": "random"}})
    texts = [piece.text for piece in soft.seen[0].rows[0]]
    assert [text for text in texts if text.startswith("[soft")] == [f"[soft prompt {n}]" for n in (1, 2, 3)]
    assert soft.lengths.tolist() == [plain.lengths[0] + 3]


def test_no_method_of_a_port_without_soft_prompts_sits_on_the_embedding():
    layout, tried = Layout(tiny("gpt2")), 0
    for name, cls in METHODS.items():
        if set(cls.port.split(" + ")) <= WITHOUT_SOFT_PROMPTS:
            for part in expand([cls.from_options({})]):
                try:
                    sites = part.sites(layout)
                except PeftkitError:  # such as one that wants packed weights
                    continue
                assert "embedding" not in {site.role for site in sites}, name
                tried += 1
    assert tried > 40


def test_repeats_are_counted_and_placed(looking):
    records = [pair("a", "b"), pair("c", "d"), pair("a", "b"), pair("a", "x"), pair("c", "d"), pair("a", "b")]
    found = looking(records)
    assert (found.examples, found.inputs, found.repeats) == (6, 2, 3)
    assert found.repeated == [
        ("train.jsonl:3", "train.jsonl:1"),
        ("train.jsonl:5", "train.jsonl:2"),
        ("train.jsonl:6", "train.jsonl:1"),
    ]


def test_a_repeat_with_another_label_is_none(looking):
    records = [{"text": "a", "label": 0}, {"text": "a", "label": 1}, {"text": "a", "label": 0}]
    found = looking(records, objective="classification")
    assert (found.repeats, found.repeated) == (1, [("train.jsonl:3", "train.jsonl:1")])
    assert [seen.label for seen in found.seen] == ["0", "1", "0"]
    assert not any(piece.trained for seen in found.seen for piece in seen.rows[0])


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (pair("a", ""), "dropped: there is nothing in it to train on"),
        (pair(LONG, "yes"), "cut: the prompt lost its beginning"),
        (pair("a", LONG), "cut: the answer lost its end"),
        ({"text": LONG}, "split: a document of more than train.max_length 16 became several rows"),
    ],
)
def test_what_became_of_an_example_is_told_with_its_reason_and_place(looking, record, said):
    found = looking([pair("b", "c"), record], [2], train={"max_length": 16})
    (fate,) = found.fates
    assert fate.what.startswith(said)
    assert (fate.count, fate.first) == (1, ["train.jsonl:2"])
    assert found.seen[0].fate == fate.what
    assert found.examples == 2
    assert found.lengths.max() <= 16


def test_a_conversation_loses_answers_that_have_no_room(looking):
    turns = [("user", "a"), ("assistant", "b"), ("user", LONG), ("assistant", "c")]
    record = {"messages": [{"role": role, "content": text} for role, text in turns]}
    found = looking([record], train={"max_length": 16})
    (fate,) = found.fates
    assert fate.what.startswith("cut: ")
    assert found.trained < looking([record], train={"max_length": 4096}).trained


def test_counts_of_losses_are_the_ones_that_training_tells(looking):
    records = [pair("a", ""), pair(LONG, "yes"), pair("a", LONG), pair("b", "c"), pair(LONG + "x", "no")]
    found = looking(records, train={"max_length": 16})
    counts = {fate.what.split(",")[0]: fate.count for fate in found.fates}
    assert counts == {
        "cut: the prompt lost its beginning": 2,
        "cut: the answer lost its end": 1,
        "dropped: there is nothing in it to train on": 1,
    }
    assert next(iter(counts)).startswith("cut: the prompt"), "the most frequent comes first"
    assert len(found.lengths) == 4


def test_nothing_is_encoded_twice_where_nothing_was_lost(looking, monkeypatch):
    calls = []
    encode = encoding.Encoder.encode
    monkeypatch.setattr(encoding.Encoder, "encode", lambda *given, **named: calls.append(1) or encode(*given, **named))
    assert looking([pair("a", "b")]).fates == []
    assert len(calls) == 1


def test_another_split_has_the_classes_of_training(looking):
    looking([{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}], objective="classification")
    found = looking([{"text": "c", "label": "yes"}], split="test", objective="classification")
    assert found.seen[0].label == "yes"


def test_streamed_data_are_looked_at_in_front(looking):
    records = [pair(f"a {number}", "b") for number in range(BLOCK + 6)]
    found = looking(records, data={"streaming": True}, train={"max_steps": 1})
    assert (found.examples, found.inputs) == (BLOCK, BLOCK)
    assert found.notices == ["the data are streamed: these are the first 1,024 examples"]


@pytest.mark.parametrize("number", [0, 3, 10**12])
def test_a_number_without_an_example_is_refused(looking, number):
    with pytest.raises(PeftkitError, match=f"rows: found {number}; allowed: 1 to 2, the examples of the split 'train'"):
        looking([pair("a", "b"), pair("c", "d")], [1, number])
