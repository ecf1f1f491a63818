"""A user's own records as people have them: other files, tools, parts of content, weights, keys of other names."""

import json

import pytest

from peftkit.data.example import Turn
from peftkit.errors import PeftkitError
from peftkit.recipe import load
from peftkit.tasks import TASKS
from peftkit.tasks.source import load as load_data

CHAT = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def read(tmp_path, *records):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return TASKS["jsonl"].read(path, "train")


def turns(tmp_path, record):
    (example,) = read(tmp_path, record)
    return [(turn.role, turn.text) for turn in example.turns]


def section(path, **keys):
    return load(
        {"model": "bundled/tiny", "method": "lora", "dataset": {"name": "jsonl", "path": str(path)} | keys}
    ).dataset


@pytest.mark.parametrize(
    "record",
    [
        {"messages": CHAT, "system": "s"},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s"},
        {"prompt": "u", "completion": "a", "system": "s"},
        {"instruction": "u", "output": "a", "system": "s", "id": 7},
        {"prompt": CHAT[:1], "completion": CHAT[1:], "system": "s"},
        {"messages": [{"role": "developer", "content": "s"}, *CHAT], "system": ""},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "s"}]}, *CHAT]},
    ],
)
def test_a_system_text_is_learnt_from_wherever_it_stands(record, tmp_path):
    assert turns(tmp_path, record) == [("system", "s"), ("user", "u"), ("assistant", "a")]


def test_tools_and_calls_are_carried_in_one_form(tmp_path):
    openai = {
        "tools": [{"type": "function", "function": WEATHER}],
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "wet"},
            {"role": "assistant", "content": "Yes."},
        ],
    }
    sharegpt = {
        "tools": json.dumps([WEATHER]),
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})},
            {"from": "observation", "value": "wet"},
            {"from": "gpt", "value": "Yes."},
        ],
    }
    one, other = read(tmp_path, openai, sharegpt)
    assert one.turns == other.turns
    tools, _, call, result, _ = one.turns
    assert json.loads(tools.text) == [{"type": "function", "function": WEATHER}]
    assert json.loads(call.more) == {"tool_calls": [CALL]}
    assert call.answers
    assert (result.role, result.text) == ("tool", "wet")


def test_a_weight_of_zero_leaves_an_answer_out_of_the_loss(tmp_path):
    (example,) = read(tmp_path, {"messages": [CHAT[0], CHAT[1] | {"weight": 0}, *CHAT]})
    assert [turn.answers for turn in example.turns] == [False, False, False, True]


def test_an_empty_answer_is_not_learnt(tmp_path):
    (example,) = read(tmp_path, {"messages": [CHAT[0], {"role": "assistant", "content": " "}, *CHAT]})
    assert [turn.answers for turn in example.turns] == [False, False, False, True]


@pytest.mark.parametrize("record", [{"text": "once"}, {"prompt": "", "completion": "once"}])
def test_a_text_alone_is_a_document(record, tmp_path):
    (example,) = read(tmp_path, record)
    assert example.turns == (Turn("text", "once"),)
    with pytest.raises(PeftkitError, match=r"train\.jsonl:1 is a document"):
        TASKS["jsonl"].group([example])


def test_earlier_exchanges_stand_in_front(tmp_path):
    record = {"instruction": "i", "input": "x", "output": "o", "history": [["a", "b"]]}
    assert turns(tmp_path, record) == [("user", "a"), ("assistant", "b"), ("user", "i\n\nx"), ("assistant", "o")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": CHAT, "sytem": "s"}, r"line 1: the record has 'sytem', which is not read. Did you mean 'system'"),
        ({"prompt": "u", "completion": "a", "rejected": "b"}, r"'rejected', which .*`dataset.ignore: \[rejected\]`"),
        (
            {"messages": [CHAT[0] | {"tool_call": []}, CHAT[1]]},
            r"messages\[0\]: the message has 'tool_call', .*tool_calls",
        ),
        ({"messages": [{"role": "system", "content": "s"}, *CHAT], "system": "t"}, "keep one of them"),
        ({"messages": [CHAT[0], CHAT[1] | {"weight": 0.5}]}, r"messages\[1\]: 'weight' is 0.5; allowed is 0"),
        ({"messages": [CHAT[0], CHAT[1] | {"tool_calls": [{"name": 3}]}]}, "'name' is a whole number"),
        ({"messages": CHAT, "tools": "{"}, "'tools': '{' is not JSON"),
        ({"messages": CHAT, "tools": [{"function": {}}]}, r"tools\[0\]: the tool has no 'name'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[1]]}, "a part of the type 'image'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "u", "wieght": 0}]}, CHAT[1]]},
            r"content\[0\]: the part has 'wieght', which is not read",
        ),
        ({"messages": CHAT, "tools": "[" * 99_999}, "is not JSON"),
        ({"messages": [CHAT[0], CHAT[1] | {"tool_calls": [{"name": "f", "arguments": "[" * 99_999}]}]}, "is not JSON"),
        ({"messages": CHAT, "tools": [WEATHER | {"description": "\ud800"}]}, "tools: a text holds half of a surrogate"),
        ({"messages": [CHAT[0] | {"name": "\udc00"}, CHAT[1]]}, r"messages\[0\]: a text holds half of a surrogate"),
        ({"prompt": "", "completion": ""}, "'prompt' is empty"),
        ({"instruction": "i", "output": "o", "history": ["a"]}, "'history' is a list of pairs"),
    ],
)
def test_nothing_that_could_be_learnt_is_left_out_without_a_word(record, message, tmp_path):
    with pytest.raises(PeftkitError, match=message):
        read(tmp_path, record)


