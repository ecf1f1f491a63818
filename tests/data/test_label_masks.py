"""Which tokens are trained on, written down for every task and template."""

import json

import pytest
from byte_tokenizer import build, masked
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peftkit.data.encode import encode
from peftkit.data.example import Example, Turn, question
from peftkit.data.template import TEMPLATES, choose
from peftkit.errors import PeftkitError
from peftkit.tasks import TASKS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STORY = "Ann has a cat."
COQA = {
    "version": "1.0",
    "data": [
        {
            "id": "c1",
            "source": "mctest",
            "story": STORY,
            "questions": [{"turn_id": 1, "input_text": "Who?"}, {"turn_id": 2, "input_text": "What?"}],
            "answers": [{"turn_id": 1, "input_text": "Ann"}, {"turn_id": 2, "input_text": "a cat"}],
        }
    ],
}
WEBNLG = """<benchmark><entries><entry category="Food" eid="Id1" size="2"><modifiedtripleset>
<mtriple>Soup | country | Peru</mtriple><mtriple>Soup | main_ingredient | Corn</mtriple></modifiedtripleset>
<lex comment="good" lid="Id1">Soup is from Peru.</lex></entry></entries></benchmark>"""
FILES = {
    "e2e": ("trainset.csv", 'mr,ref\r\n"name[Fig], area[riverside]",Fig is by the river.\r\n'),
    "webnlg": ("train/2triples/2triples_Food.xml", WEBNLG),
    "gsm8k": ("train.jsonl", json.dumps({"question": "One and one?", "answer": "1+1=<<1+1=2>>2\n#### 2"})),
    "coqa": ("coqa-train-v1.0.json", json.dumps(COQA)),
    "jsonl": ("train.jsonl", json.dumps({"instruction": "Greet.", "input": "Bo", "output": "Hi Bo"})),
    "math_10k": (
        "math_10k.json",
        json.dumps([{"instruction": "One and one?", "input": "", "output": "1 + 1 = 2.", "answer": 2}]),
    ),
    "commonsense_170k": (
        "commonsense_170k.json",
        json.dumps([{"instruction": "Two is even?", "input": "x", "output": "it is true", "answer": "true"}]),
    ),
    "text": ("train.txt", "All of this.\nThis too."),
}
EXPECTED = {
    "e2e": ("name[Fig], area[riverside]", "Fig is by the river."),
    "webnlg": ("Soup | country | Peru ; Soup | main_ingredient | Corn", "Soup is from Peru."),
    "gsm8k": ("One and one?", "1+1=<<1+1=2>>2\n#### 2"),
    "coqa": (f"{STORY}\n\nQ: Who?\nA: Ann\nQ: What?\nA:", "a cat"),
    "jsonl": ("Greet.\n\nBo", "Hi Bo"),
    "math_10k": ("One and one?", "1 + 1 = 2."),
    "commonsense_170k": ("Two is even?\n\nx", "it is true"),
}


def read(name, folder):
    path = folder / FILES[name][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FILES[name][1], newline="")
    return TASKS[name].read(folder, "train")[-1]


def test_every_task_and_template_has_a_golden_mask():
    assert set(FILES) == set(TASKS.names())
    assert TEMPLATES.names() == ["chat", "plain"]


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("bos", [False, True])
def test_plain(name, bos, tmp_path):
    tokenizer = build(bos=bos)
    template = choose("auto", tokenizer)
    example = read(name, tmp_path)
    prompt, target = EXPECTED[name]
    lead = ("<bos>" if bos else "") + prompt + "\n"
    assert template.name == "plain"
    assert masked(template.encode(example, tokenizer, 512), tokenizer) == [(lead, False), (target + "<eos>", True)]
    assert tokenizer.decode(template.prompt_ids(example, tokenizer)) == lead
    assert template.text(example, tokenizer) == lead + target + "<eos>"
    assert template.stop_ids(tokenizer) == [tokenizer.eos_token_id]


@pytest.mark.parametrize("name", EXPECTED)
def test_chat(name, tmp_path):
    tokenizer = build(bos=True, chat=CHATML)
    template = choose("auto", tokenizer)
    example = read(name, tmp_path)
    prompt, target = EXPECTED[name]
    lead = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert template.name == "chat"
    assert masked(template.encode(example, tokenizer, 512), tokenizer) == [(lead, False), (target + "<|im_end|>", True)]
    assert tokenizer.decode(template.prompt_ids(example, tokenizer)) == lead
    assert template.stop_ids(tokenizer) == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<eos>"])


