"""A template in Jinja, as transformers renders it, gives the ids that training and answering have."""

from __future__ import annotations

import byte_tokenizer
import pytest

from peftkit.data.example import Example, Turn
from peftkit.data.template import TEMPLATES

TURNS = (Turn("user", "Who?"), Turn("assistant", "Me."), Turn("user", "Why,\nthen?"), Turn("assistant", "So."))
MESSAGES = [{"role": turn.role, "content": turn.text} for turn in TURNS]


@pytest.mark.parametrize("bos", [True, False])
def test_the_plain_template_is_the_same_in_jinja(bos):
    tokenizer, template = byte_tokenizer.build(bos=bos), TEMPLATES["plain"]
    tokenizer.chat_template = template.for_transformers(tokenizer)
    whole = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    row = template.encode(Example("one", TURNS), tokenizer, 512)
    assert row is not None
    assert whole == row.ids
    asked = tokenizer.apply_chat_template(MESSAGES[:-1], add_generation_prompt=True, return_dict=False)
    assert asked == template.prompt_ids(Example("one", TURNS), tokenizer)


def test_a_template_of_the_tokenizer_stays_its_own():
    assert TEMPLATES["chat"].for_transformers(byte_tokenizer.build(chat="{{ messages }}")) is None
