"""Every method trains one step on every family of decoder, merges, and opens in plain transformers."""

from __future__ import annotations

import pytest
import torch
from draw import marked, some
from storages import stored
from subjects import logits, loss, randomise, tokens
from transformers import AutoModelForCausalLM

from peftkit.adaptation import attach, check_methods
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.quantize import unpack
from peftkit.models.tiny import ARCHITECTURES, tiny
from peftkit.optim.build import Optimizers

LINEAR = ("q", "k", "v", "o", "up", "down", "head")


CROSS = [(name, family) for name in METHODS.names() for family in ARCHITECTURES]
HELD = [(name, family) for name in METHODS.names() for family in some(name, ARCHITECTURES, 1)]


@pytest.mark.parametrize(("method", "family"), marked(CROSS, HELD))
def test_one_step_and_a_merge(method, family, tmp_path):
    model = stored([method], family)
    base = logits(model)
    if not takes(method, model):
        pytest.skip(f"{method} refuses {family}")
    adaptation = attach(model, [METHODS[method].from_options({})])
    optimizer = Optimizers(adaptation.groups(1e-2, 0.0))
    ids = tokens(3, 8)
    model.train()
    for _ in range(2):
        loss(model, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    adapted = logits(model)
    assert (adapted - base).abs().max() > 1e-3
    if not adaptation.chosen[0].mergeable:
        pytest.skip(f"{method} does not merge")
    adaptation.merge_()
    unpack(model, tiny(family).to("meta"))
    adaptation.model.save_pretrained(tmp_path, state_dict=plain(model))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (logits(opened) - adapted).abs().max() <= 1e-5


def takes(method, model):
    """Say whether the method suits the model; its refusal is held by its own tests."""
    try:
        check_methods(model, [METHODS[method].from_options({})])
    except PeftkitError:
        return False
    return True


def plain(model):
    """The state of the model without seated adapters."""
    return {key: value for key, value in model.state_dict().items() if ".seated." not in key}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_roles_are_found(family):
    layout = Layout(tiny(family))
    roles = layout.roles()
    gated = {"gate"} if family in ("llama", "qwen3", "gemma", "mistral") else set()
    assert set(roles) == {*LINEAR, *gated}
    assert all(count == (1 if role == "head" else 2) for role, count in roles.items())
    for site in layout.linears:
        if site.role == "q":
            assert (site.outputs, site.inputs) == (32, 32)
        if site.role in ("k", "v"):
            grouped = family in ("llama", "qwen3", "gemma", "mistral", "phi")
            assert site.outputs == (16 if grouped else 32)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_the_parts_of_a_fused_module_are_the_q_k_v_that_the_model_uses(family):
    """A change of one part moves the attention's q, k or v and leaves the two others as they are."""
    model = tiny(family)
    ids = tokens(1, 6)
    seen: dict[str, list] = {}

    def record(label):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        def attention(module, query, key, value, *args, **kwargs):
            seen.setdefault(label, []).append((query.clone(), key.clone(), value.clone()))
            return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)

        ALL_ATTENTION_FUNCTIONS.register("recorded", attention)
        model.config._attn_implementation = "recorded"
        model(input_ids=ids)

    record("base")
    for position, role in enumerate("qkv"):
        adaptation = attach(model, [METHODS["lora"].from_options({"targets": role, "layers": "0"})])
        randomise(adaptation)
        record(role)
        adaptation.remove()
        for other in range(3):
            same = torch.equal(seen[role][0][other], seen["base"][0][other])
            assert same == (other != position), f"{role} changed {'qkv'[other]}"


def test_blooms_parts_follow_its_own_split():
    model = tiny("bloom")
    attention = model.transformer.h[0].self_attention
    sites = {site.role: site for site in Layout(model).linears if site.layer == 0}
    fused = attention.query_key_value(torch.randn(1, 5, 32))
    for role, expected in zip("qkv", attention._reshape(fused), strict=True):
        mine = sites[role].rows.take(fused).view(1, 5, 4, 8).transpose(1, 2)
        assert torch.equal(mine, expected), role
