"""A limit on the length cuts prompts before targets, empties none, and says what it cost."""

import pytest
from byte_tokenizer import build, masked
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.data.encode import Encoded, cut_left, encode, fit, windows
from peftkit.data.example import Example, Turn, question
from peftkit.data.template import TEMPLATES

PLAIN = TEMPLATES["plain"]


def test_the_prompt_is_cut_on_its_left_and_keeps_the_beginning_of_sequence():
    tokenizer = build(bos=True)
    example = question("1", "abcdef", "xyz")  # <bos> abcdef \n xyz <eos>: 12 tokens
    assert masked(PLAIN.encode(example, tokenizer, 12), tokenizer) == [("<bos>abcdef\n", False), ("xyz<eos>", True)]
    assert masked(PLAIN.encode(example, tokenizer, 8), tokenizer) == [("<bos>ef\n", False), ("xyz<eos>", True)]
    assert masked(PLAIN.encode(example, tokenizer, 6), tokenizer) == [("<bos>\n", False), ("xyz<eos>", True)]


def test_a_target_longer_than_the_limit_is_cut_on_its_right_but_never_to_nothing():
    tokenizer = build(bos=True)
    example = question("1", "abcdef", "xyz")
    assert masked(PLAIN.encode(example, tokenizer, 4), tokenizer) == [("<bos>\n", False), ("xy", True)]
    assert masked(PLAIN.encode(example, tokenizer, 3), tokenizer) == [("<bos>\n", False), ("x", True)]
    assert PLAIN.encode(example, tokenizer, 2) is None
    assert PLAIN.encode(example, tokenizer, 1) is None


def test_what_was_cut_and_dropped_is_counted():
    tokenizer = build()
    examples = [
        question("whole", "a", "x"),
        question("prompt cut", "abcdefgh", "xy"),
        question("target cut", "a", "uvwxyz"),
        question("empty", "a", " \n"),
    ]
    encoded = encode(examples, PLAIN, tokenizer, 6)
    assert (encoded.dropped, encoded.prompts_cut, encoded.targets_cut) == (1, 1, 1)
    assert encoded.sources == [0, 1, 2]
    dropped, target, prompt = encoded.notices(6)
    assert dropped.startswith("1 of 4 examples dropped")
    assert target.startswith("1 of 4 examples trained on a shortened target")
    assert prompt.startswith("1 of 4 examples trained with a prompt shortened")
    assert encode(examples[:1], PLAIN, tokenizer, 6).notices(6) == []


def test_an_earlier_turn_makes_room_for_the_last_one():
    tokenizer = build()
    turns = (Turn("user", "aa"), Turn("assistant", "bb"), Turn("user", "cc"), Turn("assistant", "dd"))
    row = PLAIN.encode(Example("1", turns), tokenizer, 8)  # aa\nbb<eos>cc\ndd<eos>
    assert masked(row, tokenizer) == [("b<eos>", True), ("cc\n", False), ("dd<eos>", True)]


@settings(max_examples=80, deadline=None)
@given(st.text("abc\n", max_size=12), st.text("xyz", min_size=1, max_size=12), st.integers(1, 24), st.booleans())
def test_a_row_keeps_to_its_limit_and_teaches_something(prompt, target, limit, bos):
    tokenizer = build_cached(bos)
    whole = PLAIN.encode(question("1", prompt, target), tokenizer, 1000)
    row = PLAIN.encode(question("1", prompt, target), tokenizer, limit)
    if row is None:
        assert limit <= 1 + bos
        return
    assert len(row.ids) <= limit
    assert row.trained >= 1
    trained = [label for label in row.labels if label != -100]
    goal = [label for label in whole.labels if label != -100]
    assert trained == goal[: len(trained)]
    if len(goal) + 1 + bos <= limit:
        assert trained == goal


def build_cached(bos, made={}):  # noqa: B006
    return made.setdefault(bos, build(bos=bos))


def test_long_documents_become_windows_that_train_each_token_once():
    tokenizer = build(bos=True)
    text = "the quick brown fox"
    example = Example("d", (Turn("text", text),))
    encoded = encode([example, example], PLAIN, tokenizer, 6)
    assert all(len(row.ids) <= 6 for row in encoded.rows)
    assert encoded.sources == [0] * 4 + [1] * 4  # 21 tokens: 6 and three times 5 more
    assert encoded.dropped == 0
    taught = [label for row in encoded.rows[:4] for label in row.labels[1:] if label != -100]
    assert tokenizer.decode(taught) == text + "<eos>"


@given(st.integers(1, 40), st.integers(1, 12))
def test_windows_lose_and_repeat_nothing(length, limit):
    row = Encoded(list(range(length)), list(range(length)))
    taught = [label for part in windows(row, limit) for label in part.labels[1:]]
    assert taught == (list(range(1, length)) if limit > 1 else [])


def test_a_prompt_for_generation_is_cut_on_its_left():
    tokenizer = build(bos=True)
    assert tokenizer.decode(PLAIN.prompt_ids(question("1", "abcdef", "x"), tokenizer, max_length=4)) == "<bos>ef\n"
    assert cut_left([7, 1, 2, 3], 1, 7) == [3]
    assert cut_left([7, 1, 2, 3], 2, 7) == [7, 3]
    assert cut_left([7, 1, 2, 3], 2, None) == [2, 3]


@pytest.mark.parametrize("labels", [[-100, -100], [5, -100], []])
def test_a_row_that_the_shifted_loss_cannot_use_is_dropped(labels):
    assert fit(Encoded([5] * len(labels), labels), 8, None) is None
