"""The official files of every task: what is read, and what is said of files that are not right."""

import json
import re

import pytest

from peftkit.data.example import question
from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS
from peftkit.tasks import TASKS

E2E, WEBNLG, GSM8K, COQA = (TASKS[name] for name in ("e2e", "webnlg", "gsm8k", "coqa"))


def pairs(examples):
    return [(example.turns[0].text, example.turns[-1].text) for example in examples]


# E2E


def test_e2e_reads_quotes_line_breaks_carriage_returns_and_a_byte_order_mark(tmp_path):
    content = '\ufeffmr,ref\r\n"name[A], food[B]","Two\r\nlines, ""quoted""."\r\nname[C],Plain.\r\n\r\n'
    (tmp_path / "trainset.csv").write_bytes(content.encode())
    examples = E2E.read(tmp_path, "train")
    assert pairs(examples) == [("name[A], food[B]", 'Two\r\nlines, "quoted".'), ("name[C]", "Plain.")]
    assert [example.id for example in examples] == ["trainset.csv:2", "trainset.csv:4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"mr,text\na,b\n", "line 1: the header has no column ref; it has mr, text"),
        (b"mr,ref\na,b\na\n", "line 3: 1 fields where the header has 2"),
        (b"mr,ref\na,b\n,b\n", "line 3: 'mr' is empty"),
        (b'mr,ref\na,b\nc,"open\nd,e\n', "line 3: the record that starts here is not valid CSV"),
        (b'mr,ref\n"a"b,c\n', "line 2: the record"),
        (b"mr,ref\na,\xff\n", "line 2: not UTF-8"),
    ],
)
def test_e2e_says_what_is_wrong_and_where(content, message, tmp_path):
    (tmp_path / "devset.csv").write_bytes(content)
    with pytest.raises(PeftkitError, match=message) as caught:
        E2E.read(tmp_path, "validation")
    assert "devset.csv" in str(caught.value)


def test_a_missing_file_is_told_with_what_the_folder_holds(tmp_path):
    (tmp_path / "train.csv").touch()
    (tmp_path / "more").mkdir()
    with pytest.raises(PeftkitError, match=r"has no trainset.csv; it holds more/, train.csv"):
        E2E.read(tmp_path, "train")
    with pytest.raises(PeftkitError, match="is a file; name the folder"):
        E2E.read(tmp_path / "train.csv", "train")
    with pytest.raises(PeftkitError, match="does not exist"):
        E2E.read(tmp_path / "nowhere", "train")


# WebNLG


def entry(category="Food", eid="Id1", size="1", triples=("A | b | C",), texts=("A text.",)):
    lex = "".join(f'<lex comment="good" lid="Id{n}">{text}</lex>' for n, text in enumerate(texts, 1))
    modified = "".join(f"<mtriple>{triple}</mtriple>" for triple in triples)
    return (
        f'<entry category="{category}" eid="{eid}" size="{size}">\n<originaltripleset><otriple>X | y | Z</otriple>'
        f"</originaltripleset>\n<modifiedtripleset>{modified}</modifiedtripleset>\n{lex}\n</entry>\n"
    )


def benchmark(*entries, before=""):
    inside = f"{before}<benchmark><entries>\n{''.join(entries)}</entries></benchmark>"
    return f"<?xml version='1.0' encoding='UTF-8'?>\n{inside}"


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_webnlg_reads_all_files_of_a_split_and_groups_by_entry(tmp_path):
    one = benchmark(entry(texts=("First.", "Second &amp; last.")), entry(eid="Id2", texts=()))
    two = benchmark(entry("Artist", size="2", triples=("A | b | C", "C_d | e | &quot;F, g&quot;")))
    write(tmp_path, "train/1triples/1triples_Food.xml", one)
    write(tmp_path, "train/2triples/2triples_Artist.xml", two)
    examples = WEBNLG.read(tmp_path, "train")
    assert pairs(examples) == [
        ("A | b | C", "First."),
        ("A | b | C", "Second & last."),
        ('A | b | C ; C_d | e | "F, g"', "A text."),
    ]
    grouped = WEBNLG.group(examples)
    assert [example.references for example in grouped] == [("First.", "Second & last."), ("A text.",)]
    assert [(g.meta["category"], g.meta["seen"], g.meta["size"]) for g in grouped] == [
        ("Food", True, 1),
        ("Artist", False, 2),
    ]


