"""Small data sets in every form that is read: the files of each, and the records that they are made of."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALL = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"town": "Ghent"}}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Tell it.", "parameters": {"type": "object"}},
}
CHATS = [
    {
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}],
        "system": "Be kind.",
    },
    {
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "How is it in Ghent?"}]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": "It rains.", "weight": 1},
        ],
    },
    {
        "conversations": [
            {"from": "system", "value": "Short."},
            {"from": "human", "value": "One?"},
            {"from": "gpt", "value": "1", "weight": 0},
            {"from": "human", "value": "Two?"},
            {"from": "gpt", "value": "2"},
        ],
        "id": 3,
    },
    {"prompt": [{"role": "user", "content": "Née où?"}], "completion": [{"role": "assistant", "content": "À Gand."}]},
]
PAIRS = [
    {"prompt": "Red or blue?", "completion": "Blue, Café ☕."},
    {"prompt": "Two\nlines?", "completion": 'Yes, "two",\nof course.'},
    {"prompt": "And green?", "completion": "Never."},
]
ALPACA = [
    {"instruction": "Add.", "input": "1 + 1", "output": "2", "history": [["Count.", "1"]]},
    {"instruction": "Name a river.", "input": "", "output": "Leie", "system": "Be short."},
]
LABELLED = [
    {"premise": f"It is {word}.", "hypothesis": "It is red.", "label": int(word == "red"), "idx": number}
    for number, word in enumerate(["red", "blue", "red", "green"])
]
DOCUMENTS = [{"text": "One document."}, {"text": "Zwei Füße.\nUnd mehr."}, {"text": "x " * 150}]
MEANINGS = [
    {"mr": "name[Café Leie], food[Belgian]", "ref": 'Café Leie serves "Belgian" food.'},
    {"mr": "name[Café Leie], food[Belgian]", "ref": "Belgian food,\nat Café Leie."},
    {"mr": "name[Old Gate], area[riverside]", "ref": "Old Gate is by the river."},
]
PROBLEMS = [
    {"question": f"{n} apples and one. How many?", "answer": f"{n}+1=<<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
    for n in range(20)
]
ASKED = [{"turn_id": 1, "input_text": "Who?"}, {"turn_id": 2, "input_text": "Which cat?"}]
SAID = [{"turn_id": 1, "input_text": "Ann", "span_start": 0}, {"turn_id": 2, "input_text": "a “grey” one"}]
STORIES = {
    "version": "1.0",
    "data": [
        {
            "id": f"c{number}",
            "source": source,
            "story": "Ann has a grey cat.",
            "questions": ASKED,
            "answers": SAID,
            "additional_answers": {"0": SAID, "1": SAID},
        }
        for number, source in enumerate([None, "wikipedia"])
    ],
}
ENTRY = """<entry category="Food" eid="Id{n}" size="1">
<modifiedtripleset><mtriple>Waffle_{n} | region | "Liège"</mtriple></modifiedtripleset>
<lex comment="good" lid="Id1">Waffle {n} &amp; Liège.</lex><lex lid="Id2">From Liège.</lex></entry>
"""


def json_lines(records: Any) -> bytes:
    """Write records as JSON lines; what UTF-8 cannot hold is escaped."""
    return b"".join(
        json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for record in _listed(records)
    )


def json_array(records: Any) -> bytes:
    """Write a value as JSON."""
    return json.dumps(records, indent=1).encode()


def table(records: Any) -> bytes:
    """Write records as CSV, under the names of the first that has some; what is no record is a row of one field."""
    rows = [record if isinstance(record, dict) else {"": record} for record in _listed(records)]
    heads = list(next((row for row in rows if row), {}))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(heads)
    writer.writerows([[*(row.get(head, "") for head in heads), *(row.keys() - heads)] for row in rows])
    return text.getvalue().encode("utf-8", "replace")


def parquet(records: Any) -> bytes:
    """Write records as Parquet, each column in a type that holds it, or as text where none does."""
    import pyarrow
    import pyarrow.parquet

    rows = [record if isinstance(record, dict) else {"value": record} for record in _listed(records)]
    columns = {}
    for head in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(head) for row in rows]
        try:
            columns[head.encode("utf-8", "replace").decode()] = pyarrow.array(values)
        except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError):
            columns[head.encode("utf-8", "replace").decode()] = pyarrow.array([ascii(value) for value in values])
    into = pyarrow.BufferOutputStream()
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), into)
    except pyarrow.ArrowNotImplementedError:
        # An object without a key is a type that Parquet does not have.
        columns = {head: [ascii(value) for value in values.to_pylist()] for head, values in columns.items()}
        pyarrow.parquet.write_table(pyarrow.table(columns), into)
    return into.getvalue().to_pybytes()


def entries(records: Any) -> bytes:
    """Write texts of XML as one file of entries."""
    body = "".join(map(str, _listed(records)))
    return f'<?xml version="1.0"?>\n<benchmark><entries>{body}</entries></benchmark>'.encode("utf-8", "replace")


def text(records: Any) -> bytes:
    """Write documents into one text."""
    return "\n".join(str(record) for record in _listed(records)).encode("utf-8", "replace")


def _listed(records: Any) -> list[Any]:
    return records if isinstance(records, list) else [records]


@dataclass(frozen=True)
class Form:
    """A form of data: what a recipe calls it, its records, how they are written, and the file of each split."""

    name: str
    records: Any
    write: Callable[[Any], bytes]
    files: tuple[str, ...]
    """Of training, validation and test."""
    objective: str | None = None


def named(ending: str) -> tuple[str, ...]:
    """Return the files of a user's own data."""
    return tuple(f"{split}.{ending}" for split in ("train", "validation", "test"))


FORMS = (
    Form("jsonl", CHATS, json_lines, named("jsonl")),
    Form("jsonl", [*PAIRS, *ALPACA, *CHATS[:1]], json_lines, named("jsonl")),
    Form("jsonl", [*CHATS, *PAIRS], json_array, named("json")),
    Form("jsonl", PAIRS, table, named("csv")),
    Form("jsonl", PAIRS, parquet, named("parquet")),
    Form("jsonl", CHATS[:1] * 2, parquet, named("parquet")),
    Form("jsonl", LABELLED, json_lines, named("jsonl"), objective="classification"),
    Form("text", DOCUMENTS, json_lines, named("jsonl")),
    Form("text", ["One.", "Two."], text, ("train.txt", "validation.txt", "test.txt")),
    Form("e2e", MEANINGS, table, ("trainset.csv", "devset.csv", "testset_w_refs.csv")),
    Form("gsm8k", PROBLEMS, json_lines, ("train.jsonl", "test.jsonl")),
    Form("coqa", STORIES, json_array, ("coqa-train-v1.0.json", "coqa-dev-v1.0.json")),
    Form(
        "webnlg",
        [ENTRY.format(n=n) for n in range(3)],
        entries,
        ("train/1triples/f.xml", "dev/1triples/f.xml", "test/testdata_with_lex.xml"),
    ),
)


def write(form: Form, folder: Path) -> list[Path]:
    """Write the files of a form; returns them."""
    paths = [folder / name for name in form.files]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(form.write(form.records))
    return paths
