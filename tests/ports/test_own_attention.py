"""Adapters inside attention that a model computes past the registry: through its cache, and like everywhere else."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
import torch.nn.functional as F
from attention_references import IDS, MASK, REAL
from transformers import DynamicCache

import zoo
from peftkit.adaptation import attach, route
from peftkit.engine.memory_plan import checkpoint_gradients
from peftkit.errors import PeftkitError
from peftkit.families import attention
from peftkit.generation import Settings, generate
from peftkit.methods.llama_adapter import LlamaAdapter
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.unipelt import GatedPrefixTuning

OWN = ("bloom", "codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "mpt", "xglm")
METHODS = (
    PTuningV2(length=3, deviation=0.7),
    GatedPrefixTuning(length=3, projection=8),
    LlamaAdapter(length=3),
    LlamaAdapter(length=3, variant="official"),
)
LEFT = torch.ones_like(IDS)
LEFT[1, :6] = 0


def some(*few):
    return [pytest.param(name, marks=() if name in few else pytest.mark.thorough) for name in OWN]


def started(model, method):
    adaptation = attach(model, [method])
    for adapter in adaptation.adapters():
        if hasattr(adapter, "g"):
            torch.nn.init.constant_(adapter.g, 0.5)
    return adaptation


def run(model, mask=MASK, **rest):
    if "position_ids" in inspect.signature(model.forward).parameters:
        rest["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=IDS, attention_mask=mask, **({"use_cache": False} | rest)).logits


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{getattr(method, 'variant', '')}")
@pytest.mark.parametrize("mask", [MASK, LEFT, torch.ones_like(IDS)], ids=["right", "left", "none"])
def test_both_ways_are_the_same(method, mask, monkeypatch):
    """OPT, entered through the registry and as if it had none: the same logits and gradients."""
    found = []
    for own in (False, True):
        with monkeypatch.context() as patch:
            if own:
                patch.setattr(attention, "_registered", lambda cls: False)
            model = zoo.build("opt")
            adaptation = started(model, method)
        assert {adapter.site.heads.own for adapter in adaptation.adapters()} == {own}
        logits = run(model, mask)[mask.bool()]
        logits.square().mean().backward()
        found.append((logits, torch.cat([p.grad.flatten() for _, p in adaptation.parameters()])))
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", some("falcon", "bloom", "mpt"))
def test_a_prefix_is_what_stands_in_the_cache(name, monkeypatch):
    """The bare model with the prefix in its cache, the text at its own positions; a bias by position begins with it."""
    bare, model = zoo.build(name), zoo.build(name)
    adaptation, cache = started(model, METHODS[0]), DynamicCache()
    for layer, adapter in enumerate(adaptation.adapters()):
        groups = adapter.site.heads.groups
        cache.update(
            *(x.detach().view(3, groups, -1).transpose(0, 1).expand(2, -1, -1, -1) for x in (adapter.K, adapter.V)),
            layer,
        )
    with torch.no_grad():
        found, without = run(model), run(bare)
    rest = {"past_key_values": cache, "use_cache": True}
    if "position_ids" in inspect.signature(bare.forward).parameters:
        rest["position_ids"] = (MASK.cumsum(1) - 1).clamp(min=0)
    code = sys.modules[type(bare).__module__]
    if hasattr(code, "build_alibi_tensor"):
        own = code.build_alibi_tensor
        of_text = lambda mask, *args, **named: F.pad(own(mask[:, 3:], *args, **named), (3, 0))  # noqa: E731
        monkeypatch.setattr(code, "build_alibi_tensor", of_text)
    with torch.no_grad():
        longer = torch.cat([torch.ones(2, 3, dtype=torch.long), MASK], 1)
        expected = bare(input_ids=IDS, attention_mask=longer, **rest).logits
    assert (found - expected)[REAL].abs().max() <= 1e-5
    assert (found - without)[REAL].abs().max() > 1e-2


@pytest.mark.parametrize("name", some("mpt", "gpt_neo"))
def test_padding_on_the_left_changes_nothing(name):
    """Distances and windows count from the text, behind its padding."""
    model = zoo.build(name)
    for method in METHODS[:3]:
        adaptation = started(model, method)
        with torch.no_grad():
            alone = model(input_ids=IDS[1:, 6:], use_cache=False).logits[0]
            assert (run(model, LEFT)[1, 6:] - alone).abs().max() <= 1e-5
        adaptation.remove()


@pytest.mark.parametrize("name", some("gptj"))
def test_checkpointing_and_answers(name):
    """Gradients are those without checkpointing, and answers from the cache are those without it."""
    model = zoo.build(name).train()
    adaptation, grads = started(model, METHODS[0]), []
    for checkpointing in (False, getattr(model, "supports_gradient_checkpointing", False)):
        if checkpointing:
            checkpoint_gradients(model)
        run(model)[REAL].square().mean().backward()
        grads.append(torch.cat([parameter.grad.flatten() for _, parameter in adaptation.parameters()]))
        model.zero_grad()
    assert (grads[0] - grads[1]).abs().max() <= 1e-6 * grads[0].abs().max()
    model.eval()
    prompts = [[5, 6, 7], [11], [40, 41, 42, 43, 44, 45]]
    answers = generate(model, Ids(), prompts, Settings(max_new_tokens=6, ends=(2,)), batch_size=2)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + 6 and 2 not in ids:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.ids == [id for id in ids[len(prompt) :] if id != 2]


class Ids:
    """A tokenizer of ids alone."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def test_rows_of_several_adapters():
    model = zoo.build("gptj")
    parts = []
    for name, seed in (("one", 1), ("other", 2)):
        attach(model, [METHODS[0]], name, seed=seed)
        with torch.no_grad():
            parts.append(run(model))
    with route(model, ["other", "one"]), torch.no_grad():
        mixed = run(model)
    assert torch.allclose(mixed[0], parts[1][0], atol=1e-6)
    assert torch.allclose(mixed[1], parts[0][1], atol=1e-6)


def test_it_is_told_and_single_gates_are_refused_where_heads_share_keys():
    adaptation = attach(zoo.build("falcon"), [METHODS[0]])
    assert len(adaptation.notices()) == 1
    assert "slower" in adaptation.notices()[0]
    assert attach(zoo.build("opt"), [METHODS[0]]).notices() == []
    with pytest.raises(PeftkitError, match="choose variant: paper"):
        attach(zoo.build("falcon"), [METHODS[3]])
