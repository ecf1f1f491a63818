"""Training begins each answer with exactly the ids that generation is given, under the chat templates people have."""

import json

import pytest
from byte_tokenizer import build, masked

from peftkit.data.encode import encode, encode_prompts
from peftkit.data.example import Example, Turn
from peftkit.data.template import TEMPLATES
from peftkit.errors import PeftkitError

CHAT = TEMPLATES["chat"]
ROLE = "{{ m.role }}"


def each(body, prompt, before=""):
    loop = f"{{% for m in messages %}}{body}{{% endfor %}}"
    return f"{before}{loop}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"


def pairs(user, assistant, **rest):
    """A template that writes the user's and the assistant's turns in two ways."""
    return each(f"{{% if m.role == 'assistant' %}}{assistant}{{% else %}}{user}{{% endif %}}", **rest)


KEPT = (
    "{% set last = namespace(at=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.at = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
THOUGHT = "{% if loop.index0 > last.at %}<think>\n\n</think>\n\n{% endif %}"
SHAPES = {
    "chatml": each(f"<|im_start|>{ROLE}\n{{{{ m.content }}}}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama-2": pairs("<bos>[INST] {{ m.content }} [/INST]", " {{ m.content }} <eos>", prompt=""),
    "llama-3": each(
        f"<|start|>{ROLE}<|end|>\n\n{{{{ m.content | trim }}}}<|im_end|>", "<|start|>assistant<|end|>\n\n", "<bos>"
    ),
    "gemma": pairs(
        "<start>user\n{{ m.content | trim }}<|im_end|>\n",
        "<start>model\n{{ m.content | trim }}<|im_end|>\n",
        prompt="<start>model\n",
        before="<bos>",
    ),
    "mistral": pairs("[INST] {{ m.content }}[/INST]", " {{ m.content }}<eos>", prompt="", before="<bos>"),
    "phi": each(f"<|{ROLE}|>\n{{{{ m.content }}}}<|im_end|>\n", "<|assistant|>\n"),
    "qwen-3": KEPT
    + pairs(
        f"<|im_start|>{ROLE}\n{{{{ m.content }}}}<|im_end|>\n",
        "<|im_start|>assistant\n" + THOUGHT + "{{ m.content }}<|im_end|>\n",
        prompt="<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "deepseek": pairs(
        "<|User|>{{ m.content }}", "<|Assistant|>{{ m.content }}<eos>", prompt="<|Assistant|>", before="<bos>"
    ),
    "plain": None,
}
TURNS = (
    Turn("user", "Is it wet?"),
    Turn("assistant", "It is."),
    Turn("user", "Still?"),
    Turn("assistant", "It was, and is."),
    Turn("user", "Bye"),
    Turn("assistant", "Ok"),
)


def rows(name, turns, bos=True):
    tokenizer = build(bos=bos, chat=SHAPES.get(name, name))
    template = TEMPLATES["plain" if SHAPES.get(name, name) is None else "chat"]
    return template, tokenizer, encode([Example("1", tuple(turns))], template, tokenizer, 512).rows


@pytest.mark.parametrize("name", SHAPES)
def test_every_answer_is_learnt_once_after_its_own_prompt(name):
    template, tokenizer, encoded = rows(name, TURNS)
    for number in (1, 3, 5):
        prompt = template.prompt_ids(Example("1", TURNS[: number + 1]), tokenizer)
        (row,) = (row for row in encoded if row.ids[: len(prompt)] == prompt and row.labels[len(prompt)] != -100)
        assert tokenizer.decode(row.ids[len(prompt) :]).strip().startswith(TURNS[number].text)
    learnt = "".join(text for row in encoded for text, trained in masked(row, tokenizer) if trained)
    assert all(learnt.count(turn.text) == 1 for turn in TURNS if turn.role == "assistant")


def test_a_template_that_rewrites_history_takes_a_row_for_each_answer():
    assert len(rows("qwen-3", TURNS)[2]) == 3
    assert len(rows("chatml", TURNS)[2]) == 1


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_empty_answers_and_those_without_weight_are_not_learnt(name):
    turns = [*TURNS[:1], Turn("assistant", ""), *TURNS[2:3], Turn("assistant", "No.", trained=False), *TURNS[4:]]
    _, tokenizer, (row,) = rows(name, turns)
    assert [text for text, trained in masked(row, tokenizer) if trained] == [
        "Ok<|im_end|>" if name == "chatml" else "Ok<eos>"
    ]


WITH_TOOLS = "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + each(
    f"<|im_start|>{ROLE}\n{{{{ m.content }}}}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n",
    "<|im_start|>assistant\n",
)
CALL = {"tool_calls": [{"type": "function", "function": {"name": "rain", "arguments": {"at": "Oslo"}}}]}
TOOLS = Turn("tools", json.dumps([{"type": "function", "function": {"name": "rain"}}]))
CALLED = (
    TOOLS,
    Turn("user", "Rain?"),
    Turn("assistant", "", more=json.dumps(CALL)),
    Turn("tool", "wet"),
    Turn("assistant", "Yes."),
)


def test_a_call_is_learnt_as_the_template_writes_it():
    _, tokenizer, (row,) = rows(WITH_TOOLS, CALLED)
    lead, call, between, said = masked(row, tokenizer)
    assert lead[0].startswith("<|im_start|>tools\n[{")
    assert call == ('<call>{"name": "rain", "arguments": {"at": "Oslo"}}</call><|im_end|>', True)
    assert between == ("\n<|im_start|>tool\nwet<|im_end|>\n<|im_start|>assistant\n", False)
    assert said == ("Yes.<|im_end|>", True)


@pytest.mark.parametrize(
    ("name", "turns", "message"),
    [
        ("chatml", CALLED[:2] + CALLED[4:], "1: the chat template leaves out the tools of a conversation"),
        ("chatml", CALLED[1:], "1: the chat template leaves out the call of the tool 'rain'"),
        ("plain", CALLED, "1: the template 'plain' has no way to write tools"),
        ("{{ raise_exception('no') }}", TURNS, "1: the chat template cannot render .*: no"),
    ],
)
def test_what_a_template_cannot_write_is_told_with_the_example(name, turns, message):
    with pytest.raises(PeftkitError, match=message):
        rows(name, turns)


def test_a_prompt_that_a_template_cannot_write_is_told_with_the_example():
    """Of evaluation and of labelled rows, as of training."""
    template, tokenizer = TEMPLATES["chat"], build(chat="{{ raise_exception('no') }}")
    example = Example("test.jsonl:37", TURNS)
    for ask in (template.prompt_ids, lambda *given: encode_prompts([given[0]], template, given[1], 512)):
        with pytest.raises(PeftkitError, match=r"test\.jsonl:37: the chat template cannot render .*: no"):
            ask(example, tokenizer)
