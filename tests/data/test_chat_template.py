"""Chat templates that strip, add, reorder or refuse: right masks or a clear refusal."""

import pytest
from byte_tokenizer import build, masked

from peftkit.data.example import Example, Turn
from peftkit.data.template import TEMPLATES
from peftkit.data.templates import chat as templates_chat
from peftkit.errors import PeftkitError

CHAT = TEMPLATES["chat"]
LOOP = "{% for m in messages %}BODY{% endfor %}{% if add_generation_prompt %}PROMPT{% endif %}"


def template(body, prompt, before=""):
    return before + LOOP.replace("BODY", body).replace("PROMPT", prompt)


STRIPPING = template(
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>", "<|im_start|>assistant\n", "{{ bos_token }}"
)
THINKING = template(  # an empty thought before the last answer only, as reasoning models write it
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n",
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)
ALWAYS_THINKING = template("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>", "<|im_start|>assistant\n<think>\n")
ADDING = template(
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>",
    "<|im_start|>assistant\n",
)
ENDLESS = template("{% if m.role == 'user' %}Q: {{ m.content }}\n{% else %}A: {{ m.content }}\n{% endif %}", "A: ")
SHOUTING = template("{{ m.role }}: {{ m.content | upper }}\n", "assistant: ")
CENSORING = template("{{ m.content | replace('Hi', 'Ho') }}<|im_end|>", "")
GOSSIPING = template("{{ m.content }}<|im_end|>", "") + "{% if messages[0].content == 'Hi' %}Hi!{% endif %}"
DEAF = LOOP.replace("BODY", "{% if m.role != 'system' %}{{ m.content }}<|im_end|>{% endif %}").replace("PROMPT", "")
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + template(
    "{{ m.content }}<|im_end|>", ""
)
UNLIKE = template("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>", "<|im_start|>reply\n")
HI = Example("1", (Turn("user", " Hi "), Turn("assistant", " Hey\n")))
TWO = Example("2", (Turn("user", "Hi"), Turn("assistant", "Hey"), Turn("user", "Bye"), Turn("assistant", "Ok")))


def runs(example, chat, bos=False):
    tokenizer = build(bos=bos, chat=chat)
    found = masked(CHAT.encode(example, tokenizer, 512), tokenizer)
    prompt = tokenizer.decode(CHAT.prompt_ids(example, tokenizer))
    assert "".join(text for text, _ in found).startswith(prompt)
    return found


def test_stripped_turns_and_a_single_beginning_of_sequence():
    lead = "<bos><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    assert runs(HI, STRIPPING, bos=True) == [(lead, False), ("Hey<|im_end|>", True)]


def test_a_cut_keeps_the_beginning_of_sequence_that_the_template_writes():
    tokenizer = build(bos=True, chat=STRIPPING)
    assert masked(CHAT.encode(HI, tokenizer, 8), tokenizer) == [("<bos>nt\n", False), ("Hey<|im_end|>", True)]


def test_an_empty_thought_stands_in_the_prompt_and_is_not_trained_on():
    """The first answer is trained on in a row of its own, which begins as generation does."""
    assert runs(TWO, THINKING) == [
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHey<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            False,
        ),
        ("Ok<|im_end|>", True),
    ]


def test_what_only_the_prompt_has_precedes_the_answer():
    (lead, trained), answer = runs(TWO, ALWAYS_THINKING)
    assert lead.endswith("<|im_start|>user\nBye<|im_end|><|im_start|>assistant\n<think>\n")
    assert (trained, answer) == (False, ("Ok<|im_end|>", True))


def test_what_the_template_adds_to_the_answer_is_trained_on():
    assert runs(TWO, ADDING)[-2:] == [
        ("<|im_start|>user\nBye<|im_end|><|im_start|>assistant\n", False),
        ("<think></think>Ok<|im_end|>", True),
    ]


def test_without_an_end_token_the_end_of_sequence_is_trained_on():
    assert runs(TWO, ENDLESS) == [("Q: Hi\nA: ", False), ("Hey", True), ("\nQ: Bye\nA: ", False), ("Ok<eos>", True)]
    tokenizer = build(chat=ENDLESS)
    assert CHAT.stop_ids(tokenizer) == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("chat", "turns", "message"),
    [
        (SHOUTING, TWO.turns, "changes.* the user turn .* 0 times"),
        (CENSORING, TWO.turns, "changes the text of a user turn.*'Hi' became 'Ho"),
        (GOSSIPING, TWO.turns, "adds text that depends on what the turns say"),
        (DEAF, (Turn("system", "x"), *TWO.turns), "the system turn .* 0 times"),
        (STRICT, (Turn("system", "x"), *TWO.turns), "roles system, user.*no system turn"),
        ("{% for %}", TWO.turns, "cannot render"),
        ("{{ messages[0].content }}{{ messages[0].content }}", TWO.turns[:2], "2 times"),
        (UNLIKE, TWO.turns, "differently"),
    ],
)
def test_a_template_that_hides_the_answers_is_refused(chat, turns, message):
    with pytest.raises(PeftkitError, match=message) as caught:
        CHAT.encode(Example("1", turns), build(chat=chat), 512)
    assert "dataset.template: plain" in str(caught.value)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it takes more than 0.2 s"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ 'a' * 10 ** 18 }}", "."),
        ("{{ messages.x.y }}", "no attribute"),
    ],
)
def test_whatever_a_template_does_ends_with_an_error_that_names_it(chat, message, monkeypatch):
    monkeypatch.setattr(templates_chat, "SECONDS", 0.2)
    with pytest.raises(PeftkitError, match=f"the chat template cannot render .*{message}"):
        CHAT.encode(TWO, build(chat=chat), 512)