def test_webnlg_keeps_inputs_of_the_same_triples_apart(tmp_path):
    write(tmp_path, "test/testdata_with_lex.xml", benchmark(entry(), entry(eid="Id2", texts=("Other.",))))
    assert [g.references for g in WEBNLG.group(WEBNLG.read(tmp_path, "test"))] == [("A text.",), ("Other.",)]


BOMB = '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: not well-formed XML"),
        ("<benchmark><entries>", "not well-formed"),
        ("<html/>", "root element is <html>"),
        (benchmark(entry(), before=BOMB), "line 2: the file declares a document type"),
        (benchmark(entry(texts=("&undeclared;",))), "line 6: not well-formed XML .undefined entity"),
        (benchmark(entry(size="3")), "line 3: the size of the entry is '3', and it has 1 triples"),
        (benchmark(entry(), entry(triples=("A b C",))), "line 8: the triple 'A b C' is not 'subject"),
        (benchmark(entry(texts=("",))), "line 3: 'lex' is null"),
        (benchmark(entry()).replace('eid="Id1" ', ""), "line 3: the entry has no eid; it has category, size"),
    ],
)
def test_webnlg_says_what_is_wrong_and_where(content, message, tmp_path):
    write(tmp_path, "dev/1triples/a.xml", content)
    with pytest.raises(PeftkitError, match=message) as caught:
        WEBNLG.read(tmp_path, "validation")
    assert "a.xml" in str(caught.value)


def test_webnlg_names_the_layout_that_is_missing(tmp_path):
    write(tmp_path, "train/readme.txt", "")
    with pytest.raises(PeftkitError, match=r"has no train/<n>triples/\*.xml; it holds train/"):
        WEBNLG.read(tmp_path, "train")


# GSM8K


def test_gsm8k_validation_is_a_fixed_part_that_training_leaves_out(tmp_path):
    lines = [json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) for n in range(100)]
    write(tmp_path, "train.jsonl", "\n".join(lines))
    train, validation = (GSM8K.read(tmp_path, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (90, 10)
    assert {example.id for example in train}.isdisjoint(example.id for example in validation)
    assert GSM8K.read(tmp_path, "validation") == validation
    assert [int(example.turns[0].text[:-1]) for example in train] == sorted(int(e.turns[0].text[:-1]) for e in train)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: the line is a list"),
        ('{"question": "q"}', "line 2: the line has no 'answer'; its keys are question"),
        ('{"question": 3, "answer": "a"}', "line 2: 'question' is a whole number, and text is wanted"),
        ('{"question": " ", "answer": "a"}', "line 2: 'question' is empty"),
        ('{"question": "\\ud800", "answer": "a"}', "line 2: 'question' holds half of a surrogate pair"),
        ("[" * 100_000, "line 2: JSON nested too deeply|line 2: not valid JSON"),
        ("9" * 5000, "line 2: not valid JSON|line 2: the line is"),
    ],
)
def test_gsm8k_says_what_is_wrong_and_where(line, message, tmp_path):
    write(tmp_path, "test.jsonl", '{"question": "q", "answer": "#### 1"}\n' + line)
    with pytest.raises(PeftkitError, match=message):
        GSM8K.read(tmp_path, "test")


# CoQA


def said(*texts):
    return [{"turn_id": number, "input_text": text} for number, text in enumerate(texts, 1)]


def conversation(**changes):
    content = {
        "id": "c1",
        "source": "mctest",
        "story": "Ann has a cat.",
        "questions": said("Who?", "What?"),
        "answers": said("Ann", "a cat"),
        "additional_answers": {"0": said("Ann", "cat"), "1": said("she", "a cat")},
    }
    return {key: value for key, value in (content | changes).items() if value is not ...}


def coqa(folder, *conversations, name="coqa-dev-v1.0.json"):
    return write(folder, name, json.dumps({"version": "1.0", "data": list(conversations)}))