def test_files_of_every_kind_hold_the_same_records(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [{"prompt": "a, b", "completion": " c\n"}, {"prompt": "d", "completion": "e"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "train.json").write_text(json.dumps(records))
    (tmp_path / "train.csv").write_text('prompt,completion\n"a, b"," c\n"\nd,e\n')
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "train.parquet")
    kinds = [TASKS["jsonl"].read(tmp_path / f"train.{kind}", "train") for kind in ("jsonl", "json", "csv", "parquet")]
    for examples in kinds[1:]:
        assert [example.turns for example in examples] == [example.turns for example in kinds[0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"prompt": "p"}', "the file is an object, and a JSON array of objects is wanted.*a.jsonl"),
        ("a.json", '[{"prompt": "p", "completion": "c"}, 3]', "a.json, record 2: it is a whole number"),
        ("a.jsonl", "\ufeff", "a.jsonl is empty; records are wanted"),
        ("a.parquet", "no", "cannot be read as Parquet"),
        ("a.csv", "", "a.csv is empty; a CSV file with a header"),
        ("a.csv", "prompt,completion,prompt\np,c,q\n", "a.csv, line 1: two columns are called 'prompt'"),
        ("a.csv", "prompt,answer\np,c\n", "a.csv, line 2: the record fits no form; its keys are prompt, answer"),
    ],
)
def test_a_file_that_is_no_table_is_explained(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PeftkitError, match=message):
        TASKS["jsonl"].read(tmp_path / name, "train")


def test_a_table_of_other_values_than_json_s_is_explained(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    messages = [[CHAT[0] | {"name": b"\xff"}, CHAT[1] | {"name": b"x"}]]
    parquet.write_table(pyarrow.table({"messages": messages}), tmp_path / "bytes.parquet")
    with pytest.raises(PeftkitError, match=r"bytes.parquet, row 1, messages\[0\]: .* no JSON values .*bytes"):
        TASKS["jsonl"].read(tmp_path / "bytes.parquet", "train")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "completion", "prompt"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(PeftkitError, match=r"twice.parquet: two columns are called 'prompt'"):
        TASKS["jsonl"].read(tmp_path / "twice.parquet", "train")


def test_keys_of_parts_can_be_ignored(tmp_path):
    path = tmp_path / "train.jsonl"
    part = {"type": "text", "text": "u", "cache_control": {"type": "ephemeral"}}
    path.write_text(json.dumps({"messages": [CHAT[0] | {"content": [part]}, CHAT[1]]}))
    (example,) = load_data(section(path, ignore=["cache_control"]), "train").examples
    assert [turn.text for turn in example.turns] == ["u", "a"]


def test_keys_of_other_names_and_keys_to_ignore(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("Question,answer,topic\nq,a,t\n")
    columns = {"prompt": "Question", "completion": "answer"}
    (example,) = load_data(section(path, columns=columns, ignore=["topic"]), "train").examples
    assert [turn.text for turn in example.turns] == ["q", "a"]
    with pytest.raises(PeftkitError, match=r"line 2: the record has 'topic', which is not read"):
        list(load_data(section(path, columns=columns), "train").examples)
    with pytest.raises(PeftkitError, match=r"reads 'prompt' from 'question', .*Did you mean 'Question'"):
        list(load_data(section(path, columns={"prompt": "question"}), "train").examples)
    with pytest.raises(PeftkitError, match="from 'topic', and there is a 'answer' too"):
        list(load_data(section(path, columns={"answer": "topic"}), "train").examples)
    with pytest.raises(PeftkitError, match="e2e reads official files"):
        load_data(section(path, name="e2e", columns=columns), "train")


def test_a_validation_part_is_held_out_by_inputs(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": str(n % 20), "completion": str(n)}) for n in range(40)))
    keys = section(path, validation=0.1)
    train, held = (load_data(keys, split).examples for split in ("train", "validation"))
    assert (len(train), len(held)) == (36, 4)
    assert not {example.prompt for example in train} & {example.prompt for example in held}
    assert [example.id for example in load_data(section(path, validation=0.1, seed=1), "validation").examples] != [
        example.id for example in held
    ]
    assert len(load_data(section(path, validation=0.1, limit=5), "validation").examples) == 4
    path.write_text('{"prompt": "p", "completion": "c"}')
    with pytest.raises(PeftkitError, match="nothing is left to train on"):
        list(load_data(keys, "train").examples)


def test_a_system_turn_is_folded_into_the_first_question(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "system": "s"}))
    (example,) = load_data(section(path, system="fold"), "train").examples
    assert [(turn.role, turn.text) for turn in example.turns] == [("user", "s\n\nu"), ("assistant", "a")]
