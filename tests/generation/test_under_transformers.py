"""Under transformers' `generate` soft prompts are put in and taken out again, and adapters know the prompt."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.generation.under_transformers import put_in_front, tell_prompts
from peftkit.models.tiny import tiny
from peftkit.ports.context import context_of

BOS, PAD = 1, 0


class Echo:
    """Returns what it is given with two tokens more, `several` times each row."""

    def __init__(self, several: int = 1, wrapped: bool = False):
        self.several, self.wrapped, self.given = several, wrapped, {}

    def generate(self, ids, **named):
        self.given = {"ids": ids.tolist(), **named}
        rows = ids.repeat_interleave(self.several, 0)
        output = torch.cat([rows, torch.arange(len(rows))[:, None] + 50, torch.full((len(rows), 1), 60)], 1)
        return SimpleNamespace(sequences=output) if self.wrapped else output


@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_stand_behind_padding_and_the_first_token_and_are_taken_out(wrapped):
    model = Echo(several=2, wrapped=wrapped)
    put_in_front(model, (90, 91), BOS)
    ids = torch.tensor([[PAD, PAD, BOS, 5], [BOS, 6, 7, 8], [PAD, 3, 4, 5]])
    mask = (ids != PAD).long()
    output = model.generate(input_ids=ids, attention_mask=mask, max_length=20, top_k=3)
    assert model.given["ids"] == [[0, 0, 1, 90, 91, 5], [1, 90, 91, 6, 7, 8], [0, 90, 91, 3, 4, 5]]
    assert model.given["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]]
    assert (model.given["max_length"], model.given["top_k"]) == (22, 3)
    output = output.sequences if wrapped else output
    whole = torch.cat([ids.repeat_interleave(2, 0), torch.arange(6)[:, None] + 50, torch.full((6, 1), 60)], 1)
    assert torch.equal(output, whole)


def test_without_a_mask_every_token_counts_and_without_a_first_token_rows_come_first():
    model = Echo()
    put_in_front(model, (90,), None)
    output = model.generate(torch.tensor([[BOS, 5]]))
    assert model.given["ids"] == [[90, BOS, 5]]
    assert model.given["attention_mask"].tolist() == [[1, 1, 1]]
    assert output.tolist() == [[BOS, 5, 50, 60]]


def test_embeddings_are_refused():
    model = Echo()
    put_in_front(model, (90,), None)
    with pytest.raises(PeftkitError, match="give generate input_ids, not embeddings"):
        model.generate(inputs_embeds=torch.zeros(1, 2, 4))


@pytest.mark.parametrize("cached", [True, False])
def test_the_prompt_is_told_in_every_pass_that_has_it(cached):
    model = tiny("llama")
    context, told = context_of(model), []
    tell_prompts(model)
    model.model.register_forward_pre_hook(lambda *_: told.append(context.told))
    ids, mask = torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, eos_token_id=None, use_cache=cached)
    assert len(told) == 3
    assert told[0].tolist() == [[False, True, True], [True, True, True]]
    if cached:
        assert told[1:] == [None, None]
    else:
        assert [one[:, :3].tolist() for one in told[1:]] == [told[0].tolist()] * 2
        assert not any(one[:, 3:].any() for one in told[1:])
    assert context.told is None
    told.clear()
    model(input_ids=ids)
    assert told == [None], "outside of generate nothing is told"
