"""LQ-LoRA: a budget of bits spent on formats, and pairs that start as the principal part of the weight."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from model_folders import write_model

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models import layerwise, packed_cache
from peftkit.models.allocation import allocate
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization import allocation
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense
from peftkit.recipe import FormatChoice, ModelSection, QuantizationSection
from peftkit.recipe import load as load_recipe

pytest.importorskip("scipy")


def spent(model):
    """Count the bits a weight of the packed layers from their tensors."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    held = sum(part.numel() * part.element_size() for layer in layers for part in layer.packed().values())
    return 8 * held / sum(layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize("seed", range(5))
def test_three_matrices_get_what_every_choice_tried_gives(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(24, 64), (64, 32), (16, 128)]
    weights = [torch.randn(size, generator=generator) * scale for size, scale in zip(shapes, (1, 0.3, 2), strict=True)]
    choices = allocation.candidates()
    assert len(choices) == 12
    errors = [[allocation.error(weight, quantizer, "w") for quantizer in choices] for weight in weights]
    sizes = [[quantizer.size(size) for quantizer in choices] for size in shapes]
    for bits in (2.5, 2.75, 3.3, 4.2):
        limit = bits / 8 * sum(map(math.prod, shapes))
        picked = allocation.choose(errors, sizes, limit)
        best = min(
            sum(errors[row][index] for row, index in enumerate(every))
            for every in itertools.product(range(len(choices)), repeat=3)
            if sum(sizes[row][index] for row, index in enumerate(every)) <= limit
        )
        assert sum(sizes[row][index] for row, index in enumerate(picked)) <= limit
        assert sum(errors[row][index] for row, index in enumerate(picked)) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", [3.0, 4.0])
def test_the_packed_bytes_keep_the_budget_and_use_it(architecture, budget):
    model = tiny(architecture)
    chosen = allocate(budget, Layout(model), lambda path: dense(model.get_submodule(path)))
    quantize(model, chosen)
    assert budget - 0.1 < spent(model) <= budget
    assert len({(one.name, one.block_size) for one in chosen.modules.values()}) > 1
    # On the meta device formats are chosen by shape alone, within the same budget.
    outline = tiny(architecture)
    quantize(outline, allocate(budget, Layout(outline), None))
    assert budget - 0.1 < spent(outline) <= budget


def test_larger_weights_get_more_bits():
    model = tiny("llama")
    first, *_ = (site.path for site in Layout(model).linears)
    with torch.no_grad():
        model.get_submodule(first).weight.mul_(50)
    chosen = allocate(3.0, Layout(model), lambda path: dense(model.get_submodule(path)))
    assert chosen.modules[first].bits == 4


def test_a_budget_below_the_smallest_formats_is_refused():
    with pytest.raises(PeftkitError, match=r"quantization\.budget: 1 bits a weight cannot be met: the smallest"):
        allocate(1.0, Layout(tiny("llama")), None)


def test_formats_beside_a_budget_are_taken_where_they_are_all_and_within_it(tmp_path):
    section = ModelSection(name=str(write_model(tmp_path / "model")))
    first = load(section, quantization=QuantizationSection(budget=3.0))
    assert first.storage["format"] == "none"
    again = QuantizationSection.model_validate({**first.storage, "budget": 3.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "choose", lambda *_: pytest.fail("the budget was spent again"))
        second = load(section, quantization=again)
    assert second.storage == first.storage
    ids = torch.arange(3, 12)[None]
    assert torch.equal(second.model(input_ids=ids).logits, first.model(input_ids=ids).logits)
    with pytest.raises(PeftkitError, match=r"bits a weight, and it is 2\.9"):
        load(section, quantization=again.model_copy(update={"budget": 2.9}))
    with pytest.raises(PeftkitError, match="has none of those that stand beside it"):
        load(section, quantization=QuantizationSection(budget=3, modules={"up": FormatChoice(format="nf4")}))


def test_a_choice_is_kept_for_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "SMALLEST", 0)
    section = ModelSection(name=str(write_model(tmp_path / "model")))
    first = load(section, quantization=QuantizationSection(budget=3.0))
    monkeypatch.setattr(allocation, "choose", lambda *_: pytest.fail("the budget was spent again"))
    monkeypatch.setattr(layerwise, "read", None)
    assert load(section, quantization=QuantizationSection(budget=3.0)).storage == first.storage


def test_a_recipe_takes_a_budget_in_the_place_of_a_format():
    keys = {"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}
    found = load_recipe({**keys, "quantization": {"budget": 2.75, "init": "lq-lora"}})
    assert found.quantization.budget == 2.75
    assert found.method[0].options["init"] == "lq-lora"
    with pytest.raises(PeftkitError, match=r"quantization\.format: found 'nf4' .text. beside a budget"):
        load_recipe({**keys, "quantization": {"format": "nf4", "budget": 2.75}})
    with pytest.raises(PeftkitError, match=r"quantization\.budget"):
        load_recipe({**keys, "quantization": {"budget": "much"}})


@pytest.mark.parametrize("name", ["nf2", "nf4"])
def test_the_errors_fall_and_the_last_of_them_is_kept(name, caplog):
    model = tiny("llama")
    quantize(model, Quantization(QUANTIZERS[name](block_size=16)))
    method = METHODS["lora"].from_options({"targets": "linear", "rank": 4, "init": "lq-lora"})
    with caplog.at_level("INFO", "peftkit"):
        adaptation = attach(model, [method])
    told = {record.args[0]: record.args[1:] for record in caplog.records if "lq-lora" in record.msg}
    assert len(told) == len(adaptation.parts[0].adapters)
    plain = tiny("llama")
    for site, adapter in adaptation.parts[0].adapters.items():
        errors, alone = told[site]
        values = [float(error) for error in errors.split(", ")]
        assert all(later <= earlier for earlier, later in itertools.pairwise(values))
        rest = dense(plain.get_submodule(site)) - dense(adapter.site.module) - adapter.delta(None)
        assert float(torch.linalg.norm(rest.detach())) == pytest.approx(values[-1], rel=1e-3)
        assert values[-1] < alone


def test_a_pair_on_dense_weights_is_refused():
    with pytest.raises(PeftkitError, match=r"init 'lq-lora' answers what packing loses"):
        attach(tiny("llama"), [METHODS["lora"].from_options({"init": "lq-lora"})])
