"""A method on packed weights is the method on the dense weights that they stand for (invariant 12)."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from draw import marked, share, some
from storages import SIZES, looked_at, small
from subjects import build, hold_equal_to_dense, randomise, tokens

from peftkit.adaptation import attach, check_methods
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense, store


@cache
def packs(method: str) -> str:
    """Return the architecture whose packed form the method takes, or why neither does."""
    reasons = []
    for architecture in ("llama", "gpt2"):
        try:
            check_methods(looked_at(METHODS[method].needs, architecture, packed=True), [build(method, 0)])
        except PeftkitError as error:
            reasons.append(str(error))
        else:
            return architecture
    return "; ".join(reasons)


PACKED = [name for name in METHODS.names() if packs(name) in ("llama", "gpt2")]
ANYWHERE = [name for name in PACKED if METHODS[name].needs is None]
MERGED = [(name, "nf4") for name in ANYWHERE if METHODS[name].mergeable]
MERGED += [
    (name, other)
    for name in PACKED
    for other in QUANTIZERS.names()
    if METHODS[name].mergeable and METHODS[name].needs in small(other).traits
]
CROSS = [(name, other) for name in ANYWHERE for other in QUANTIZERS.names()]
HELD = [(name, other) for name in ANYWHERE for other in some(name, QUANTIZERS.names(), 1)]


def test_sizes_for_small_models_are_of_formats():
    assert set(SIZES) <= set(QUANTIZERS.names())


def test_only_what_trains_the_packed_weights_is_refused():
    refused = {name: packs(name) for name in METHODS.names() if name not in PACKED}
    assert set(refused) == {"full", "galore"}
    assert all("without quantization" in reason for reason in refused.values())


@pytest.mark.parametrize(("method", "format_name"), marked(CROSS, HELD))
def test_forward_and_backward_equal_those_on_the_dequantized_weights(method, format_name):
    architecture = packs(method)
    model = tiny(architecture)
    quantize(model, Quantization(small(format_name)))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert layers
    twin = tiny(architecture)
    for name, module in layers.items():
        store(twin.get_submodule(name), dense(module))
    hold_equal_to_dense(model, twin, method, layers)


@pytest.mark.parametrize(("method", "format_name"), marked(MERGED, share("merged", MERGED, 2)))
def test_it_merges_into_the_dequantized_weights_and_out_again(method, format_name):
    architecture = packs(method)
    model = tiny(architecture)
    quantize(model, Quantization(small(format_name)))
    with torch.no_grad():
        adaptation = attach(model, [build(method, 0)])
        adaptation.prepare([])
        randomise(adaptation)
        model.eval()
        ids = tokens()
        adapted = model(input_ids=ids).logits
        state = {key: value.clone() for key, value in model.state_dict().items()}
        adaptation.merge_()
        assert (model(input_ids=ids).logits - adapted).abs().max() <= 1e-5
        adaptation.unmerge_()
        assert torch.equal(model(input_ids=ids).logits, adapted)
        for key, value in state.items():
            assert torch.equal(model.state_dict()[key], value), key
