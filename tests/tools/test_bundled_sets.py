"""The shipped data sets: rebuilt byte for byte, true to their formats, right in what they claim."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import pytest

from synthetic.__main__ import BUNDLED, main
from synthetic.sets import SETS

ATTRIBUTE = re.compile(r"([A-Za-z ]+)\[([^\]]*)\]")
ORDER = ["name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near"]


def read_table(name: str) -> dict[str, list[str]]:
    with (BUNDLED / "e2e" / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["mr", "ref"]
    grouped: dict[str, list[str]] = defaultdict(list)
    for meaning, reference in rows[1:]:
        grouped[meaning].append(reference)
    return grouped


def test_the_generator_writes_the_shipped_files_byte_for_byte(tmp_path: Path) -> None:
    main(["bundled", "--output", str(tmp_path), "--seed", "0"])
    for name in SETS.names():
        shipped = {file.relative_to(BUNDLED): file for file in (BUNDLED / name).rglob("*") if file.is_file()}
        written = {file.relative_to(tmp_path): file for file in (tmp_path / name).rglob("*") if file.is_file()}
        assert shipped.keys() == written.keys()
        assert [str(key) for key in shipped if shipped[key].read_bytes() != written[key].read_bytes()] == []


def test_another_seed_writes_other_files(tmp_path: Path) -> None:
    main(["bundled", "--output", str(tmp_path), "--seed", "1", "--only", "gsm8k"])
    assert (tmp_path / "gsm8k/test.jsonl").read_bytes() != (BUNDLED / "gsm8k/test.jsonl").read_bytes()


def test_together_they_stay_small() -> None:
    assert (
        sum(file.stat().st_size for file in BUNDLED.glob("*/**/*") if file.is_file() and "tiny" not in file.parts)
        < 1.5e6
    )


@pytest.mark.parametrize(
    ("name", "meanings", "fewest", "most"),
    [("trainset.csv", 600, 2, 4), ("devset.csv", 80, 2, 4), ("testset_w_refs.csv", 100, 3, 8)],
)
def test_restaurants_have_official_attributes_in_order(name: str, meanings: int, fewest: int, most: int) -> None:
    table = read_table(name)
    assert len(table) == meanings
    assert {len(references) for references in table.values()} <= set(range(fewest, most + 1))
    for meaning, references in table.items():
        attributes = [attribute.strip() for attribute, _ in ATTRIBUTE.findall(meaning)]
        assert attributes == sorted(attributes, key=ORDER.index)
        assert attributes[0] == "name"
        assert 3 <= len(attributes) <= 8
        assert len(set(references)) == len(references)
    assert any("eatType" not in meaning for meaning in table)


def test_restaurant_texts_express_the_values_of_their_meaning() -> None:
    for meaning, references in read_table("testset_w_refs.csv").items():
        values = {attribute.strip(): value for attribute, value in ATTRIBUTE.findall(meaning)}
        for reference in references:
            wanted = [values["name"], values.get("near", ""), values.get("eatType", ""), values.get("area", "")]
            assert all(value in reference for value in wanted), (meaning, reference)
            assert values.get("food", "").lower() in reference.lower()
            assert values.get("customer rating", "") in reference
            assert ("not" in reference.split(" ")) == (values.get("familyFriendly") == "no")


def test_restaurant_splits_share_no_input_and_test_has_new_names() -> None:
    splits = [read_table(name) for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv")]
    assert sum(map(len, splits)) == len(set().union(*splits))
    named = [{dict(ATTRIBUTE.findall(meaning))["name"] for meaning in split} for split in splits]
    new = named[2] - named[0]
    assert 0 < len(new) < len(named[2])


def test_line_ends_and_quotes_are_as_in_the_official_files() -> None:
    train, test = ((BUNDLED / "e2e" / name).read_bytes() for name in ("trainset.csv", "testset_w_refs.csv"))
    assert train.startswith(b"mr,ref\r\n")
    assert train.count(b"\r\n") == train.count(b"\n")
    assert test.startswith(b'"mr","ref"\n')
    assert b"\r" not in test
    inputs = (BUNDLED / "e2e/testset.csv").read_text(encoding="utf-8").splitlines()
    assert inputs[0] == "MR"
    assert [line.strip('"') for line in inputs[1:]] == list(read_table("testset_w_refs.csv"))


def entries(path: Path) -> list[ElementTree.Element]:
    return list(ElementTree.parse(path).getroot().iter("entry"))


def test_triples_count_as_the_entry_says_and_unseen_categories_are_only_in_test() -> None:
    folder = BUNDLED / "webnlg"
    splits = {
        split: [e for file in sorted((folder / split).rglob("*.xml")) for e in entries(file)]
        for split in ("train", "dev")
    }
    splits["test"] = entries(folder / "test/testdata_with_lex.xml")
    assert {split: len(found) for split, found in splits.items()} == {"train": 400, "dev": 60, "test": 80}
    for found in splits.values():
        for entry in found:
            triples = [triple.text for triple in entry.iterfind("modifiedtripleset/mtriple")]
            assert len(triples) == int(entry.attrib["size"])
            assert all(triple is not None and triple.count(" | ") == 2 for triple in triples)
            assert entry.find("lex") is not None
    seen = {entry.attrib["category"] for entry in splits["train"]}
    unseen = entries(folder / "test/testdata_unseen_with_lex.xml")
    assert len(seen) == 10
    assert not seen & {entry.attrib["category"] for entry in unseen}
    assert len(unseen) == sum(entry.attrib["category"] not in seen for entry in splits["test"]) == 30
    assert all(entry.find("lex") is None for entry in entries(folder / "test/testdata_no_lex.xml"))


def test_triple_texts_name_every_object() -> None:
    for entry in entries(BUNDLED / "webnlg/test/testdata_with_lex.xml"):
        for triple in entry.iterfind("modifiedtripleset/mtriple"):
            value = str(triple.text).split(" | ")[2].strip('"').replace("_", " ").lower()
            assert all(value in str(lex.text).lower() for lex in entry.iterfind("lex"))


@pytest.mark.parametrize(("name", "count"), [("train.jsonl", 800), ("test.jsonl", 100)])
def test_every_calculation_is_right(name: str, count: int) -> None:
    rows = [json.loads(line) for line in (BUNDLED / "gsm8k" / name).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count
    for row in rows:
        body, _, answer = row["answer"].rpartition("\n#### ")
        found = re.findall(r"=<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+) ", body)
        assert len(found) == body.count("<<") == body.count("\n") + 1
        for first, sign, second, result, shown in found:
            left, right = int(first), int(second)
            results = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}
            assert results[sign] == int(result) == int(shown) >= 0
        assert found[-1][3] == answer


def test_no_problem_is_in_both_splits() -> None:
    train, test = (
        {json.loads(line)["question"] for line in (BUNDLED / "gsm8k" / name).read_text(encoding="utf-8").splitlines()}
        for name in ("train.jsonl", "test.jsonl")
    )
    assert len(train) == 800
    assert not train & test


@pytest.mark.parametrize(("split", "count", "others"), [("train", 40, 0), ("dev", 12, 3)])
def test_spans_are_exact_and_turns_are_numbered(split: str, count: int, others: int) -> None:
    content = json.loads((BUNDLED / f"coqa/coqa-{split}-v1.0.json").read_text(encoding="utf-8"))
    assert content["version"] == "1.0"
    assert len(content["data"]) == len({element["id"] for element in content["data"]}) == count
    unanswerable = 0
    for element in content["data"]:
        turns = list(range(1, len(element["questions"]) + 1))
        assert 6 <= len(turns) <= 12
        extra = element.get("additional_answers", {})
        assert list(extra) == [str(at) for at in range(others)]
        for answers in (element["answers"], *extra.values()):
            assert [answer["turn_id"] for answer in answers] == turns
            for answer in answers:
                if answer["span_start"] == -1:
                    assert (answer["span_end"], answer["span_text"], answer["input_text"]) == (-1, "unknown", "unknown")
                    unanswerable += 1
                else:
                    assert element["story"][answer["span_start"] : answer["span_end"]] == answer["span_text"] != ""
    assert unanswerable > 0
