"""A user's own files: the form of every line told by its keys, splits by their names."""

import json

import pytest

from peftkit.errors import PeftkitError
from peftkit.tasks import TASKS

JSONL, TEXT = TASKS["jsonl"], TASKS["text"]


def write(folder, name, *records):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


def test_every_form_in_one_file(tmp_path):
    path = write(
        tmp_path,
        "train.jsonl",
        {"prompt": "p", "completion": " c"},
        {"instruction": "i", "input": "", "output": "o"},
        {"instruction": "i", "input": "x", "output": "o"},
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        "",
        {"instruction": "i", "input": None, "output": "o"},
    )
    turns = [[(turn.role, turn.text) for turn in example.turns] for example in JSONL.read(path, "train")]
    assert turns == [
        [("user", "p"), ("assistant", " c")],
        [("user", "i"), ("assistant", "o")],
        [("user", "i\n\nx"), ("assistant", "o")],
        [("system", "s"), ("user", "u"), ("assistant", "a")],
        [("user", "u"), ("assistant", "a")],
        [("user", "i"), ("assistant", "o")],
    ]
    assert [example.references for example in JSONL.read(path, "train")][:2] == [(" c",), ("o",)]
    assert JSONL.read(path, "train")[-1].id == "train.jsonl:7"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "answer": "a"}, "line 2: the record fits no form; its keys are question, answer. Allowed"),
        ({"prompt": "p", "completion": "c", "messages": []}, "line 2: the record fits prompt and completion and chat"),
        ({"prompt": "", "completion": ""}, "line 2: 'prompt' is empty"),
        ({"prompt": "p", "completion": 3}, "line 2: 'completion' is a whole number"),
        ({"instruction": "i", "input": 3, "output": "o"}, "line 2: 'input' is a whole number"),
        ({"messages": []}, "line 2: 'messages' is a list of no message"),
        ({"messages": "hi"}, "line 2: 'messages' is text"),
        ({"messages": [{"role": "user", "content": "u"}]}, "line 2: the last message is the user's"),
        (
            {"messages": [{"role": "tol", "content": "u"}]},
            r"line 2, messages\[0\]: the role 'tol' is unknown. Did you mean 'tool'\? Allowed",
        ),
        ({"messages": [{"role": "user"}]}, r"line 2, messages\[0\]: the message has no 'content'; its keys are role"),
        ({"messages": ["hi"]}, r"line 2, messages\[0\]: the message is text"),
        ({"conversations": [{"from": "gpt", "value": None}]}, r"conversations\[0\]: 'value' is null"),
        ("not JSON", "line 2: not valid JSON"),
    ],
)
def test_a_line_of_no_form_is_explained(record, message, tmp_path):
    path = write(tmp_path, "train.jsonl", {"prompt": "p", "completion": "c"}, record)
    with pytest.raises(PeftkitError, match=message) as caught:
        JSONL.read(path, "train")
    assert "train.jsonl, line 2" in str(caught.value)


@pytest.mark.parametrize("name", ["validation.jsonl", "valid.jsonl", "val.jsonl", "dev.jsonl", "dev/part.jsonl"])
def test_splits_of_a_folder_are_found_by_name(name, tmp_path):
    write(tmp_path, "train.jsonl", {"prompt": "t", "completion": "c"})
    write(tmp_path, name, {"prompt": "v", "completion": "c"})
    assert [example.turns[0].text for example in JSONL.read(tmp_path, "validation")] == ["v"]
    with pytest.raises(PeftkitError, match=r"has no test.jsonl or .*for the split 'test'; it holds .*train.jsonl"):
        JSONL.read(tmp_path, "test")


def test_a_single_file_is_the_training_split_unless_its_name_says_otherwise(tmp_path):
    data = write(tmp_path, "data.jsonl", {"prompt": "p", "completion": "c"})
    test = write(tmp_path, "test.jsonl", {"prompt": "p", "completion": "c"})
    assert len(JSONL.read(data, "train")) == len(JSONL.read(test, "test")) == 1
    with pytest.raises(PeftkitError, match="holds the train split; for the split 'test' name a folder"):
        JSONL.read(data, "test")
    with pytest.raises(PeftkitError, match=r"ends in '.tsv'; allowed: .jsonl"):
        JSONL.read(write(tmp_path, "data.tsv", "a,b"), "train")
    with pytest.raises(PeftkitError, match="does not exist"):
        JSONL.read(tmp_path / "no.jsonl", "train")
    with pytest.raises(PeftkitError, match="is empty"):
        JSONL.read(write(tmp_path, "train.jsonl", "", "\n"), "train")


def test_references_of_the_same_prompt_are_grouped(tmp_path):
    path = write(tmp_path, "test.jsonl", *({"prompt": p, "completion": c} for p, c in ("ax", "by", "az")))
    assert [example.references for example in JSONL.group(JSONL.read(path, "test"))] == [("x", "z"), ("y",)]


def test_documents(tmp_path):
    write(tmp_path, "train/a.txt", "One\n\ndocument.\n")
    write(tmp_path, "train/b.jsonl", {"text": "Two."}, {"text": "Three."})
    write(tmp_path, "test.txt", "Four.")
    documents = TEXT.read(tmp_path, "train")
    assert [[(turn.role, turn.text) for turn in document.turns] for document in documents] == [
        [("text", "One\n\ndocument.\n")],
        [("text", "Two.")],
        [("text", "Three.")],
    ]
    assert TEXT.read(tmp_path, "test")[0].turns[0].text == "Four."
    assert TEXT.group(documents) == documents


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", " \n", "is empty; documents are wanted"),
        ("train.jsonl", '{"content": "x"}', "line 1: the value has no 'text'; its keys are content"),
        ("train.jsonl", '{"text": ["x"]}', "line 1: 'text' is a list, and text is wanted"),
    ],
)
def test_what_is_no_document_is_explained(name, content, message, tmp_path):
    with pytest.raises(PeftkitError, match=message):
        TEXT.read(write(tmp_path, name, content), "train")
