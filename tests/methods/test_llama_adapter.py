"""LLaMA-Adapter: its attention written out, its first gradients and its published count."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adaptation import attach, count_trained
from peftkit.layout import Layout
from peftkit.methods.llama_adapter import LlamaAdapter
from peftkit.models.tiny import tiny

IDS = torch.tensor([[5, 9, 14, 20], [7, 7, 30, 41]])


def written_out(module, prompt, gate, q):
    """Gate times the softmax over the prompt alone: q [B, 4, T, 8] -> [B, T, 4, 8]; two groups of two heads each."""
    with torch.no_grad():
        keys = module.k_proj(prompt).view(-1, 2, 8).repeat_interleave(2, dim=1)
        values = module.v_proj(prompt).view(-1, 2, 8).repeat_interleave(2, dim=1)
    scores = torch.einsum("bhts,phs->bhtp", q, keys) / 8**0.5
    return torch.einsum("bhtp,phs->bths", scores.softmax(-1), values) * gate[:, None]


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_attention_written_out(variant):
    model = tiny("llama")
    adaptation = attach(model, [LlamaAdapter(length=3, variant=variant)])
    adapter = list(adaptation.parts[0].adapters.values())[1]
    with torch.no_grad():
        adapter.g.copy_(torch.tensor([0.5] if variant == "paper" else [0.5, -1.0, 2.0, 0.1]))
    gate = torch.full((4,), 0.5) if variant == "paper" else torch.tanh(torch.tensor([0.5, -1.0, 2.0, 0.1]))
    calls = []
    adapter.register_forward_hook(lambda adapter, args, output: calls.append((args, output)))
    with torch.no_grad():
        model(input_ids=IDS)
        (attend, q, k, v, mask), found = calls[0]
        assert q.shape == (2, 4, 4, 8)
        expected = attend(q, k, v, mask) + written_out(adapter.site.module, adapter.P, gate, q)
    assert (found - expected).abs().max() <= 1e-5


def test_the_keys_of_the_prompt_pass_the_norm_of_keys():
    model = tiny("qwen3")
    adaptation = attach(model, [LlamaAdapter(length=3)])
    adapter = next(iter(adaptation.parts[0].adapters.values()))
    module, made = adapter.site.module, []
    adapter.register_forward_hook(lambda adapter, args, output: made.append(adapter.made(adapter.P)))
    with torch.no_grad():
        model(input_ids=IDS)
        keys = module.k_norm(module.k_proj(adapter.P).view(3, 2, 8)).transpose(0, 1)
        values = module.v_proj(adapter.P).view(3, 2, 8).transpose(0, 1)
    for part, expected in zip(made[0], (keys, values), strict=True):
        assert torch.allclose(part[0], expected, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_hugging_face_peft_computes_the_same(architecture):
    """In GPT-2 it adds what the prompt gives behind the output map: the same where that map is the identity."""
    peft = pytest.importorskip("peft")
    config = peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM")
    model, base = tiny(architecture), tiny(architecture)
    if architecture == "gpt2":
        for each in (model, base):
            each.transformer.h[1].attn.c_proj.weight.data = torch.eye(32)
            each.transformer.h[1].attn.c_proj.bias.data.zero_()
    theirs = peft.get_peft_model(base, config).eval()
    adaptation = attach(model, [LlamaAdapter(length=3, top=1)])
    (adapter,) = adaptation.parts[0].adapters.values()
    assert adapter.site.layer == 1
    seated = theirs.base_model.model.get_submodule(adapter.site.path)
    with torch.no_grad():
        adapter.g.fill_(0.7)
        seated.adaption_gate.fill_(0.7)
        seated.adaption_prompt.copy_(adapter.P[None])
        expected = theirs(input_ids=IDS).logits
        assert (model(input_ids=IDS).logits - expected).abs().max() <= 1e-5
        with adaptation.disabled():
            assert (model(input_ids=IDS).logits - expected).abs().max() > 1e-2


def test_the_gate_learns_first():
    model = tiny("llama")
    adaptation = attach(model, [LlamaAdapter(length=3)])
    model(input_ids=IDS).logits.square().mean().backward()
    for key, parameter in adaptation.parameters():
        assert bool(parameter.grad.any()) == key.endswith("/g"), key


def test_the_count_of_llama_7b_is_the_published_one():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        layout = Layout(AutoModelForCausalLM.from_config(config))
    assert count_trained(LlamaAdapter(), layout) == 1_228_830
    assert count_trained(LlamaAdapter(variant="official"), layout) == 30 * (10 * 4096 + 32)