def test_coqa_gives_a_turn_the_story_and_the_turns_before_it(tmp_path):
    coqa(tmp_path, conversation())
    examples = COQA.read(tmp_path, "test")
    assert pairs(examples) == [
        ("Ann has a cat.\n\nQ: Who?\nA:", "Ann"),
        ("Ann has a cat.\n\nQ: Who?\nA: Ann\nQ: What?\nA:", "a cat"),
    ]
    assert [example.references for example in examples] == [("Ann", "Ann", "she"), ("a cat", "cat", "a cat")]
    assert dict(examples[1].meta) == {"conversation": "c1", "turn": 2, "source": "mctest"}
    assert COQA.group(examples) == examples
    assert COQA.read(tmp_path, "validation") == examples


def test_coqa_prefers_the_official_file_and_says_what_it_took(tmp_path, caplog):
    coqa(tmp_path, conversation(id="b"), name="coqa-dev-b.json")
    coqa(tmp_path, conversation(id="a"), name="coqa-dev-a.json")
    assert COQA.read(tmp_path, "test")[0].id == "a/1"
    assert "reading coqa-dev-a.json, not coqa-dev-b.json" in caplog.text
    coqa(tmp_path, conversation(id="official"))
    assert COQA.read(tmp_path, "test")[0].id == "official/1"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (conversation(story=...), r"data\[1\]: the conversation has no 'story'"),
        (conversation(story=[]), r"data\[1\]: 'story' is a list, and text is wanted"),
        (conversation(answers=said("Ann")), r"data\[1\]: 2 questions, and 1 answers"),
        (conversation(additional_answers={"0": said("Ann")}), r"data\[1\]: 2 questions, and 1 additional_answers.0"),
        (conversation(questions=[{"turn_id": 2, "input_text": "x"}] * 2), r"questions\[0\]: 'turn_id' is 2, and 1 is"),
        (conversation(questions=[{"turn_id": True, "input_text": "x"}]), r"questions\[0\]: 'turn_id' is true or false"),
        (conversation(questions=["Who?"]), r"questions\[0\]: the turn is text, and a JSON object"),
        (conversation(answers=said("Ann", "")), r"answers\[1\]: 'input_text' is empty"),
        ("c2", r"data\[1\]: the conversation is text"),
    ],
)
def test_coqa_says_what_is_wrong_and_where(broken, message, tmp_path):
    coqa(tmp_path, conversation(), broken)
    with pytest.raises(PeftkitError, match=message):
        COQA.read(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "the file is a list"),
        ("{}", "no 'data'; its keys are none"),
        ("", "not valid JSON"),
    ],
)
def test_coqa_refuses_other_files(content, message, tmp_path):
    write(tmp_path, "coqa-train-v1.0.json", content)
    with pytest.raises(PeftkitError, match=message):
        COQA.read(tmp_path, "train")


# Files of predictions


def test_predictions_are_scored_against_the_official_file(tmp_path):
    references = write(
        tmp_path, "testset_w_refs.csv", "mr,ref\na,The fig is near the old river.\na,Near.\nb,Bo eats a fig.\n"
    )
    texts = ["The fig is near the old river.", "Bo eats a fig."]
    lines = write(tmp_path, "out.txt", "\n".join(texts) + "\n")
    records = write(tmp_path, "out.jsonl", "\n".join(json.dumps({"prediction": text}) for text in texts))
    scores = E2E.score_files(lines, references)
    assert scores["BLEU-4"] == pytest.approx(1.0)
    assert E2E.score_files(records, references) == scores
    plain = write(tmp_path, "refs.txt", "The fig is near the old river.\nNear.\n\nBo eats a fig.\n")
    assert E2E.score_files(lines, plain) == scores


def test_a_wrong_number_of_predictions_is_explained(tmp_path):
    references = write(tmp_path, "testset_w_refs.csv", "mr,ref\na,A b.\na,B.\n")
    with pytest.raises(PeftkitError, match="2 predictions for 1 inputs"):
        E2E.score_files(write(tmp_path, "out.txt", "A\nB\n"), references)


