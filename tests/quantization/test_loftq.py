"""LoftQ: its facts at each iteration, its start in a model, and that a saved one comes back without being redone."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach, count_stored, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.methods.inits import INITS, loftq
from peftkit.models.quantize import Quantization, forget_originals, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense

IDS = torch.arange(3, 12)[None]


def packed(name="nf2", **options):
    model = tiny("llama")
    small = {"group_size": 16} if name.startswith("int") else {"block_size": 16}
    quantize(model, Quantization(QUANTIZERS[name].from_options({**small, **options})))
    return model


def method(**options):
    return METHODS["lora"].from_options({"targets": "linear", "rank": 4, "init": "loftq", **options})


def products(adaptation):
    """Iterate over (path, s B A, W as it was, Q) of each adapter."""
    plain = tiny("llama")
    for adapter in adaptation.parts[0].adapters.values():
        path = adapter.site.path
        yield path, adapter.delta(None).detach(), dense(plain.get_submodule(path)), dense(adapter.site.module)


@pytest.mark.parametrize("name", ["nf4", "nf2", "nf3", "int2"])
@pytest.mark.parametrize("alpha", [4, 16])
def test_the_start_is_nearer_the_weight_than_plain_packing(name, alpha):
    model, plain = packed(name), packed(name)
    for path, product, weight, stored in products(attach(model, [method(alpha=alpha)])):
        alone = dense(plain.get_submodule(path))
        assert torch.linalg.norm(weight - stored - product) < torch.linalg.norm(weight - alone), path


def test_each_pair_is_the_best_of_its_rank_for_what_packing_left(caplog):
    """Eckart and Young: |R - B A|^2 is the sum of the squares of the singular values beyond the rank."""
    model = packed()
    for path, product, weight, stored in products(attach(model, [method()])):
        rest = (weight - stored).detach()
        beyond = torch.linalg.svdvals(rest)[4:]
        assert torch.linalg.norm(rest - product) == pytest.approx(float(beyond.norm()), rel=1e-4), path
        assert torch.linalg.norm(rest - product) <= torch.linalg.norm(rest)


def test_the_best_iterate_is_kept_and_told(caplog):
    with caplog.at_level("INFO", "peftkit"):
        adaptation = attach(packed(), [method()])
    told = [record.args for record in caplog.records if "loftq" in record.msg]
    assert len(told) == len(adaptation.parts[0].adapters)
    found = {path: torch.linalg.norm(weight - q - product) for path, product, weight, q in products(adaptation)}
    for site, errors, plain in told:
        values = [float(error) for error in errors.split(", ")]
        assert len(values) == loftq.ITERATIONS
        assert float(found[site]) == pytest.approx(min(values), rel=1e-3)
        assert min(values) < plain


def test_a_large_weight_is_decomposed_to_a_percent_of_the_exact_error():
    weight = torch.randn(600, 768, generator=torch.Generator().manual_seed(0)) * 0.02
    quantizer = QUANTIZERS["nf2"]()
    rest = weight - quantizer.decode(quantizer.quantize(weight), (600, 768))
    torch.manual_seed(0)
    left, values, right = loftq.decompose(rest, 16)
    near = torch.linalg.norm(rest - left[:, :16] * values[:16] @ right[:16])
    exact = torch.linalg.svdvals(rest)[16:].norm()
    assert exact <= near <= 1.01 * exact
    assert near < torch.linalg.norm(rest)


def test_weights_that_are_not_packed_are_refused():
    with pytest.raises(PeftkitError, match=r"init 'loftq' answers what packing loses.*set quantization"):
        attach(tiny("llama"), [method()])


def test_a_saved_start_comes_back_without_being_redone(tmp_path, monkeypatch):
    model = packed()
    adaptation = attach(model, [method()])
    forget_originals(model)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    expected = model(input_ids=IDS).logits
    save_adapter(adaptation, tmp_path / "adapter", {"name": "tiny"})
    monkeypatch.setattr(loftq, "ITERATIONS", None)
    again = packed()
    load_adapter(again, tmp_path / "adapter", None)
    assert torch.equal(again(input_ids=IDS).logits, expected)
    stored = count_stored(method(), adaptation.layout)
    assert sum(tensor.numel() for tensor in adaptation.state().values()) == stored


def test_what_was_learned_goes_into_the_original_weights(tmp_path):
    """On the weights that were never packed the start is subtracted: W + (B A - B0 A0)."""
    model = packed("nf4")
    adaptation = attach(model, [method()])
    save_adapter(adaptation, tmp_path / "adapter", {"name": "tiny"})
    plain = tiny("llama")
    before = plain(input_ids=IDS).logits
    loaded = load_adapter(plain, tmp_path / "adapter", None)
    assert (plain(input_ids=IDS).logits - before).abs().max() <= 1e-5
    loaded.merge_()
    assert (plain(input_ids=IDS).logits - before).abs().max() <= 1e-5


def test_switching_off_and_removing_bring_the_packed_base_back():
    model, base = packed(), packed()
    adaptation = attach(model, [method()])
    with adaptation.disabled():
        assert torch.equal(model(input_ids=IDS).logits, base(input_ids=IDS).logits)
    adaptation.remove()
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            assert torch.equal(dense(module), dense(base.get_submodule(name)))


def test_pissa_takes_its_pair_from_the_weight_before_packing():
    """QPiSSA: what is packed is W - B A of the original W, and not of the packed one."""
    adaptation = attach(packed("nf4"), [method(init="pissa")])
    for path, product, weight, stored in products(adaptation):
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        assert torch.allclose(product, left[:, :4] * values[:4] @ right[:4], atol=1e-5), path
        quantizer = adaptation.layout.model.get_submodule(path).quantizer
        rest = weight - product
        assert torch.allclose(stored, quantizer.decode(quantizer.quantize(rest), tuple(rest.shape)), atol=1e-6)
    assert "loftq" in INITS
