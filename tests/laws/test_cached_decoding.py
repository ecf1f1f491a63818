"""Invariant 22 for every method: a cache changes nothing, and padding on the left changes nothing."""

from __future__ import annotations

import pytest
import torch
from subjects import attached, given, logits, randomise, tokens


def test_cached_steps_equal_the_whole(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    ids = tokens(2, 8)
    whole = logits(model, ids)
    prompt = given(model, ids[:, :3])
    with torch.no_grad():
        out = model(input_ids=prompt, use_cache=True)
        steps = [out.logits[:, -1]]
        for index in range(3, 8):
            out = model(input_ids=ids[:, index : index + 1], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits[:, -1])
    for index, step in enumerate(steps):
        assert (step - whole[:, 2 + index]).abs().max() <= 1e-4


@pytest.mark.costly
def test_left_padding_changes_nothing(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    ids = tokens(1, 6)
    whole = logits(model, ids)
    text = given(model, ids)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), text], 1)
    mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        result = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, -6:]
    assert (result - whole).abs().max() <= 1e-4
