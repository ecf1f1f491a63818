"""Binary codes: what more bits bring, what the search finds, and the shape of what is stored."""

from __future__ import annotations

import itertools

import pytest
import torch

from peftkit.quantization.quantizer import QUANTIZERS

NAMES = ["bcq2", "bcq3", "bcq4"]


def drawn(rows=24, columns=256):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02


def error(weight, name, **options):
    quantizer = QUANTIZERS[name](**options)
    return torch.linalg.norm(weight - quantizer.decode(quantizer.quantize(weight), tuple(weight.shape)), dim=1)


def greedy(weight, bits):
    """What the start of the search leaves of each row."""
    left = weight
    for _ in range(bits):
        left = left - left.abs().mean(1, keepdim=True) * torch.where(left < 0, -1.0, 1.0)
    return torch.linalg.norm(left, dim=1)


def test_more_bits_leave_a_smaller_error_in_every_row():
    errors = [error(drawn(), name) for name in NAMES]
    assert all((later < earlier).all() for earlier, later in itertools.pairwise(errors))
    assert (error(drawn(), "bcq3", group_size=32) < errors[1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_search_improves_on_its_greedy_start(name):
    assert (error(drawn(), name) < greedy(drawn(), QUANTIZERS[name].bits)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_scales_and_signs_are_the_weight(name):
    """W = sum_k a_k b_k, the scales falling, and each weight at the nearest of the sums."""
    quantizer, weight = QUANTIZERS[name](), drawn(8, 64)
    parts, bits = quantizer.quantize(weight), QUANTIZERS[name].bits
    scale = parts["scale"]
    assert scale.shape == (8, bits)
    assert (scale[:, :-1] >= scale[:, 1:]).all()
    assert (scale >= 0).all()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits)))
    sums = scale @ signs.T
    nearest = (weight[:, :, None] - sums[:, None]).abs().min(2).values
    found = quantizer.decode(parts, (8, 64))
    assert torch.allclose((weight - found).abs(), nearest, atol=1e-7)
    first = quantizer.basis(parts, (8, 64))
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    # Without its first scale the weight is a sum of the others.
    rest = found - quantizer.scale(parts, (8, 64)) * first
    others = scale[:, 1:] @ torch.tensor(list(itertools.product((-1.0, 1.0), repeat=bits - 1))).T
    assert (rest[:, :, None] - others[:, None]).abs().min(2).values.max() <= 1e-7


def test_two_values_are_found_exactly():
    weight = torch.tensor([[0.5, -0.5, 0.5, 0.5] * 8, [3.0, 1.0, -1.0, -3.0] * 8])
    assert error(weight, "bcq2").max() <= 1e-5


def test_bits_are_codes_and_a_scale_for_each_of_them():
    assert QUANTIZERS["bcq3"]().bits_per_weight((4096, 4096)) == pytest.approx(3 + 3 * 32 / 4096)
    assert QUANTIZERS["bcq3"](group_size=128).bits_per_weight((4096, 4096)) == pytest.approx(3 + 3 * 32 / 128)
