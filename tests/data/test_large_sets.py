"""Large data sets: read when they are asked for, encoded on several processes, kept on the disk, long texts cut."""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
from functools import partial

import pytest
from byte_tokenizer import build

from peftkit.data import encoding, long_texts, records, tables
from peftkit.data.batches import Batches
from peftkit.data.cache import Cache, mark
from peftkit.data.encode import Encoded, encode
from peftkit.data.example import question
from peftkit.data.rows import EncodedRows, RowBlock
from peftkit.data.template import TEMPLATES
from peftkit.errors import PeftkitError
from peftkit.models.tokenizer import load_tokenizer
from peftkit.recipe import ModelSection, load
from peftkit.tasks import source
from peftkit.training.encoded import Encoder
from peftkit.training.preparation import digest

PLAIN = TEMPLATES["plain"]


def write(path, count, prompt="What is {n} and {n}?"):
    records = [{"prompt": prompt.format(n=n // 3), "completion": f"It is {2 * n}."} for n in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def recipe(path, **dataset):
    return load({"model": "bundled/tiny", "method": "lora", "dataset": {"name": "jsonl", "path": str(path), **dataset}})


@pytest.fixture
def tokenizer():
    return load_tokenizer(ModelSection(name="bundled/tiny"))


@pytest.fixture
def parsed(monkeypatch):
    """The numbers of the lines that are parsed."""
    numbers, parse = [], records.parse_line

    def counted(line):
        numbers.append(line.number)
        return parse(line)

    monkeypatch.setattr(tables, "parse_line", counted)
    return numbers


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Chunks of seven examples, one process, and a cache of the test's own."""
    monkeypatch.setattr(encoding, "CHUNK", 7)
    monkeypatch.setattr(encoding, "processes", lambda: 1)
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


def encoded(path, tokenizer, template=PLAIN, **dataset):
    asked = recipe(path, **dataset)
    from peftkit.estimation.asked import objective_of

    data = source.load(asked.dataset, "train")
    return Encoder(asked, template, tokenizer).encode(data, "train", objective_of(asked.train))[0]


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "encoded").glob("*"))


# Reading ------------------------------------------------------------------------------------------------------------


def test_as_many_lines_are_parsed_as_are_asked_for(tmp_path, parsed):
    data = source.load(recipe(write(tmp_path / "train.jsonl", 50)).dataset, "train")
    assert len(data.examples) == 50
    assert not parsed
    assert [example.id for example in data.examples[:2]] == ["train.jsonl:1", "train.jsonl:2"]
    assert data.examples[40].id == "train.jsonl:41"
    assert data.examples[-1].id == "train.jsonl:50"
    assert parsed == [1, 2, 41, 50]


def test_a_part_of_the_data_reads_that_part_alone(tmp_path, parsed):
    path = write(tmp_path / "train.jsonl", 50)
    few = list(source.load(recipe(path, limit=3).dataset, "train").examples)
    assert len(few) == 3
    assert len(parsed) == 3


def test_a_limited_evaluation_makes_the_examples_of_its_inputs_and_finds_all_their_references(tmp_path, parsed):
    path = write(tmp_path / "test.jsonl", 3000)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "What is 1 and 1?", "completion": "Two."}) + "\n")
    section = recipe(tmp_path).dataset
    few = source.load(section, "test", grouped=True, limit=2).examples
    assert [example.references for example in few] == [
        ("It is 0.", "It is 2.", "It is 4."),
        ("It is 6.", "It is 8.", "It is 10.", "Two."),
    ]
    assert len(parsed) < 300
    assert few == source.load(section, "test", grouped=True).examples[:2]


