"""Prefixes at the positions that were published: the text begins behind them, wherever and however it is read."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from peftkit.adaptation import activate, attach, check_methods, route
from peftkit.errors import PeftkitError
from peftkit.generation.limits import context_length
from peftkit.layers.prefix import split
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.models.tiny import tiny

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])
SHIFTED = PTuningV2(length=3, deviation=1.0, shift=True)


def through_the_cache(architecture: str, adaptation) -> torch.Tensor:
    """Compute with the prefix in transformers' own cache, which has the text begin behind it."""
    model, cache = tiny(architecture), DynamicCache()
    with torch.no_grad():
        for layer, prefix in enumerate(adaptation.adapters()):
            heads = prefix.site.heads
            like = torch.zeros(2, heads.groups or {"llama": 2, "gpt2": 4}[architecture], 1, 8)
            cache.update(split(prefix.K, like), split(prefix.V, like), layer)
        return model(IDS, past_key_values=cache).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_is_the_prefix_in_the_models_own_cache(architecture):
    model = tiny(architecture)
    adaptation = attach(model, [SHIFTED])
    expected = through_the_cache(architecture, adaptation)
    with torch.no_grad():
        result = model(IDS).logits
        positions = torch.arange(5).expand(2, -1)
        named = model(IDS, position_ids=positions).logits
        padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], 1)
        mask = (torch.arange(7) >= 2).long().expand(2, -1)
        left = model(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, 2:]
        out = model(IDS[:, :3], use_cache=True)
        steps = [model(IDS[:, 3:], past_key_values=out.past_key_values).logits]
    for found in (result, named, left):
        assert (found - expected).abs().max() <= 1e-5
    assert (steps[0] - expected[:, 3:]).abs().max() <= 1e-5
    plain = tiny(architecture)
    attach(plain, [PTuningV2(length=3, deviation=1.0)])
    with torch.no_grad():
        assert (plain(IDS).logits - expected).abs().max() > 1e-3


def test_rows_with_and_without_stand_in_one_batch_and_removing_it_moves_them_back():
    model = tiny("gpt2")
    base = model(IDS).logits.detach()
    first = attach(model, [SHIFTED], "first")
    attach(model, [PTuningV2(length=3, deviation=1.0)], "second")
    with torch.no_grad():
        alone = {}
        for name in ("first", "second", None):
            activate(model, name)
            alone[name] = model(IDS).logits
        with route(model, ["second", "first"]):
            mixed = model(IDS).logits
        torch.testing.assert_close(mixed, torch.stack([alone["second"][0], alone["first"][1]]))
        first.remove()
        activate(model, None)
        assert torch.equal(model(IDS).logits, base)


def test_the_models_positions_are_fewer_by_the_prefix():
    model = tiny("gpt2")
    attach(model, [SHIFTED])
    assert context_length(model) == 128 - 3
    with pytest.raises(PeftkitError, match="shift is true, and this bloom model takes no positions"):
        check_methods(tiny("bloom"), [SHIFTED])
