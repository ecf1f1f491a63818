"""A tokenizer as SmolLM2's: a system turn of its own, an end of turn that ends sequences, and no padding beside it.

Held on one of bytes from a GGUF file that is written here, and on the real one where its package is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import masked
from gguf_files import write_gguf
from model_folders import section

from peftkit.data.batches import collate
from peftkit.data.example import Example, Turn, question
from peftkit.data.template import Template, choose
from peftkit.errors import PeftkitError
from peftkit.generation import generate
from peftkit.generation.settings import Settings
from peftkit.models.load import load
from peftkit.models.named import NAMED
from peftkit.models.tokenizer import load_tokenizer

DEFAULTS = {
    "written": "Answer briefly.",
    "smollm2-135m": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
}
"""What each template says where a conversation has no system turn."""


@pytest.fixture(params=sorted(DEFAULTS))
def given(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Any, Template, str]:
    """The name, the tokenizer, the template that is chosen for it, and its default system turn."""
    name = request.param
    if name == "written":
        monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
        place = str(write_gguf(tmp_path / "tiny.gguf"))
    else:
        pytest.importorskip("gguf")
        place = name
        try:
            NAMED[name]()
        except PeftkitError as error:
            pytest.skip(str(error))
    tokenizer = load_tokenizer(section(place))
    return place, tokenizer, choose("auto", tokenizer), DEFAULTS[name]


def begun(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def test_the_answer_and_its_end_of_turn_are_trained_on(given):
    _, tokenizer, template, default = given
    row = template.encode(question("q", "name[Fig], area[riverside]", "Fig is by the river."), tokenizer, 512)
    assert template.name == "chat"
    assert masked(row, tokenizer) == [
        (begun(default, "name[Fig], area[riverside]"), False),
        ("Fig is by the river.<|im_end|>", True),
    ]


def test_a_system_turn_takes_the_place_of_the_default(given):
    _, tokenizer, template, default = given
    turns = (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hey"))
    more = (Turn("user", "Bye"), Turn("assistant", "See you"))
    row = template.encode(Example("c", (*turns, *more)), tokenizer, 512)
    assert masked(row, tokenizer) == [
        (begun("Be brief.", "Hi"), False),
        ("Hey<|im_end|>", True),
        ("\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n", False),
        ("See you<|im_end|>", True),
    ]
    assert default not in tokenizer.decode(row.ids)


def test_training_begins_where_generation_does(given):
    _, tokenizer, template, default = given
    example = question("q", "Hi", "Hey")
    row, prompt = template.encode(example, tokenizer, 512), template.prompt_ids(example, tokenizer)
    assert row.ids[: len(prompt)] == prompt
    assert tokenizer.decode(prompt) == begun(default, "Hi")


def test_padding_is_not_trained_on_and_the_end_that_it_equals_is(given):
    _, tokenizer, template, _ = given
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == end
    assert tokenizer.padding_side == "right"
    examples = [question("long", "Hi", "A long answer, of many words."), question("short", "Hi", "No")]
    rows = [template.encode(example, tokenizer, 512) for example in examples]
    batch = collate(rows, tokenizer.pad_token_id)
    for row, ids, labels, mask in zip(rows, batch.input_ids, batch.labels, batch.attention_mask, strict=True):
        length = len(row.ids)
        assert labels[length - 1] == ids[length - 1] == end
        assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
        assert (ids[length:] == end).all()
        assert (labels[length:] == -100).all()
    assert len(rows[1].ids) < batch.input_ids.shape[1]


def test_generation_stops_at_the_end_of_turn(given):
    place, tokenizer, template, _ = given
    end = tokenizer.eos_token_id
    assert template.stop_ids(tokenizer) == [end]
    loaded = load(section(place))
    head = loaded.model.get_output_embeddings()
    prompt = template.prompt_ids(question("q", "Hi", ""), tokenizer)
    for first in (end, 40):
        # Whatever the model thinks, the next token is this one.
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features).index_fill(0, torch.tensor([first]), 1e4))
        (answer,) = generate(loaded.model, loaded.tokenizer, [prompt], Settings(max_new_tokens=4))
        assert answer.ids == ([] if first == end else [40] * 4)
        assert answer.text == tokenizer.decode(answer.ids)