def test_lines_end_at_a_line_feed_and_are_told_by_their_numbers(tmp_path):
    path = tmp_path / "train.jsonl"
    line = json.dumps({"prompt": "a\u2028b", "completion": "c"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n \u00a0\n{line}\n".encode() + b"\n\x1c\n{\xff}")
    examples = source.load(recipe(path).dataset, "train").examples
    assert [example.id for example in examples[:2]] == ["train.jsonl:1", "train.jsonl:3"]
    assert examples[0].turns[0].text == "a\u2028b"
    place = path.read_bytes().index(b"\xff")
    with pytest.raises(PeftkitError, match=rf"line 6: not UTF-8 text \(byte {place}\)"):
        list(examples)


def test_a_held_out_part_is_that_of_the_keys_themselves(tmp_path):
    path = write(tmp_path / "train.jsonl", 90)
    parts = [source.load(recipe(path, validation=0.2).dataset, split).examples for split in ("train", "validation")]
    everything = list(source.load(recipe(path).dataset, "train").examples)
    inputs = list(dict.fromkeys(example.prompt for example in everything))
    held = {inputs[at] for at in source.permutation(30, 0)[:6]}
    assert list(parts[1]) == [example for example in everything if example.prompt in held]
    assert list(parts[0]) == [example for example in everything if example.prompt not in held]


# Rows as arrays -----------------------------------------------------------------------------------------------------


def test_rows_of_arrays_are_the_rows_they_were_made_of():
    rows = [Encoded([5, 6, 7], [-100, 6, 7]), Encoded([], []), Encoded([8], [8], 0), Encoded([1, 2], [-100, -100], 3)]
    arrays = EncodedRows([RowBlock.of(rows[:1]), RowBlock.of(rows[1:])])
    assert arrays == rows
    assert list(arrays) == rows
    assert arrays[1:3] == rows[1:3]
    assert arrays[-1] == rows[-1]
    assert arrays.lengths.tolist() == [3, 0, 1, 2]
    # Written down once: checkpoints hold it.
    assert digest(rows) == arrays.digest() == "4c7746fc2ba1f975b6632370a426ecba7636cb04f8d8b437cb54f38471e1b04c"
    with pytest.raises(ValueError, match="neither"):
        RowBlock.of([Encoded([1], [2])])


def test_batches_over_arrays_are_those_over_lists(tokenizer):
    rows = encode(
        [question(str(n), "a" * (n % 9 + 1), "b" * (n % 5 + 1)) for n in range(80)], PLAIN, tokenizer, 64
    ).rows
    listed, arrays = (Batches(some, batch_tokens=60, seed=3) for some in (rows, EncodedRows.of(rows)))
    assert listed.plan(1) == arrays.plan(1)
    first = arrays.plan(1)[0]
    assert arrays.collate(first, 0).labels.tolist() == listed.collate(first, 0).labels.tolist()


# Several processes --------------------------------------------------------------------------------------------------


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no process can be forked here")
def test_several_processes_give_what_one_gives(tmp_path, tokenizer, small, monkeypatch):
    path = write(tmp_path / "train.jsonl", 50)
    examples = source.load(recipe(path).dataset, "train").examples
    make = partial(encode, template=PLAIN, tokenizer=tokenizer, max_length=8)
    alone = encoding.joined(encoding.parts(examples, make))
    for workers in (2, 3):
        monkeypatch.setattr(encoding, "processes", lambda workers=workers: workers)
        told = []
        together = encoding.joined(encoding.parts(examples, make, told.append))
        assert together.rows == alone.rows
        assert together.sources.tolist() == alone.sources.tolist()
        assert together.notices(8) == alone.notices(8) != []
        assert told == [7, 14, 21, 28, 35, 42, 49, 50]
    with path.open("a") as file:
        file.write('{"prompt": 3, "completion": "c"}\n')
    with pytest.raises(PeftkitError, match="line 51: 'prompt' is a whole number"):
        encoding.joined(encoding.parts(examples, make))
    assert not multiprocessing.active_children()


def test_a_process_that_is_gone_is_told(tmp_path, small, monkeypatch):
    monkeypatch.setattr(encoding, "processes", lambda: 2)
    examples = source.load(recipe(write(tmp_path / "train.jsonl", 50)).dataset, "train").examples
    with pytest.raises(PeftkitError, match="ended before its work was done"):
        encoding.joined(encoding.parts(examples, lambda some: encoding.os._exit(9)))


# What is kept -------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_was_encoded_and_no_line_is_parsed_again(tmp_path, tokenizer, small, parsed):
    path = write(tmp_path / "train.jsonl", 50)
    cold = encoded(path, tokenizer)
    assert len(kept(tmp_path)) == 1
    plain = encode(list(source.load(recipe(path).dataset, "train").examples), PLAIN, tokenizer, 512)
    parsed.clear()
    warm = encoded(path, tokenizer)
    assert not parsed
    assert warm.rows == cold.rows == plain.rows
    assert digest(warm.rows) == digest(cold.rows) == digest(plain.rows)
    assert EncodedRows(warm.rows.blocks).digest() == warm.rows.digest()
    assert warm.sources.tolist() == list(plain.sources)
    assert warm.notices(512) == plain.notices(512)
    assert len(kept(tmp_path)) == 1


def test_a_small_set_is_not_kept(tmp_path, tokenizer, small):
    encoded(write(tmp_path / "train.jsonl", 6), tokenizer)
    assert not kept(tmp_path)


@pytest.mark.parametrize("fault", ["flip", "cut", "facts", "version"])
def test_what_is_damaged_or_of_another_version_is_made_again_with_a_notice(
    fault, tmp_path, tokenizer, small, caplog, monkeypatch
):
    path = write(tmp_path / "train.jsonl", 50)
    cold = list(encoded(path, tokenizer).rows)
    (folder,) = kept(tmp_path)
    rows, facts = folder / "rows.arrow", folder / "facts.json"
    if fault == "flip":
        content = bytearray(rows.read_bytes())
        content[len(content) // 2] ^= 1
        # What is mapped stays as it is.
        rows.unlink()
        rows.write_bytes(content)
    elif fault == "cut":
        content = rows.read_bytes()
        rows.unlink()
        rows.write_bytes(content[:100])
    elif fault == "facts":
        facts.write_text(facts.read_text().replace('"rows"', '"raws"'))
    else:
        told = json.loads(facts.read_text())
        told["versions"]["tokenizers"] = "0.0.1"
        facts.write_text(json.dumps(told))
    said = {"flip": "damaged", "cut": "damaged", "facts": "rows is missing", "version": "encoded by tokenizers 0.0.1"}
    with caplog.at_level(logging.WARNING, logger="peftkit"):
        again = encoded(path, tokenizer)
    assert said[fault] in caplog.text
    assert "encoded again" in caplog.text
    assert again.rows == cold
    caplog.clear()
    assert encoded(path, tokenizer).rows == cold
    assert not caplog.text


def test_whatever_changes_the_ids_is_kept_apart(tmp_path, tokenizer, small):
    path = write(tmp_path / "train.jsonl", 50)
    encoded(path, tokenizer)
    encoded(path, tokenizer, PLAIN.with_soft([3]))
    encoded(path, tokenizer, limit=20)
    tokenizer.add_tokens(["What is"])
    longer = encoded(path, tokenizer)
    assert len(kept(tmp_path)) == 4
    with path.open("a") as file:
        file.write('{"prompt": "p", "completion": "c"}\n')
    assert len(encoded(path, tokenizer).rows) == len(longer.rows) + 1
    other = path.rename(tmp_path / "else.jsonl")
    encoded(other, tokenizer)
    assert len(kept(tmp_path)) == 6


def test_the_mark_of_a_tokenizer_is_of_its_ids_and_its_template(tokenizer):
    before = mark(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=4)
    assert mark(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    assert mark(tokenizer) != before


def test_a_disk_that_refuses_is_told_and_the_rows_are_there(tmp_path, tokenizer, small, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="peftkit"):
        found = encoded(write(tmp_path / "train.jsonl", 50), tokenizer)
    assert len(found.rows) == 50
    assert "not kept" in caplog.text


def test_a_fault_in_the_data_is_told_as_it_is_and_nothing_is_kept(tmp_path, tokenizer, small):
    path = write(tmp_path / "train.jsonl", 50)
    with path.open("a") as file:
        file.write("{\n")
    with pytest.raises(PeftkitError, match="line 51: not valid JSON"):
        encoded(path, tokenizer)
    assert not [place for place in kept(tmp_path) if Cache(place, {}).read()]


# Long texts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Take texts of a few hundred characters for long ones."""
    monkeypatch.setattr(long_texts, "LONG", 400)
    monkeypatch.setattr("peftkit.data.encode.LONG", 400)
    monkeypatch.setattr(long_texts, "PART", 300)
    monkeypatch.setattr(long_texts, "AROUND", 40)


WORDS = "The river Hort — 1,731 km² — flows\n\n  through naïve Freguay; it's <|end|> cold.  " * 40


@pytest.mark.parametrize("name", ["bundled/tiny", "bytes"])
def test_a_text_in_parts_has_the_ids_of_the_whole(name, tokenizer, short):
    tokenizer = build() if name == "bytes" else tokenizer
    whole = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    assert long_texts.tokenize_long(WORDS, tokenizer) == whole
    assert name == "bytes" or long_texts.border(WORDS, 300, tokenizer) is not None


@pytest.mark.parametrize("max_length", [9, 20])
@pytest.mark.parametrize(
    ("prompt", "target"),
    [(WORDS, "Short."), ("Short.", WORDS), (WORDS, WORDS), ("<|end|>" + WORDS, WORDS + "x"), ("a" * 5000, "b" * 5000)],
)
def test_rows_of_texts_that_are_cut_first_are_those_of_the_whole(
    prompt, target, max_length, tokenizer, monkeypatch, short
):
    examples = [question("1", prompt, target)]
    cut = encode(examples, PLAIN, tokenizer, max_length)
    monkeypatch.setattr(long_texts, "LONG", 1 << 30)
    monkeypatch.setattr("peftkit.data.encode.LONG", 1 << 30)
    whole = encode(examples, PLAIN, tokenizer, max_length)
    assert cut == whole
    assert len(whole.rows[0].ids) == max_length


def test_little_of_a_long_prompt_is_tokenized(tokenizer, monkeypatch):
    asked, one = [], long_texts._ids
    monkeypatch.setattr(long_texts, "_ids", lambda text, tokenizer: asked.append(len(text)) or one(text, tokenizer))
    row = encode([question("1", WORDS * 400, "Short.")], PLAIN, tokenizer, 64).rows[0]
    assert len(row.ids) == 64
    assert sum(asked) < 20_000


def _encode_long(tokenizer, sender, document):
    text = WORDS * 1200
    turns = question("1", text, "Short.") if not document else source.Example("1", (source.Turn("text", text),))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = encoding.joined(
        encoding.parts([turns], partial(encode, template=PLAIN, tokenizer=tokenizer, max_length=64))
    )
    sender.send((len(found.rows), len(text), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.parametrize("document", [False, True])
def test_a_row_of_megabytes_takes_little_memory(document, tokenizer):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_encode_long, args=(tokenizer, sender, document))
    process.start()
    rows, characters, kibibytes = receiver.recv()
    process.join()
    assert characters > 3_500_000
    assert rows == 1 or document
    # Whole it took 240 bytes and more for each character.
    assert kibibytes * 1024 < (8 if not document else 60) * characters
