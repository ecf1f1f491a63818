"""How low-rank pairs start: what each choice leaves of the frozen weight, PiSSA and OLoRA by their formulas."""

from __future__ import annotations

import json

import pytest
import torch
from closed_forms import saved_pairs
from safetensors.torch import save_file
from torch import nn

from peftkit.adaptation import activate, attach, check_methods, load_adapter, route, save_adapter
from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import convert
from peftkit.layout import Layout, Site
from peftkit.method import METHODS
from peftkit.methods.dora import DoRA
from peftkit.methods.inits import INITS, Measured, splits
from peftkit.methods.lora import LoRA
from peftkit.models.tiny import tiny
from peftkit.quantization.weight import dense

ARCHITECTURES = ("llama", "gpt2", "gpt_neox")
SPLITTING = [name for name in INITS.names() if splits(name) and saved_pairs(name) == 1]
DRAWN = [name for name in INITS.names() if not splits(name)]
LEAST = {"milora": 1e-3}
"""How far a start moves the weights at least that takes little out of them."""
IDS = torch.tensor([[5, 9, 17, 40, 41, 8]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def weights(model):
    """The model's own tensors by name, as they are now."""
    return {key: value.clone() for key, value in model.state_dict().items() if ".seated." not in key}


def randomise(adaptation):
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)


def stuck(*_, **__):
    raise AssertionError("a weight was factorised")


@pytest.fixture
def no_factorising(monkeypatch):
    """Hold that nothing is factorised from the moment that the test calls what this gives."""

    def begin():
        for name in ("svd", "qr"):
            monkeypatch.setattr(torch.linalg, name, stuck)

    return begin


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("init", [*DRAWN, *SPLITTING])
def test_frozen_weight_and_pair_are_the_weight_at_every_site(init, architecture):
    """A choice that is not drawn has also moved every weight by far more than what rounding leaves."""
    model = tiny(architecture)
    method = LoRA(init=init, targets="linear", rank=4, alpha=6.0)
    found = method.build(LoRA().sites(Layout(model))[0])
    assert method.splits_base == (found.factorise is not None)
    before = weights(model)
    originals = {site.id: rows(site) for site in method.sites(Layout(model))}
    adaptation = attach(model, [method])
    for key, adapter in adaptation.parts[0].adapters.items():
        left = adapter.weight()
        assert (left + adapter.delta(left) - originals[key]).abs().max() <= 2e-6
        moved = (left - originals[key]).abs().max()
        if isinstance(INITS[init], Measured):
            # Nothing has been seen yet, and B is zero.
            assert moved == 0
        else:
            assert moved > LEAST.get(init, 1e-1) if method.splits_base else moved == 0
    touched = {f"{a.site.path}.weight" for a in adaptation.parts[0].adapters.values()}
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items() if key not in touched)


def rows(site):
    weight = dense(site.module).detach().clone()
    return weight if site.rows is None else site.rows.take(weight.T).T


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_the_other_parts_of_a_fused_module_stay(architecture):
    model = tiny(architecture)
    others = {site.id: site for site in LoRA(targets=("q", "v")).sites(Layout(model))}
    before = {key: rows(site) for key, site in others.items()}
    attach(model, [LoRA(init="pissa", targets="k", rank=2)])
    assert all(torch.equal(rows(site), before[key]) for key, site in others.items())


def started(init, **options):
    """Return the weight [6, 5] of a linear map, and its adapter once the map holds the rest."""
    linear = nn.Linear(5, 6)
    weight = linear.weight.detach().clone()
    adapter = LoRA(rank=2, init=init, **options).build(Site("linear", linear, 5, 6))
    adapter.start()
    adapter.settle()
    return weight, adapter


def test_pissa_takes_the_largest_singular_values():
    weight, adapter = started("pissa", alpha=6.0)
    values = torch.linalg.svdvals(weight)
    assert torch.allclose(torch.linalg.svdvals(adapter.weight())[:3], values[2:], atol=1e-6)
    assert torch.allclose(torch.linalg.svdvals(adapter.delta(weight))[:2], values[:2], atol=1e-6)
    # Each matrix carries the root of the singular values: s A A^T = s B^T B = S.
    for gram in (adapter.A @ adapter.A.T, adapter.B.T @ adapter.B):
        assert torch.allclose(adapter.scale * gram, torch.diag(values[:2]), atol=1e-5)


