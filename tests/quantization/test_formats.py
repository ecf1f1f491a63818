"""Every storage format keeps its promises: the error, the size, the disk, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.errors import PeftkitError
from peftkit.quantization import bits, scales
from peftkit.quantization.bits import pack, packed_size, unpack
from peftkit.quantization.blocks import normal_float
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import BINARY

OTHERS = {
    "double_quant": [True, False],
    "symmetric": [True, False],
    "block_size": [16, 256],
    "group_size": [0, 16],
    "outliers": [0.05],
}


def variants():
    """Iterate over every format as it comes, and with each option changed."""
    for name, cls in QUANTIZERS.items():
        yield pytest.param(cls(), id=name)
        for field in dataclasses.fields(cls):
            for value in OTHERS.get(field.name, []):
                if value != field.default:
                    yield pytest.param(cls.from_options({field.name: value}), id=f"{name}-{field.name}-{value}")


def weight(shape=(48, 128), seed=0):
    """Draw a weight with rows of very different sizes, one of zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator) * torch.logspace(-6, 1, shape[0])[:, None]
    drawn[3] = 0
    return drawn


@pytest.mark.parametrize("quantizer", variants())
@pytest.mark.parametrize("shape", [(48, 128), (33, 256)], ids=str)
def test_the_error_is_within_its_bound_and_zeros_stay(quantizer, shape):
    original = weight(shape)
    parts = quantizer.quantize(original)
    found = quantizer.decode(parts, shape)
    assert found.shape == original.shape
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    bound = quantizer.error_bound(original, parts)
    assert ((found - original).abs() <= bound * (1 + 1e-5)).all()
    assert (found[3] == 0).all()
    # The bound says something: where scales are exact, it is a share of the largest weight.
    if not getattr(quantizer, "double_quant", False):
        assert (bound.amax(1) <= original.abs().amax() * 1.01).all()


@pytest.mark.parametrize("quantizer", variants())
def test_a_round_trip_through_the_disk_is_exact_and_of_the_stated_size(quantizer, tmp_path):
    original = weight()
    parts = quantizer.quantize(original)
    save_file(parts, tmp_path / "packed.safetensors")
    back = load_file(tmp_path / "packed.safetensors")
    assert torch.equal(quantizer.decode(back, (48, 128)), quantizer.decode(parts, (48, 128)))
    held = sum(part.numel() * part.element_size() for part in back.values())
    assert held == quantizer.size((48, 128))
    assert quantizer.bits_per_weight((48, 128)) == 8 * held / original.numel()


def test_bits_per_weight_are_those_of_the_papers():
    shape = (4096, 4096)
    assert QUANTIZERS["nf4"]().bits_per_weight(shape) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-5)
    assert QUANTIZERS["nf4"](double_quant=False).bits_per_weight(shape) == 4.5
    assert QUANTIZERS["nf2"]().bits_per_weight(shape) == pytest.approx(2.127, abs=1e-3)
    assert QUANTIZERS["int8"]().bits_per_weight(shape) == pytest.approx(8 + 32 / 4096)


@pytest.mark.parametrize("quantizer", variants())
def test_packing_what_was_unpacked_changes_nothing_more(quantizer):
    if BINARY in quantizer.traits:
        pytest.skip("its scales are searched for, and another search may end with others")
    if getattr(quantizer, "double_quant", False):
        quantizer = dataclasses.replace(quantizer, double_quant=False)
    once = quantizer.decode(quantizer.quantize(weight()), (48, 128))
    twice = quantizer.decode(quantizer.quantize(once), (48, 128))
    assert torch.allclose(once, twice, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", QUANTIZERS.names())
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name(name, value):
    broken = weight()
    broken[5, 7] = value
    with pytest.raises(PeftkitError, match=r"model\.layers\.0\.up.*NaN or infinity"):
        QUANTIZERS[name]().quantize(broken, "model.layers.0.up")


def test_groups_that_do_not_divide_are_refused_with_those_that_do():
    with pytest.raises(PeftkitError, match=r"160 inputs are no multiple of group_size 64: choose one of 16, 32"):
        QUANTIZERS["int4"]().quantize(torch.zeros(8, 160), "w")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"block_siz": 64}, "Did you mean 'block_size'"),
        ({"block_size": 65}, "a power of two"),
        ({"block_size": "64"}, "a whole number"),
        ({"double_quant": 1}, "true or false"),
    ],
)
def test_wrong_options_are_told(options, told):
    with pytest.raises(PeftkitError, match=told):
        QUANTIZERS["nf4"].from_options(options)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 64, 101])
def test_codes_come_back_from_their_bytes(bits, count):
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    packed = pack(codes, bits)
    assert len(packed) == packed_size(count, bits)
    assert torch.equal(unpack(packed, bits, count), codes)


def test_nf4_is_the_rule_of_normal_float():
    assert QUANTIZERS["nf4"].code == pytest.approx(normal_float(4), abs=2e-7)
    assert normal_float(2) == pytest.approx((-1, 0, 0.34, 1), abs=5e-3)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [64, 128])
def test_bitsandbytes_stores_the_same(name, block_size):
    functional = pytest.importorskip("bitsandbytes.functional")
    original = torch.randn(96, 256, generator=torch.Generator().manual_seed(1)) * 0.02
    packed, state = functional.quantize_4bit(original, quant_type=name, blocksize=block_size)
    quantizer = QUANTIZERS[name](block_size=block_size, double_quant=False)
    parts = quantizer.quantize(original)
    assert torch.equal(torch.tensor(quantizer.code), state.code.cpu())
    assert torch.equal(parts["scale"], state.absmax)
    assert torch.equal(quantizer.decode(parts, (96, 256)), functional.dequantize_4bit(packed, state))
    # Of two zeros fp4 has, bitsandbytes takes the negative one for weights just below zero.
    mine, theirs = unpack(parts["codes"], 4, 96 * 256), unpack(packed.flatten(), 4, 96 * 256)
    assert torch.equal(torch.where(theirs == 8, 0, theirs) if name == "fp4" else theirs, mine)


def test_double_quantization_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(scales.DYNAMIC, functional.create_dynamic_map())
    original = torch.randn(512, 192, generator=torch.Generator().manual_seed(2))
    _, state = functional.quantize_4bit(original, quant_type="nf4", blocksize=64, compress_statistics=True)
    parts = QUANTIZERS["nf4"]().quantize(original)
    assert torch.equal(parts["scale_mean"], state.offset.view(1))
    assert torch.equal(parts["scale_scale"], state.state2.absmax)
    # Its CPU kernel looks values up on a grid, and takes the neighbour for one that lies on the edge between two.
    differing = (parts["scale_code"] != state.absmax).nonzero().flatten()
    assert len(differing) <= len(state.absmax) // 200
    steps = (parts["scale_code"].int() - state.absmax.int()).abs()
    assert steps.max() <= 1


@pytest.mark.parametrize("quantizer", variants())
def test_packing_piece_by_piece_gives_the_same_bytes(quantizer, monkeypatch):
    matrix = weight((43, 128))
    whole = quantizer.quantize(matrix)
    monkeypatch.setattr(bits, "PIECE", 1000)
    assert len(list(bits.pieces(matrix))) > 1
    pieces = quantizer.quantize(matrix)
    assert set(whole) == set(pieces)
    for key, part in whole.items():
        assert torch.equal(part, pieces[key]), key
