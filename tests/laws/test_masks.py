"""Invariants 16 and 22 for every method: packed rows do not see each other, and beams keep to their own past."""

from __future__ import annotations

import pytest
import torch
from subjects import attached, given, logits, randomise, soft_ids, tokens
from transformers import LogitsProcessor

from peftkit.models.tiny import VOCABULARY
from peftkit.ports.context import context_of


def test_packed_texts_equal_each_alone(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    if context_of(model).reads_prompts:
        pytest.skip("what it computes of a text depends on its prompt, and a row has one")
    randomise(adaptation)
    texts = [tokens(1, length, seed=length) for length in (4, 7, 5)]
    soft = torch.tensor([soft_ids(model)], dtype=torch.long)
    alone = [logits(model, text) for text in texts]
    rows = [given(model, text) for text in texts]
    owner = torch.cat([torch.full((row.shape[1],), index) for index, row in enumerate(rows)])
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    count = len(owner)
    mask = (owner[:, None] == owner[None]) & torch.ones(count, count, dtype=torch.bool).tril()
    with torch.no_grad():
        packed = model(input_ids=torch.cat(rows, 1), attention_mask=mask[None, None], position_ids=positions).logits
    start = 0
    for text, expected in zip(texts, alone, strict=True):
        start += soft.shape[1]
        assert (packed[:, start : start + text.shape[1]] - expected).abs().max() <= 1e-5
        start += text.shape[1]


class Words(LogitsProcessor):
    """Keeps the beams among words, so that none ends early."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, :3] = -torch.inf
        return scores


@pytest.mark.costly
def test_beams_with_a_cache_equal_beams_without(name, position, architecture):
    if position:
        pytest.skip("held for the method as it comes")
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    prompt = given(model, tokens(2, 5))
    settings = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    found = [
        model.generate(prompt, attention_mask=mask, use_cache=cached, logits_processor=[Words()], **settings)
        for cached in (True, False)
    ]
    assert torch.equal(*found)
    assert int(found[0][:, prompt.shape[1] :].max()) < VOCABULARY