def test_olora_takes_an_orthonormal_basis():
    weight, adapter = started("olora", alpha=6.0)
    assert torch.allclose(adapter.B.T @ adapter.B, torch.eye(2), atol=1e-6)
    assert torch.allclose(adapter.A, adapter.B.T @ weight, atol=1e-6)
    assert adapter.A[1, 0].abs() < 1e-6
    assert torch.allclose(adapter.weight(), weight - 3.0 * adapter.B @ adapter.A, atol=1e-6)


def test_the_fast_decomposition_is_nearly_the_exact_one():
    torch.manual_seed(0)
    linear = nn.Linear(60, 50)
    with torch.no_grad():
        left, right = (torch.linalg.qr(torch.randn(size, 40))[0] for size in (50, 60))
        linear.weight.copy_(left * 0.8 ** torch.arange(40) @ right.T)
    weight = linear.weight.detach().clone()
    pairs = [LoRA(rank=5, init=init).build(Site("linear", linear, 60, 50)) for init in ("pissa", "pissa-fast")]
    for adapter in pairs:
        adapter.start()
    exact, fast = (adapter.delta(weight) for adapter in pairs)
    assert (fast - exact).norm() <= 1e-4 * exact.norm()
    assert not torch.equal(fast, exact)


def test_the_fast_decomposition_follows_from_the_seed():
    states = [attach(tiny("llama"), [LoRA(init="pissa-fast", rank=2)], seed=seed).state() for seed in (1, 1, 2)]
    key = "0/model.layers.0.self_attn.q_proj/A0"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


# That library's OLoRA takes no Conv1D.
@pytest.mark.parametrize(("init", "architecture"), [("pissa", "llama"), ("pissa", "gpt2"), ("olora", "llama")])
def test_hugging_face_peft_starts_alike(init, architecture):
    """Its rest of the weight is the same, and its pair up to the sign of each direction."""
    peft = pytest.importorskip("peft")
    module = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "transformer.h.1.mlp.c_fc"}[architecture]
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        init_lora_weights=init,
        target_modules=[module],
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture == "gpt2",
    )
    theirs = peft.get_peft_model(tiny(architecture), config).base_model.model.get_submodule(module)
    model = tiny(architecture)
    adaptation = attach(model, [LoRA(init=init, rank=4, alpha=6.0, targets=(module,))])
    mine = adaptation.parts[0].adapters[module]
    down, up = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    signs = (mine.A * down).sum(1).sign()
    assert (mine.A - signs[:, None] * down).abs().max() <= 1e-5
    assert (mine.B - signs * up).abs().max() <= 1e-5
    assert (mine.weight() - dense(theirs.base_layer)).abs().max() <= 1e-5
    assert (mine.weight() - dense(tiny(architecture).get_submodule(module))).abs().max() > 1e-1


