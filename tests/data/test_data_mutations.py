"""Damaged data files: every outcome is success or an error that says where the fault is."""

import json
import random

import pytest
from byte_tokenizer import build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftkit.data.encode import encode
from peftkit.data.template import TEMPLATES
from peftkit.errors import PeftkitError
from peftkit.tasks import TASKS

TOKENIZER = build(bos=True)
QUESTIONS = [{"turn_id": 1, "input_text": "Who?"}, {"turn_id": 2, "input_text": "Née où?"}]
ANSWERS = [{"turn_id": 1, "input_text": "Ann", "span_start": 0}, {"turn_id": 2, "input_text": "a “cat”"}]
COQA = {
    "id": "c",
    "source": None,
    "story": "Ann has a cat.",
    "questions": QUESTIONS,
    "answers": ANSWERS,
    "additional_answers": {"0": ANSWERS},
}
ENTRY = (
    '<entry category="Food" eid="Id1" size="1"><modifiedtripleset><mtriple>A_é | b | "C"</mtriple></modifiedtripleset>'
    '<lex comment="good" lid="Id1">A &amp; b.</lex><lex comment="" lid="Id2">Some text.</lex></entry>\n'
)
LINES = (
    {"prompt": "p", "completion": "ç"},
    {"instruction": "i", "input": "x", "output": "o"},
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
)


INSTRUCTION = {"instruction": "i", "input": "x", "output": "o"}


def lines(*records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


FILES = {
    "e2e": ("trainset.csv", 'mr,ref\r\n"name[Café], food[B]","Two\nlines, ""quoted""."\r\nname[C],Plain.\r\n'),
    "webnlg": ("train/1triples/f.xml", f'<?xml version="1.0"?>\n<benchmark><entries>{ENTRY * 2}</entries></benchmark>'),
    "gsm8k": ("train.jsonl", lines(*({"question": f"{n}+1?", "answer": f"#### {n + 1}"} for n in range(3)))),
    "coqa": ("coqa-train-v1.0.json", json.dumps({"version": "1.0", "data": [COQA, COQA]}, indent=1)),
    "math_10k": ("math_10k.json", json.dumps([{**INSTRUCTION, "answer": 2.5}] * 3)),
    "commonsense_170k": ("commonsense_170k.json", json.dumps([{**INSTRUCTION, "answer": "true"}] * 3)),
    "jsonl": ("train.jsonl", lines(*LINES)),
    "text": ("train.jsonl", lines({"text": "One."}, {"text": "Zwei Füße."})),
}
KEYS = ("question", "answer", "story", "input_text", "turn_id", "data", "prompt", "messages", "role", "text", "id")
TAGS = ("mr", "ref", "entry", "lex", "mtriple", "size", "category", "completion", "content", "value", "output")
OTHERS = (None, True, 0, -1.5, 10**30, "", "\ud800", "x\u2028y", [], {}, [None], {"id": 1}, [[]])


def flip(content, rng):
    at = rng.randrange(len(content))
    return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]


def truncate(content, rng):
    return content[: rng.randrange(len(content))]


def cut_out(content, rng):
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randrange(1, 40) :]


def insert(content, rng):
    bad = (b"\0", b'"', b"\xff\xfe", b"<", b"&x;", b"<!DOCTYPE x>", b",", b"\r", b"\n\n", b"{", b"]", b"\\u")
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(bad) + content[at:]


def repeat(content, rng):
    start = rng.randrange(len(content))
    return content + content[start : start + rng.randrange(1, 200)]


def rename(content, rng):
    present = [word for word in (*KEYS, *TAGS) if word.encode() in content] or [" "]
    new = rng.choice((b"", b"other", b"REF", b"id"))
    return content.replace(rng.choice(present).encode(), new, rng.randrange(1, 3))


def exchange(content, rng):
    """Put a value of another type in the place of some value of JSON; other files are flipped."""
    parts = [content] if content.startswith(b'{"version"') or content.startswith(b"{\n") else content.split(b"\n")
    at = rng.randrange(len(parts))
    try:
        value = json.loads(parts[at])
    except ValueError:
        return flip(content, rng)
    places = list(inside([value]))
    owner, key = rng.choice(places)
    holder = [value]
    if owner == "top":
        holder[0] = rng.choice(OTHERS)
    else:
        owner[key] = rng.choice(OTHERS)
    parts[at] = json.dumps(holder[0]).encode()
    return b"\n".join(parts)


def inside(top):
    """Iterate over (container, key) of every value; the outermost one is ("top", 0)."""
    yield "top", 0
    waiting = list(top)
    while waiting:
        value = waiting.pop()
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in pairs:
            yield value, key
            waiting.append(child)


MUTATIONS = (flip, truncate, cut_out, insert, repeat, rename, exchange)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), mutations=st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3))
def test_a_damaged_file_is_read_or_explained(name, seed, mutations, tmp_path):
    rng = random.Random(seed)
    relative, text = FILES[name]
    content = text.encode()
    for mutation in mutations:
        content = mutation(content, rng) or b" "
    path = tmp_path / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        examples = TASKS[name].group(TASKS[name].read(tmp_path, "train"))
        encode(examples, TEMPLATES["plain"], TOKENIZER, 32)
    except PeftkitError as error:
        assert path.name in str(error) or str(tmp_path) in str(error)  # noqa: PT017
        assert "\n" not in str(error).strip()  # noqa: PT017


@pytest.mark.parametrize("name", FILES)
def test_the_undamaged_file_is_read(name, tmp_path):
    path = tmp_path / FILES[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FILES[name][1].encode())
    assert len(TASKS[name].read(tmp_path, "train")) >= 2
