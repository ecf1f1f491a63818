"""The pretraining corpus and its tokenizer: repeatable, of many genres, apart from the tasks, and without loss."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthetic.__main__ import BUNDLED, main
from synthetic.corpus import write_documents
from synthetic.genres import GENRES
from synthetic.tokenizer import END, PAD

OTHER_LAYOUTS = re.compile(r"name\[|\w\[[^\]]*\], \w+\[|\S \| \S[^|]* \| \S|<<\d|^#### ", re.MULTILINE)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    main(["corpus", "--output", str(folder / "corpus"), "--documents", "400"])
    main(
        ["tokenizer", "--corpus", str(folder / "corpus"), "--output", str(folder / "tokenizer"), "--vocabulary", "700"]
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer(built: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(built / "tokenizer"))


def test_the_same_seed_gives_the_same_documents_and_another_seed_others() -> None:
    assert write_documents(40, 0, "train") == write_documents(40, 0, "train")
    assert write_documents(40, 0, "train") != write_documents(40, 1, "train")
    assert not set(write_documents(40, 0, "train")) & set(write_documents(40, 0, "validation"))


def test_there_are_many_genres_and_every_document_has_a_length_worth_training_on() -> None:
    assert len(GENRES.names()) >= 12
    lengths = [len(text) for text in write_documents(500, 3, "train")]
    assert min(lengths) > 15
    assert max(lengths) < 1200
    assert 200 < sum(lengths) / 500 < 450


def test_the_corpus_has_neither_the_layouts_nor_the_texts_of_the_bundled_sets() -> None:
    documents = write_documents(2000, 0, "train")
    shown = [text for text in documents if OTHER_LAYOUTS.search(text) and "Signs: " not in text]
    assert shown == []
    with (BUNDLED / "e2e/testset_w_refs.csv").open(encoding="utf-8", newline="") as file:
        tested = {row["ref"] for row in csv.DictReader(file)}
    assert len(tested) > 400
    assert not any(reference in text for text in documents for reference in tested)


def test_sums_in_the_corpus_are_right() -> None:
    found = 0
    for text in write_documents(1500, 0, "train"):
        for first, sign, second, result in re.findall(r"(?<![\d.+*/x-] )\b(\d+) ?([-+*/]) ?(\d+) = (\d+)\b", text):
            left, right = int(first), int(second)
            assert {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign] == int(result), (
                text
            )
            found += 1
    assert found > 100


def test_the_files_hold_one_text_a_line(built: Path) -> None:
    for split, count in (("train", 400), ("validation", 40)):
        lines = (built / f"corpus/{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        assert all(list(json.loads(line)) == ["text"] for line in lines)


def test_special_tokens_digits_and_size(tokenizer) -> None:
    assert len(tokenizer) == 700
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.chat_template is None
    assert tokenizer.tokenize("1250") == ["1", "2", "5", "0"]
    assert len(tokenizer.tokenize("priceRange[")) < 5
    assert tokenizer(f"a{END}")["input_ids"][-1] == tokenizer.eos_token_id


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_read_back_exactly(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_byte_has_a_token(tokenizer) -> None:
    text = "".join(chr(code) for code in (*range(0x250), 0x20AC, 0x4E2D, 0x1F600, 0x10FFFF))
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id is None
    assert tokenizer.decode(ids) == text