@pytest.mark.parametrize("name", ["lora", "lora-fa", "lora-plus", "lora-dropout", "dora"])
@pytest.mark.parametrize("init", SPLITTING)
def test_exported_to_hugging_face_peft_as_a_plain_adapter_of_the_base(name, init, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny("llama")
    adaptation = attach(model, [METHODS[name].from_options({"init": init, "rank": 3})])
    randomise(adaptation)
    part = adaptation.parts[0]
    config, tensors = convert(part.method, part.adapters, model)
    assert config["r"] == 6
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    theirs = peft.PeftModel.from_pretrained(tiny("llama"), str(tmp_path)).eval()
    assert (logits(theirs) - logits(model)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["dylora", "moslora", "sora"])
def test_methods_that_add_something_else_refuse(name):
    with pytest.raises(PeftkitError, match=f"{name}: init 'pissa'.*choose one of {', '.join(DRAWN)}"):
        check_methods(tiny("llama"), [METHODS[name].from_options({"init": "pissa"})])


def test_a_tied_head_is_refused():
    assert check_methods(tiny("llama", tie_word_embeddings=False), [LoRA(init="olora", targets="head")])
    with pytest.raises(PeftkitError, match="weight of lm_head, which the embedding shares"):
        check_methods(tiny("llama", tie_word_embeddings=True), [LoRA(init="olora", targets="head")])


@pytest.mark.parametrize("other", [{"name": "lora"}, {"name": "full"}, {"name": "ia3"}, {"name": "dora"}])
def test_another_method_on_a_weight_that_changes_is_refused(other):
    methods = [METHODS[other["name"]].from_options({}), LoRA(init="pissa")]
    for pair in (methods, methods[::-1]):
        with pytest.raises(PeftkitError, match=f"'lora' starts by changing .* on which '{other['name']}' works too"):
            check_methods(tiny("llama"), pair)


@pytest.mark.parametrize("cls", [LoRA, DoRA])
def test_loading_finds_the_rest_from_the_saved_start(cls, tmp_path, no_factorising):
    model = tiny("llama")
    adaptation = attach(model, [cls(init="pissa", targets="linear", rank=3)])
    randomise(adaptation)
    expected, settled = logits(model), weights(model)
    save_adapter(adaptation, tmp_path / "adapter", {"name": "llama", "fingerprint": None})
    no_factorising()
    fresh = tiny("llama")
    load_adapter(fresh, tmp_path / "adapter", None, keep_base=False)
    assert torch.equal(logits(fresh), expected)
    assert all(torch.equal(value, settled[key]) for key, value in weights(fresh).items())


def test_without_the_old_weights_it_cannot_be_switched_off():
    model = tiny("llama")
    adaptation = attach(model, [LoRA(init="pissa")], keep_base=False)
    for leave in (adaptation.remove, lambda: activate(model, None)):
        with pytest.raises(PeftkitError, match="were not kept: load the base model again"):
            leave()


def test_another_start_is_refused_once_the_weights_lack_one():
    first, second = (attach(tiny("llama", seed), [LoRA(init="pissa")]) for seed in (0, 1))
    before = first.state()["0/model.layers.0.self_attn.q_proj/A"].clone()
    with pytest.raises(PeftkitError, match="another start"):
        first.load_state(second.state())
    assert torch.equal(first.state()["0/model.layers.0.self_attn.q_proj/A"], before)
    state = {key: value.clone() for key, value in first.state().items()}
    randomise(first)
    first.load_state(state)
    assert torch.equal(first.state()["0/model.layers.0.self_attn.q_proj/A"], before)


def test_rows_are_not_routed_past_a_weight_that_is_changed():
    model = tiny("llama")
    attach(model, [LoRA()], name="plain")
    attach(model, [LoRA(init="pissa")], name="split")
    for rows in (["split", "plain"], ["plain", None]):
        with pytest.raises(PeftkitError, match="'split' changes the model's own weights"):
            route(model, rows)
    activate(model, "plain")
    with route(model, ["plain", None]):
        assert torch.equal(model(IDS.expand(2, -1)).logits[1:], logits(tiny("llama")))


def test_a_weight_that_is_not_finite_is_refused_and_the_model_left_alone():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.nan
    classes, before = [type(module) for module in model.modules()], weights(model)
    with pytest.raises(PeftkitError, match=r"layers\.1\.self_attn\.v_proj holds NaN or infinity"):
        attach(model, [LoRA(init="pissa")])
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value.nan_to_num(7.0), before[key].nan_to_num(7.0)) for key, value in weights(model).items())


@pytest.mark.parametrize("init", SPLITTING)
def test_a_bf16_weight_keeps_the_rest_rounded_once(init):
    model = tiny("llama").bfloat16()
    site = LoRA(targets="up").sites(Layout(model))[0]
    before = rows(site)
    adaptation = attach(model, [DoRA(init=init, targets="up", rank=4)])
    adapter = adaptation.parts[0].adapters[site.id]
    assert torch.equal(adapter.weight(), (before.float() - adapter.B0 @ adapter.A0).bfloat16())
    left = adapter.weight().float()
    assert torch.allclose(adapter.norm(), (left + adapter.delta(left)).norm(dim=1), rtol=1e-5)
    # The lengths are those of the weight as it was.
    assert torch.allclose(adapter.m, before.float().norm(dim=1))
    with adaptation.disabled():
        assert torch.equal(rows(site), before)
