"""Pruning: scores by the papers' equations, exact shares and patterns, and outputs that are kept."""

from __future__ import annotations

import pytest
import torch

import zoo
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.models.prune import apply, filled, prune, spread
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.models.walk import observe
from peftkit.pruning import PRUNERS
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense


def rows(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 60, (1, 6 + 5 * (number % 3)), generator=generator) for number in range(count)]


def build(name, **options):
    return PRUNERS[name].from_options(options)


def seen(x):
    inputs = Inputs(x.shape[-1], products=False)
    inputs.add(x)
    return inputs


def test_the_example_by_hand():
    """Scores |W| |x|: x has the norms 1, 2 and 10, so that the small 0.3 counts 3 and the large 2.0 counts 2."""
    weight = torch.tensor([[2.0, -0.5, 0.3, 0.0], [-0.1, 0.2, -0.05, 9.0]])
    x = torch.tensor([[0.6, 0.0, 6.0, 0.0], [0.8, 2.0, 8.0, 1e-3]])
    assert (seen(x).norms * 2**0.5).tolist() == pytest.approx([1, 2, 10, 1e-3])
    kept = build("wanda").kept(weight, seen(x))
    assert kept.tolist() == [[True, False, True, False], [False, True, True, False]]
    # By size alone, over the whole matrix: 9, 2, 0.5 and 0.3.
    kept = build("magnitude").kept(weight)
    assert kept.tolist() == [[True, True, True, False], [False, False, False, True]]
    kept = build("wanda", pattern="1:2").kept(weight, seen(x))
    assert kept.tolist() == [[True, False, True, False], [False, True, True, False]]
    kept = build("magnitude", pattern="1:4").kept(weight)
    assert kept.tolist() == [[True, False, False, False], [False, False, False, True]]


@pytest.mark.parametrize("name", PRUNERS.names())
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.7])
def test_the_share_is_exact(name, sparsity):
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
    kept = build(name, sparsity=sparsity).kept(weight, seen(x))
    if name == "wanda":
        assert ((~kept).sum(1) == int(40 * sparsity)).all()
    assert int((~kept).sum()) == int(24 * 40 * sparsity)
    if sparsity == 0:
        assert kept.all()


@pytest.mark.parametrize("name", PRUNERS.names())
@pytest.mark.parametrize(("stay", "size"), [(2, 4), (4, 8), (1, 4)])
def test_every_group_keeps_as_many_as_the_pattern_says_and_the_largest(name, stay, size):
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, 40)
    pruner = build(name, pattern=f"{stay}:{size}")
    kept, scores = pruner.kept(weight, seen(x)), pruner.scores(weight, seen(x))
    groups = kept.view(-1, size)
    assert (groups.sum(1) == stay).all()
    least = scores.view(-1, size).masked_fill(~groups, float("inf")).amin(1)
    assert (scores.view(-1, size).masked_fill(groups, 0).amax(1) <= least).all()


def test_outputs_are_kept_better_than_by_size_where_inputs_differ():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 40, generator=generator), torch.randn(200, 40, generator=generator)
    x = x * torch.logspace(-1.5, 1, 40)
    errors = [
        float((x @ (weight * ~build(name, sparsity=0.5).kept(weight, seen(x))).T).square().sum())
        for name in ("wanda", "magnitude")
    ]
    assert errors[0] < 0.2 * errors[1]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_each_layer_is_pruned_for_what_pruned_layers_before_it_give(architecture):
    model, twin, examples = tiny(architecture), tiny(architecture), rows()
    pruner = build("wanda", pattern="2:4")
    masks = prune(model, pruner, examples)
    layout = Layout(twin)
    paths = [site.path for site in layout.linears if site.layer is not None]
    assert set(masks) == set(paths)
    for layer in range(len(layout.blocks)):
        own = [path for path in dict.fromkeys(paths) if layout.layer_of(path) == layer]
        with torch.no_grad():
            given = observe(twin, own, lambda: [twin(input_ids=ids, use_cache=False) for ids in examples])
            for path in own:
                weight = dense(twin.get_submodule(path))
                kept = pruner.kept(weight, given[path])
                assert torch.equal(spread(masks[path], weight), kept), path
                weight.mul_(kept)
    for path in paths:
        assert torch.equal(dense(model.get_submodule(path)), dense(twin.get_submodule(path)))
    again = tiny(architecture)
    apply(again, masks)
    assert all(torch.equal(one, two) for one, two in zip(again.parameters(), model.parameters(), strict=True))
    assert filled(again, masks) == 0


def test_weights_that_were_zero_before_are_counted_as_they_are():
    model = tiny("llama")
    masks = prune(model, build("magnitude", targets="down", exclude=("layers.1.*",)), [])
    assert list(masks) == ["model.layers.0.mlp.down_proj"]
    weight = dense(model.get_submodule("model.layers.0.mlp.down_proj"))
    assert int((weight == 0).sum()) == weight.numel() // 2
    with torch.no_grad():
        weight[0] += 1
    assert filled(model, masks) == int((~spread(next(iter(masks.values())), weight))[0].sum())


@pytest.mark.parametrize("name", [name for name in QUANTIZERS.names() if not name.startswith("bcq")])
def test_zeros_stay_in_every_format_that_has_one(name):
    model = tiny("llama")
    masks = prune(model, build("wanda"), rows())
    quantize(model, Quantization(QUANTIZERS[name].from_options(small(name))))
    assert any(isinstance(one, PackedLinear) for one in model.modules())
    assert filled(model, masks) == 0


def small(name):
    sizes = {"block_size": 16, "group_size": 16}
    return {key: value for key, value in sizes.items() if key in QUANTIZERS[name]().options()}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pattern": "4:2"}, "wanda: pattern: found '4:2'; allowed: n:m with n from 1 and below m"),
        ({"pattern": "2/4"}, "n:m with n from 1 and below m"),
        ({"pattern": "2:4", "sparsity": 0.5}, "pattern: found '2:4' beside sparsity 0.5; allowed: one of them"),
        ({"sparsity": 1.0}, "sparsity: .*less than 1"),
        ({"sparsty": 0.5}, "Did you mean 'sparsity'"),
    ],
    ids=str,
)
def test_wrong_options_are_told(options, told):
    with pytest.raises(PeftkitError, match=told):
        build("wanda", **options)


def test_maps_that_cannot_be_pruned_are_refused_with_nothing_changed():
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PeftkitError, match=r"pruning: .*'q_porj'"):
        prune(model, build("wanda", targets="q_porj"), rows())
    with pytest.raises(PeftkitError, match=r"pattern 2:5 does not divide the 32 inputs of model\.layers\.0"):
        prune(model, build("wanda", pattern="2:5"), rows())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(PeftkitError, match="shares its weight with another module"):
        prune(tiny("gpt2"), build("magnitude", targets="head"), [])
    with pytest.raises(PeftkitError, match="is a stack of experts, which is not pruned"):
        prune(zoo.build("mixtral"), build("magnitude", targets="experts"), [])
    with pytest.raises(PeftkitError, match="this model has no map of that size there"):
        apply(model, {"model.layers.0.mlp.down_proj": torch.zeros(3, dtype=torch.uint8)})
