"""Adapters of few bits: the book's values, what training sees, and that what is saved computes the same."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import norm

from peftkit.adaptation import TENSORS, attach, count_stored, describe_adapter, load_adapter, save_adapter
from peftkit.layers.coded import Coded, book
from peftkit.layout import Layout
from peftkit.methods.bi_adapter import BiAdapter, CodedBottleneck
from peftkit.models.tiny import tiny
from peftkit.quantization.bits import unpack

IDS = torch.arange(20).view(2, 10)


def moved(bits: int, seed: int = 0):
    model = tiny("llama").eval()
    adaptation = attach(model, [BiAdapter(bits=bits, bottleneck=6)])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model, adaptation


def test_the_book_is_the_medians_of_the_parts_that_its_values_are_nearest_to():
    assert book(1) == pytest.approx((-0.67449, 0.67449), abs=1e-5)
    for bits in (1, 2, 3, 4):
        values = torch.tensor(book(bits), dtype=torch.float64)
        assert len(values) == 2**bits
        torch.testing.assert_close(values, -values.flip(0))
        edges = [-torch.inf, *((values[1:] + values[:-1]) / 2).tolist(), torch.inf]
        for value, low, high in zip(values.tolist(), edges[:-1], edges[1:], strict=True):
            assert norm.cdf(value) - norm.cdf(low) == pytest.approx(norm.cdf(high) - norm.cdf(value), abs=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_matrix_has_that_many_values_each_the_nearest(bits):
    coded = Coded(40, 50, bits, packed=False)
    with torch.no_grad():
        assert coded.W is not None
        coded.W.normal_(0.3, 2.0, generator=torch.Generator().manual_seed(0))
    made, weight = coded().detach(), coded.W.detach()
    assert len(made.unique()) == 2**bits
    values = torch.tensor(book(bits)) * weight.std() + weight.mean()
    distance = (weight.flatten()[:, None] - values).abs().min(1).values
    torch.testing.assert_close((weight - made).abs().flatten(), distance, atol=1e-4, rtol=0)


def test_in_training_gradients_pass_the_codes_as_if_these_were_not_there():
    coded = Coded(5, 7, 1, packed=False).train()
    assert coded.W is not None
    torch.nn.init.normal_(coded.W, generator=torch.Generator().manual_seed(1))
    given = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    (coded() * given).sum().backward()
    weight = coded.W.detach().clone().requires_grad_()
    # With z held in the product of the deviation, as c(z) stands there.
    mean, std = weight.mean(), weight.std()
    z = (weight - mean) / (std + 1e-5)
    signs = torch.where(z.detach() > 0, book(1)[1], book(1)[0])
    ((signs + (z - z.detach())) * std + mean).mul(given).sum().backward()
    assert coded.W.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(coded.W.grad, weight.grad)
    assert coded.W.grad.abs().min() > 0


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_what_is_saved_is_codes_and_eight_bytes_a_matrix_and_computes_the_same(bits, tmp_path):
    model, adaptation = moved(bits)
    method, layout = adaptation.methods[0], Layout(model)
    with torch.no_grad():
        before = model(IDS).logits
        adaptation.finish()
        assert torch.equal(model(IDS).logits, before)
    save_adapter(adaptation, tmp_path / "adapter", {"name": "tiny", "fingerprint": None})
    tensors = load_file(tmp_path / "adapter" / TENSORS)
    site = layout.hidden("mlp")[0]
    sizes = {key.removeprefix(f"0/{site.id}/"): t.nbytes for key, t in tensors.items() if f"/{site.id}/" in key}
    codes = -(-6 * site.inputs * bits // 8)
    assert sizes == {"D.codes": codes, "D.stats": 8, "U.codes": codes, "U.stats": 8}
    assert sum(tensor.numel() for tensor in tensors.values()) == count_stored(method, layout)
    assert describe_adapter(tmp_path / "adapter")["methods"][0]["options"]["packed"] is True
    fresh = tiny("llama").eval()
    load_adapter(fresh, tmp_path / "adapter", None)
    with torch.no_grad():
        assert torch.equal(fresh(IDS).logits, before)


def test_the_first_weight_has_the_highest_bit():
    coded = Coded(2, 8, 1, packed=False)
    assert coded.W is not None
    with torch.no_grad():
        coded.W.copy_(torch.tensor([[1.0, -1, -1, -1, -1, -1, -1, 1], [1, 1, 1, 1, -1, -1, 1, 1]]))
    coded.pack()
    assert coded.codes is not None
    assert coded.codes.tolist() == [0b10000001, 0b11110011]
    assert unpack(coded.codes, 1, 16).tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1]


def test_the_start_is_near_the_base():
    model = tiny("llama").eval()
    with torch.no_grad():
        base = model(IDS).logits
        adaptation = attach(model, [BiAdapter(bottleneck=6)])
        apart = (model(IDS).logits - base).abs().max()
    adapters = [cast(CodedBottleneck, adapter) for adapter in adaptation.adapters()]
    assert all(adapter.U.W is not None and adapter.U.W.abs().max() <= 0.002 for adapter in adapters)
    assert 0 < apart < 0.05 * base.std()
