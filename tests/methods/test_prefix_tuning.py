"""Prefix tuning: against the cache of transformers, the mixture of two attentions, the collapse and the counts."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from peftkit.adaptation import attach, count_trained, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.models.tiny import tiny
from peftkit.ports.attention import AttentionAdapter
from peftkit.ports.context import LINK, Context

IDS = torch.tensor([[5, 9, 14, 20, 3], [7, 7, 30, 41, 8]])


def run(model, **rest):
    with torch.no_grad():
        return model(input_ids=IDS, **rest).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", [PTuningV2(length=3, deviation=0.7), PrefixTuning(length=3, projection=8)])
def test_a_prefix_is_what_stands_in_the_cache(architecture, method):
    """The base with the prefix in its cache, the text at its own positions 0, 1, …; groups where the model has them."""
    model = tiny(architecture)
    adaptation = attach(model, [method])
    result = run(model)
    adaptation.finish()
    groups = getattr(model.config, "num_key_value_heads", 4)
    cache = DynamicCache()
    for layer, adapter in enumerate(adaptation.parts[0].adapters.values()):
        keys, values = (
            part.detach().view(3, groups, 8).transpose(0, 1).expand(2, -1, -1, -1) for part in (adapter.K, adapter.V)
        )
        cache.update(keys, values, layer)
    expected = run(tiny(architecture), past_key_values=cache, position_ids=torch.arange(5)[None])
    assert (result - expected).abs().max() <= 1e-5
    assert (result - run(tiny(architecture))).abs().max() > 1e-2


def same_of_hugging_face_peft(peft, adaptation, base):
    """Return their model of `base` with the prefix, and the MLP where there is one, of ours."""
    (method,), adapters = adaptation.methods, list(adaptation.parts[0].adapters.values())
    projection = getattr(method, "projection", None)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=method.length,
        prefix_projection=projection is not None,
        encoder_hidden_size=projection,
    )
    theirs = peft.get_peft_model(base, config).eval()
    encoder = theirs.prompt_encoder["default"]
    with torch.no_grad():
        if projection is None:
            encoder.embedding.weight.copy_(torch.cat([part for a in adapters for part in (a.K, a.V)], 1))
        else:
            inner = adapters[0].shared
            encoder.embedding.weight.copy_(inner.E)
            encoder.transform[0].load_state_dict(inner.hidden.state_dict())
            encoder.transform[2].weight.copy_(torch.cat([adapter.outer.weight for adapter in adapters]))
            encoder.transform[2].bias.copy_(torch.cat([adapter.outer.bias for adapter in adapters]))
    return theirs


@pytest.mark.parametrize(
    ("architecture", "overrides", "method"),
    [
        ("llama", {}, PTuningV2(length=3, deviation=0.7)),
        ("llama", {}, PrefixTuning(length=3, projection=None, deviation=0.7)),
        ("llama", {"num_key_value_heads": 4}, PrefixTuning(length=3, projection=8)),
        ("gpt2", {}, PTuningV2(length=3, deviation=0.7)),
        ("gpt2", {}, PrefixTuning(length=3, projection=None, deviation=0.7)),
        ("gpt2", {}, PrefixTuning(length=3, projection=8)),
    ],
)
def test_hugging_face_peft_computes_the_same_at_equal_positions(architecture, overrides, method):
    """Their text starts at position `length`, ours at 0: each is held to the other's positions.

    With grouped keys their MLP is as wide as the groups and ours as the model, so that it is compared without groups.
    """
    peft = pytest.importorskip("peft")
    model = tiny(architecture, **overrides)
    adaptation = attach(model, [method])
    theirs = same_of_hugging_face_peft(peft, adaptation, tiny(architecture, **overrides))
    positions = torch.arange(5)[None]
    ours = run(model)
    assert (run(theirs, position_ids=positions - 3) - ours).abs().max() <= 1e-5
    assert (run(theirs) - run(model, position_ids=positions + 3)).abs().max() <= 1e-5
    assert (run(theirs) - ours).abs().max() > 1e-3


def test_a_prefix_mixes_two_attentions():
    """Attn([P; C]) = (1 - lam) Attn(C) + lam Attn(P), lam the prefix's part of the softmax; per head and query."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    site = Layout(tiny("llama")).attention()[0]
    adapter = PTuningV2(length=2, deviation=1.0).build(site).double()
    assert isinstance(adapter, AttentionAdapter)
    setattr(adapter, LINK, Context())
    keys, values = (torch.nn.Parameter(part[:, :8]) for part in adapter.prefix())
    adapter.K, adapter.V = keys, values

    def attend(q, k, v, mask):
        scores = (q @ k.transpose(-1, -2)).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v

    weights = (q @ k.transpose(-1, -2)).exp() * mask
    prefixed = (q @ keys.T).exp()
    part = prefixed.sum(-1, keepdim=True) / (prefixed.sum(-1, keepdim=True) + weights.sum(-1, keepdim=True))
    alone = attend(q, k, v, mask)
    prompt = (q @ keys.T).softmax(-1) @ values
    expected = (1 - part) * alone + part * prompt
    assert torch.allclose(adapter(attend, q, k, v, mask), expected, atol=1e-12)


def test_the_mlp_is_dropped_and_the_logits_stay(tmp_path):
    model = tiny("llama")
    adaptation = attach(model, [PrefixTuning(length=3, projection=8)])
    before = run(model)
    adaptation.finish()
    save_adapter(adaptation, tmp_path / "adapter", {"name": "llama"})
    assert sorted(adaptation.state()) == [
        f"0/model.layers.{layer}.self_attn/{name}" for layer in range(2) for name in "KV"
    ]
    assert all(tensor.shape == (3, 16) for tensor in adaptation.state().values())
    loaded = tiny("llama")
    again = load_adapter(loaded, tmp_path / "adapter", None)
    assert again.methods == (PrefixTuning(length=3, projection=None),)
    assert torch.equal(run(loaded), before)
    adaptation.remove()
    assert torch.equal(run(model), run(tiny("llama")))
    assert "seated" not in dict(model.named_children())


def test_counts_of_llama_2_7b_are_the_published_ones():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        layout = Layout(AutoModelForCausalLM.from_config(config))
    assert count_trained(PTuningV2(length=30), layout) == 7_864_320
    assert count_trained(PrefixTuning(length=30, projection=None), layout) == 7_864_320
    assert count_trained(PrefixTuning(length=30, projection=512), layout) == 136_700_416


def test_a_model_without_attention_is_refused():
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=96)
    with pytest.raises(PeftkitError, match="has no attention"):
        attach(AutoModelForCausalLM.from_config(config), [PrefixTuning()])
