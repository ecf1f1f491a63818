"""The tree of a model's modules holds every module and number once; targets, ties, parts and methods are told."""

from __future__ import annotations

import pytest

import zoo
from peftkit import recipe as recipes
from peftkit.adaptation import check_methods
from peftkit.errors import PeftkitError
from peftkit.inspection import Branch, ModelView, inspect_model
from peftkit.inspection.tree import ModuleTree
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

FAMILIES = ["gpt2", "llama", "mixtral", "mamba2", "zamba2", "jamba", "qwen3_moe", "gpt_neox"]


def branches(layout: Layout, **marks: list[str]) -> dict[str, Branch]:
    """Return the branches of a tree by their paths."""
    found: dict[str, Branch] = {}

    def walk(branch: Branch, above: str) -> None:
        path = f"{above}.{branch.name}".lstrip(".")
        found[path] = branch
        for below in branch.branches:
            walk(below, path)

    for branch in ModuleTree(layout, {key.replace("__", "."): value for key, value in marks.items()}).branches():
        walk(branch, "")
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_and_every_number_stands_in_the_tree_once(family):
    with quiet():
        model = zoo.build(family)
    layout = Layout(model)
    found = branches(layout)
    assert sum(branch.equal for branch in found.values() if branch.kind != "stack") >= len(layout.modules) - 1
    tops = [branch for path, branch in found.items() if "." not in path]
    assert sum(branch.parameters for branch in tops) == sum(p.numel() for p in model.parameters())
    roles: dict[str, int] = {}
    for branch in found.values():
        for role in branch.roles:
            roles[role] = roles.get(role, 0) + branch.equal
    for role, count in layout.roles().items():
        assert roles[role] == count, role
    assert roles["block"] == len(layout.blocks)


def test_equal_layers_stand_once_with_all_their_numbers():
    found = branches(Layout(tiny("llama")))
    layer = found["model.layers.0-1"]
    assert (layer.beside, layer.equal, layer.roles) == (2, 2, ("block",))
    q = found["model.layers.0-1.self_attn.q_proj"]
    assert (q.kind, q.shape, q.roles, q.beside, q.equal, q.parameters) == ("Linear", (32, 32), ("q",), 1, 2, 2048)


def test_a_mark_on_one_layer_sets_it_apart():
    marks = {"model__layers__1__self_attn__q_proj": ["q"]}
    found = branches(Layout(tiny("llama", num_hidden_layers=4)), **marks)
    assert "model.layers.0,2-3" in found
    assert found["model.layers.1.self_attn.q_proj"].marks == ("q",)
    assert found["model.layers.0,2-3.self_attn.q_proj"].marks == ()


def test_tied_fused_and_biased_parts_are_told():
    found = branches(Layout(tiny("gpt2")))
    assert found["lm_head"].notes == ("weight tied: it is transformer.wte.weight",)
    assert found["lm_head"].parameters == 0
    fused = found["transformer.h.0-1.attn.c_attn"]
    assert (fused.roles, fused.notes) == (("q", "k", "v"), ("fused: q 32, k 32, v 32 outputs", "bias"))


def test_a_shared_module_stands_where_it_is_first():
    model = tiny("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    found = branches(Layout(model))
    shared = found["model.layers.1.mlp"]
    assert (shared.kind, shared.parameters, shared.branches) == ("LlamaMLP", 0, ())
    assert shared.notes == ("shared: it is model.layers.0.mlp",)
    assert found["model.layers.0.mlp"].parameters == 3 * 32 * 64


def test_weights_that_layers_share_are_told_at_each():
    with quiet():
        found = branches(Layout(zoo.build("zamba2")))
    first, second = (found[f"model.layers.{layer}.shared_transformer.self_attn.q_proj"] for layer in (1, 3))
    assert first.parameters == 64 * 64
    assert (second.parameters, second.notes) == (
        0,
        ("weight tied: it is model.layers.1.shared_transformer.self_attn.q_proj.weight",),
    )


def test_stacks_of_experts_are_branches_and_count_once():
    with quiet():
        layout = Layout(zoo.build("mixtral"))
    found = branches(layout)
    experts = found["model.layers.0-3.mlp.experts"]
    stacks = [branch for branch in experts.branches if branch.kind == "stack"]
    assert [branch.roles for branch in stacks] == [("experts",), ("experts",)]
    assert experts.parameters == sum(branch.parameters for branch in stacks)
    router = found["model.layers.0-3.mlp.gate"]
    assert (router.roles, router.notes) == ((), ("no linear map: no target names it",))
    assert found["model.embed_tokens"].notes == ()


@pytest.fixture(scope="module")
def view() -> ModelView:
    return inspect_model("bundled/tiny")


def test_targets_are_those_that_the_layout_resolves(view):
    matches = {match.target: match for match in view.targets}
    assert {"attention", "mlp", "linear", "q", "down", "head"} <= matches.keys()
    assert (matches["linear"].sites, matches["linear"].weights) == (
        28,
        4 * (2 * 192 * 192 + 2 * 64 * 192 + 3 * 192 * 512),
    )
    assert matches["down"].first == "model.layers.0.mlp.down_proj"
    assert view.parameters == 1_967_808


def test_each_method_is_either_suited_or_refused(view):
    refused = {name: refusal.reason for refusal in view.refusals for name in refusal.methods}
    assert sorted([*view.suited, *refused]) == METHODS.names()
    assert "has no bias at all" in refused["bitfit"]
    assert "not stored as integers" in refused["peqa"]
    layout = Layout(tiny("llama"))
    assert check_methods(layout.model, [METHODS["lora"].from_options({})], layout)
    assert "lora" in view.suited


def test_packed_weights_make_room_for_other_methods():
    packed = inspect_model("bundled/tiny", ["quantization=int4"])
    assert "peqa" in packed.suited
    assert any("packed" in branch.notes for top in packed.branches for _, branch in top.lines())
    assert packed.parameters == 1_967_808


def test_a_recipe_marks_the_places_of_its_methods():
    given = {"model": "bundled/tiny", "method": {"lora": {"targets": ["q"], "layers": "0-1"}}, "dataset": "bundled/e2e"}
    seen = inspect_model(recipes.load(given))
    marked = [branch for top in seen.branches for _, branch in top.lines() if branch.marks]
    assert [(branch.name, branch.marks, branch.equal) for branch in marked] == [("q_proj", ("lora",), 2)]


def test_a_mistyped_target_is_refused_with_the_nearest():
    with pytest.raises(PeftkitError, match=r"'atention' matches no linear module.*Did you mean 'attention'"):
        inspect_model("bundled/tiny", targets=["q", "atention"])


def test_what_stands_for_missing_roles_is_told(tmp_path):
    with quiet():
        zoo.write(tmp_path, "mamba2")
    seen = inspect_model(str(tmp_path))
    assert any(
        "lora" in note.methods and "have no q and no v: in stands for them" in note.reason for note in seen.notices
    )
    assert {match.target for match in seen.targets} >= {"in", "out"}
    assert any("no attention that an adapter can enter" in refusal.reason for refusal in seen.refusals)


def test_a_key_that_says_nothing_of_a_model_is_refused():
    with pytest.raises(PeftkitError, match=r"override 'modle.dtype=auto': found 'modle'.*Did you mean 'model'"):
        inspect_model("bundled/tiny", ["modle.dtype=auto"])
