"""UniPELT: what its gates do at both ends and at the start, their causality, its counts, parts and saved form."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adaptation import DESCRIPTION, attach, count_stored, count_trained, load_adapter, route, save_adapter
from peftkit.layout import Layout
from peftkit.methods.lora import LoRA
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.methods.unipelt import GatedPrefix, UniPELT
from peftkit.models.tiny import ARCHITECTURES, tiny

IDS = torch.tensor([[5, 9, 14, 20, 3, 17], [7, 7, 30, 41, 8, 60]])
SMALL = {"rank": 4, "prefix_length": 3, "bottleneck": 12}
UNGATED = (LoRA(rank=4, alpha=4), PrefixTuning(length=3, projection=8), PfeifferAdapter(bottleneck=12))


def attached(architecture="llama", deviation=0.3, **options):
    """A model whose parts all do something, and the handle."""
    model = tiny(architecture)
    adaptation = attach(model, [UniPELT(**{**SMALL, "projection": 8, **options})])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=deviation)
    return model, adaptation


def gates(adaptation):
    return [adapter.gate for part in adaptation.parts for adapter in part.adapters.values()]


@torch.no_grad()
def force(adaptation, bias):
    for gate in gates(adaptation):
        gate.w.zero_()
        gate.b.fill_(bias)


def run(model, ids=IDS, **rest):
    with torch.no_grad():
        return model(input_ids=ids, **rest).logits


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bloom"])
def test_closed_gates_give_the_base_and_open_ones_the_parts_themselves(architecture):
    model, adaptation = attached(architecture)
    base = run(tiny(architecture))
    assert (run(model) - base).abs().max() > 1e-2
    force(adaptation, -200.0)
    assert torch.equal(run(model), base)
    force(adaptation, 200.0)
    ungated = tiny(architecture)
    plain = attach(ungated, UNGATED)
    plain.load_state({key: tensor for key, tensor in adaptation.state().items() if "/gate." not in key})
    assert (run(model) - run(ungated)).abs().max() <= 1e-5


def test_each_gate_multiplies_its_part_by_hand():
    _, adaptation = attached(projection=None)
    low, prefix, bottleneck = (next(iter(part.adapters.values())) for part in adaptation.parts)
    x, y = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        g = 1 / (1 + torch.exp(-(x * low.gate.w[0]).sum(-1, keepdim=True) - low.gate.b))
        assert torch.allclose(low(lambda _: y, x), y + g * (x @ low.A.T @ low.B.T), atol=1e-5)
        g = 1 / (1 + torch.exp(-(y * bottleneck.gate.w[0]).sum(-1, keepdim=True) - bottleneck.gate.b))
        added = torch.relu(y @ bottleneck.D.T + bottleneck.b) @ bottleneck.U.T + bottleneck.c
        assert torch.allclose(bottleneck(lambda _: y, x), y + g * added, atol=1e-5)
        assert written_out(prefix, x).abs().max() <= 1e-5


def written_out(prefix: GatedPrefix, x):
    """The share of the prefix in the softmax is multiplied by the gate: q, k, v [2, heads, 5, 8], two groups of two."""
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()

    def attend(q, k, v, mask):
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    own = ((q @ k.repeat_interleave(2, 1).transpose(-1, -2)) / 8**0.5).exp() * mask
    keys, values = (
        part.view(3, 2, 8).transpose(0, 1).repeat_interleave(2, 0).expand(2, -1, -1, -1)
        for part in (prefix.K, prefix.V)
    )
    learnt = ((q @ keys.transpose(-1, -2)) / 8**0.5).exp()
    share = learnt.sum(-1, keepdim=True) / (learnt.sum(-1, keepdim=True) + own.sum(-1, keepdim=True))
    share = share * torch.sigmoid(x @ prefix.gate.w[0] + prefix.gate.b)[:, None, :, None]
    alone = own @ v.repeat_interleave(2, 1) / own.sum(-1, keepdim=True)
    expected = (1 - share) * alone + share * (learnt @ values / learnt.sum(-1, keepdim=True))
    prefix.context.tape[prefix.site.module] = x
    return prefix(attend, q, k, v, mask) - expected.transpose(1, 2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_later_token_changes_nothing_before_it(architecture):
    model, _ = attached(architecture)
    changed = IDS.clone()
    changed[:, 4] = 50
    difference = (run(model) - run(model, changed)).abs()
    assert difference[:, :4].max() <= 1e-6
    assert difference[:, 4:].amax((1, 2)).min() > 1e-2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_steps_with_a_cache_equal_the_whole(architecture):
    model, _ = attached(architecture)
    whole, past, steps = run(model), None, []
    with torch.no_grad():
        for ids in IDS.split(1, dim=1):
            out = model(input_ids=ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            steps.append(out.logits)
    assert (torch.cat(steps, 1) - whole).abs().max() <= 1e-5


def test_rows_of_one_batch_keep_their_own_gates():
    model, _ = attached()
    alone = run(model)
    with route(model, [None, "default"]):
        mixed = run(model)
    assert (mixed[0] - run(tiny("llama"))[0]).abs().max() <= 1e-5
    assert (mixed[1] - alone[1]).abs().max() <= 1e-5


def test_gates_start_at_about_a_half():
    adaptation = attach(tiny("llama"), [UniPELT()])
    # q, v, attention and adapter of two layers
    assert len(gates(adaptation)) == 8
    x = torch.randn(100, 32)
    for gate in gates(adaptation):
        assert 0.01 < gate.w.std() < 0.03
        assert not gate.b.any()
        values = gate(x)
        assert values.shape == (100, 1)
        assert (values - 0.5).abs().max() < 0.2
        assert values.std() > 0


def test_at_the_start_the_prefix_alone_moves_the_base():
    model = tiny("llama")
    base = run(model)
    adaptation = attach(model, [UniPELT()])
    assert (run(model) - base).abs().max() > 1e-3
    with adaptation.without([1]):
        assert torch.equal(run(model), base)


def test_each_part_can_be_switched_off():
    model, adaptation = attached()
    together = run(model)
    assert [method.name for method in adaptation.methods] == ["unipelt/lora", "unipelt/prefix", "unipelt/adapter"]
    for off in range(3):
        other, closed = attached()
        with torch.no_grad():
            for adapter in closed.parts[off].adapters.values():
                adapter.gate.w.zero_()
                adapter.gate.b.fill_(-200.0)
        with adaptation.without([off]):
            assert torch.equal(run(model), run(other))
        assert not torch.equal(run(other), together)
    assert torch.equal(run(model), together)


def test_the_count_in_closed_form():
    layout = Layout(tiny("llama"))
    # A layer: rank (32 + 32) for q and (32 + 16) for v, a prefix of 3 keys and values of 16, the bottleneck's matrices
    # and biases, and four gates of 32 + 1.
    layer = 4 * (64 + 48) + 3 * 32 + (2 * 12 * 32 + 12 + 32) + 4 * 33
    assert count_trained(UniPELT(**SMALL, projection=None), layout) == 2 * layer
    assert count_trained(UniPELT(**SMALL, projection=None, layers="1"), layout) == layer
    # E, W1 and b1 are shared; W2 and b2 make the keys and values of a layer.
    mlp = 3 * 32 + 33 * 8 + 2 * 9 * 32
    assert count_trained(UniPELT(**SMALL, projection=8), layout) == 2 * (layer - 3 * 32) + mlp
    assert count_stored(UniPELT(**SMALL, projection=8), layout) == 2 * layer


def test_the_count_of_bert_sized_layers_is_the_papers():
    """Table 1 counts 0.81 + 0.17 + 0.27 % of 110 million: an adapter of 48, a prefix of 10 and a rank of 8."""
    config = AutoConfig.for_model("gpt2", n_embd=768, n_layer=12, n_head=12)
    with torch.device("meta"):
        layout = Layout(AutoModelForCausalLM.from_config(config))
    gates = 12 * 4 * 769
    assert count_stored(UniPELT(), layout) - gates == 12 * (2 * 48 * 768 + 48 + 768) + 12 * 20 * 768 + 12 * 32 * 768


@pytest.mark.parametrize("finished", [False, True])
def test_it_is_saved_under_its_own_name(finished, tmp_path):
    model, adaptation = attached(layers="1")
    if finished:
        adaptation.finish()
    expected = run(model)
    save_adapter(adaptation, tmp_path / "adapter", {"name": "llama"})
    (written,) = json.loads((tmp_path / "adapter" / DESCRIPTION).read_text())["methods"]
    chosen = UniPELT(**SMALL, layers="1", projection=None if finished else 8)
    assert (written["name"], written["options"]) == ("unipelt", chosen.options())
    fresh = tiny("llama")
    loaded = load_adapter(fresh, tmp_path / "adapter", None)
    assert loaded.chosen == (chosen,)
    assert torch.equal(run(fresh), expected)
    assert not any("outer" in key or "shared" in key for key in loaded.state()) or not finished


def test_beside_another_method_both_are_written_down(tmp_path):
    model = tiny("llama")
    both = [LoRA(targets="mlp"), UniPELT(**SMALL, projection=None)]
    adaptation = attach(model, both)
    assert adaptation.described == tuple(both)
    save_adapter(adaptation, tmp_path / "adapter", {"name": "llama"})
    assert load_adapter(tiny("llama"), tmp_path / "adapter", None).chosen == tuple(both)