def test_coqa_predictions_in_the_official_form(tmp_path):
    references = coqa(tmp_path, conversation())
    answers = [{"id": "c1", "turn_id": 2, "answer": "a cat"}]
    predictions = write(tmp_path, "out.json", json.dumps(answers))
    # Whichever answer is left out, another one equals the prediction, articles aside; the turn without one counts as 0.
    scores = COQA.score_files(predictions, references)
    assert (scores["em"], scores["missing"], scores["turns"]) == (pytest.approx(50.0), 1, 2)
    lines = write(tmp_path, "out.txt", "Ann\na cat\n")
    assert COQA.score_files(lines, references)["em"] == pytest.approx(100.0)


# Parts of a data set


def test_coqa_is_scored_by_domain_from_its_examples(tmp_path):
    coqa(tmp_path, conversation(), conversation(id="c2", source="cnn"), conversation(id="c3", source=None))
    examples = COQA.group(COQA.read(tmp_path, "test"))
    scores = COQA.score(examples, ["Ann", "a cat", "x", "a cat", "x", "x"])
    found = [scores[name] for name in ("em", "children_stories/em", "news/em", "in_domain/em")]
    assert found == pytest.approx([50, 100, 50, 75])
    assert {name.partition("/")[0] for name in scores} == {"em", "f1", "children_stories", "news", "in_domain"}


def test_webnlg_is_scored_on_seen_and_unseen_categories_where_there_are_both(tmp_path):
    examples = [question(name, name, "one two", entry=name, seen=name == "a") for name in ("a", "b", "c")]
    scores = WEBNLG.score(examples, ["one two", "one", "x"])
    assert scores["seen/BLEU-1"] == pytest.approx(1.0)
    assert scores["unseen/BLEU-1"] == WEBNLG.score_texts(["one", "x"], [["one two"]] * 2)["BLEU-1"]
    assert scores["BLEU-1"] == WEBNLG.score_texts(["one two", "one", "x"], [["one two"]] * 3)["BLEU-1"]
    assert not [name for name in WEBNLG.score(examples[1:], ["one", "x"]) if "/" in name]


# The real files


@pytest.mark.parametrize(
    ("name", "split", "inputs", "references"),
    [
        ("e2e", "train", 4862, 42061),
        ("e2e", "validation", 547, 4672),
        ("e2e", "test", 485, 3655),
        ("webnlg", "train", 6940, 18102),
        ("webnlg", "validation", 872, 2268),
        ("webnlg", "test", 1474, 3900),
        ("gsm8k", "train", 6973, 6973),
        ("gsm8k", "validation", 500, 500),
        ("gsm8k", "test", 1040, 1040),
        ("coqa", "train", 446, 446),
        ("coqa", "test", 150, 150),
    ],
)
def test_the_real_files_hold_what_their_description_counts(name, split, inputs, references, shared_data):
    task = TASKS[name]
    examples = task.read(shared_data / name, split)
    assert len(examples) == references
    assert len({example.id for example in examples}) == references
    assert len(task.group(examples)) == inputs


def test_the_real_e2e_inputs_are_in_the_order_of_the_official_list(shared_data):
    grouped = E2E.group(E2E.read(shared_data / "e2e", "test"))
    listed = re.findall(r'^"(name\[.*)"$', (shared_data / "e2e" / "testset.csv").read_text(), re.MULTILINE)
    assert [example.turns[0].text for example in grouped] == listed


def test_the_real_unseen_categories(shared_data):
    grouped = WEBNLG.group(WEBNLG.read(shared_data / "webnlg", "test"))
    unseen = [example for example in grouped if not example.meta["seen"]]
    assert (len(unseen), sum(len(example.references) for example in unseen)) == (713, 1948)


def test_the_real_line_breaks_inside_quotes(shared_data):
    examples = E2E.read(shared_data / "e2e", "train")
    assert sum("\n" in example.turns[-1].text for example in examples) == 2


def test_the_real_coqa_has_additional_answers(shared_data):
    assert {len(example.references) for example in COQA.read(shared_data / "coqa", "test")} == {4}


def test_every_metric_of_a_task_is_registered():
    assert {metric for _, task in TASKS.items() for metric in task.metrics} <= set(METRICS.names())