@pytest.mark.parametrize("chat", [None, CHATML])
def test_a_document_is_trained_on_whole(chat, tmp_path):
    tokenizer = build(bos=True, chat=chat)
    row = choose("auto", tokenizer).encode(read("text", tmp_path), tokenizer, 512)
    assert masked(row, tokenizer) == [("<bos>", False), ("All of this.\nThis too.<eos>", True)]


def conversation(*texts):
    roles = ["user", "assistant"] * len(texts)
    return tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False))


def test_every_assistant_turn_is_trained_on():
    example = Example("c", (Turn("system", "Be brief."), *conversation("Hi", "Hey", "Bye", "See you")))
    tokenizer = build(chat=CHATML)
    assert masked(TEMPLATES["plain"].encode(example, tokenizer, 512), tokenizer) == [
        ("Be brief.\nHi\n", False),
        ("Hey<eos>", True),
        ("Bye\n", False),
        ("See you<eos>", True),
    ]
    assert masked(TEMPLATES["chat"].encode(example, tokenizer, 512), tokenizer) == [
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hey<|im_end|>", True),
        ("\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n", False),
        ("See you<|im_end|>", True),
    ]


@pytest.mark.parametrize("name", ["plain", "chat"])
def test_training_sees_exactly_the_prompt_of_generation(name):
    example = Example("c", conversation("Hi", "Hey", "Bye", "See you"))
    tokenizer = build(bos=True, chat=CHATML)
    row, prompt = (
        TEMPLATES[name].encode(example, tokenizer, 512),
        TEMPLATES[name].prompt_ids(example, tokenizer),
    )
    assert row.ids[: len(prompt)] == prompt
    assert row.labels[len(prompt) - 1] == -100
    assert all(label != -100 for label in row.labels[len(prompt) :])


def test_a_merge_over_the_border_of_prompt_and_target_is_not_used():
    tokenizer = build(merges=(("Ċ", "T"), ("e", "n")))
    assert len(tokenizer("e\nThen")["input_ids"]) == 4  # e, \nT, h, en
    row = TEMPLATES["plain"].encode(question("1", "e", "Then"), tokenizer, 64)
    assert [tokenizer.decode([token]) for token in row.ids] == ["e", "\n", "T", "h", "en", "<eos>"]
    assert [label == -100 for label in row.labels] == [True, True, False, False, False, False]


def test_a_target_has_no_space_in_front_that_only_a_lone_text_gets():
    model = models.BPE({token: number for number, token in enumerate(["<eos>", "▁", "a", "b", "\n"])}, [])
    pieces = Tokenizer(model)
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<eos>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("b")["input_ids"]) == ["▁", "b"]
    row = TEMPLATES["plain"].encode(question("1", "a", "b"), tokenizer, 64)
    assert tokenizer.convert_ids_to_tokens(row.ids) == ["▁", "a", "\n", "b", "<eos>"]


def test_encoding_a_data_set_equals_encoding_each_example():
    examples = [question(str(n), f"ask {n} " + "x" * n, "y" * (n + 1)) for n in range(20)]
    tokenizer = build(bos=True)
    template = TEMPLATES["plain"]
    together = encode(examples, template, tokenizer, 18)
    alone = [template.encode(example, tokenizer, 18) for example in examples]
    assert together.rows == [row for row in alone if row]
    assert together.sources == list(range(20))
    assert together.dropped == 0


def test_a_tokenizer_without_end_of_sequence_is_refused():
    with pytest.raises(PeftkitError, match="no end-of-sequence token"):
        TEMPLATES["plain"].encode(question("1", "a", "b"), build(eos=None), 64)


def test_a_template_that_the_tokenizer_lacks_is_refused():
    with pytest.raises(PeftkitError, match=r"'chat'.*Allowed: auto, plain\."):
        choose("chat", build())
    with pytest.raises(PeftkitError, match="Did you mean 'plain'"):
        choose("plane", build())


def test_turns_that_cannot_be_trained_on_are_refused():
    with pytest.raises(PeftkitError, match="last turn is the assistant's"):
        TEMPLATES["plain"].encode(Example("1", (Turn("user", "Hi"),)), build(), 64)
