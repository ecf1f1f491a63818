"""Methods that add to a weight or turn what it reads: each formula by hand, and what each alone promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit.adaptation import attach, count_trained
from peftkit.errors import PeftkitError
from peftkit.kernels.fastfood import fastfood, hadamard
from peftkit.layers.circulant import circulant, embedded, product
from peftkit.layers.orthogonal import cayley, reflections, skew, upper
from peftkit.layout import Layout, Site
from peftkit.method import METHODS
from peftkit.methods.boft import butterfly
from peftkit.methods.c3a import C3A
from peftkit.methods.intrinsic_said import IntrinsicSAID
from peftkit.methods.krona import KronA
from peftkit.methods.lokr import LoKr
from peftkit.methods.unilora import UniLoRA
from peftkit.methods.waveft import haar
from peftkit.models.tiny import tiny

Numbers = list[Any]


def built(name: str, weight: Numbers, bias: Numbers | None = None, **options: Any) -> tuple[nn.Linear, Any]:
    """Return a linear of this weight and the adapter of a method on it."""
    rows = torch.tensor(weight, dtype=torch.float32)
    linear = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(rows)
        if bias is not None:
            linear.bias.copy_(torch.tensor(bias))
    method = METHODS[name].from_options(options)
    return linear, method.build(Site("linear", linear, rows.shape[1], rows.shape[0]))


def merged(linear: nn.Linear, adapter: Any, tensors: dict[str, Numbers]) -> tuple[Tensor, Tensor | None]:
    """Return the merged weight and bias with these tensors, having held that the forward pass computes the same."""
    with torch.no_grad():
        for key, value in tensors.items():
            adapter.get_parameter(key).copy_(torch.tensor(value))
        weight, bias = adapter.merge(linear.weight, linear.bias)
        x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(adapter(linear, x), nn.functional.linear(x, weight, bias))
    return weight, bias


ZERO = [[0.0, 0.0], [0.0, 0.0]]
BY_HAND: dict[str, tuple[Numbers, dict[str, Any], dict[str, Numbers], Numbers]] = {
    # W + W * (B A), with B A = [[1, 2], [2, 4]].
    "hira": ([[1, 2], [3, 4]], {"rank": 1}, {"A": [[1.0, 2.0]], "B": [[1.0], [2.0]]}, [[2, 6], [9, 20]]),
    # 3 (B1 A1) * (B2 A2) = 3 [[1, 2], [1, 2]] * [[1, 1], [2, 2]].
    "loha": (
        ZERO,
        {"rank": 1, "alpha": 3.0},
        {"B1": [[1.0], [1.0]], "A1": [[1.0, 2.0]], "B2": [[1.0], [2.0]], "A2": [[1.0, 1.0]]},
        [[3, 6], [6, 12]],
    ),
    # Block (j, i) of one number: B_j's run i times A_i's run j.
    "gralora": (
        ZERO,
        {"rank": 2, "alpha": 2.0, "blocks": 2},
        {"A": [[[1.0], [2.0]], [[3.0], [4.0]]], "B": [[[5.0, 6.0]], [[7.0, 8.0]]]},
        [[5, 18], [14, 32]],
    ),
    # 10 / 1 times (3, 4)/5 (0, 2)/2, times the column norms 1 and 2 of W.
    "delora": (
        [[1, 0], [0, 2]],
        {"rank": 1, "strength": 10.0},
        {"A": [[0.0, 2.0]], "B": [[3.0], [4.0]]},
        [[1, 12], [0, 18]],
    ),
    # Column i gains D[i mod 2].
    "miss": ([[0] * 3, [0] * 3], {"rank": 2}, {"D": [[1.0, 2.0], [3.0, 4.0]]}, [[1, 3, 1], [2, 4, 2]]),
    # Output pairs are half a group apart: (1, 3) and (2, 4) turn by 90 degrees and 0, scaled by 2 and 3.
    "road": (
        [[1], [2], [3], [4]],
        {"group": 4},
        {"t": [math.pi / 2, 0.0], "a": [2.0, 3.0]},
        [[-6], [6], [2], [12]],
    ),
    # H_1 H_2 with unit vectors along the two axes is minus the identity.
    "hra": ([[1, 2], [3, 4]], {"rank": 2}, {"U": [[2.0, 0.0], [0.0, 3.0]]}, [[-1, -2], [-3, -4]]),
    # Q = [[0, 1], [-1, 0]] gives (I + Q)(I - Q)^-1 = [[0, 1], [-1, 0]], and W R' swaps columns with a sign.
    "oft": ([[1, 2]], {"block": 2}, {"Q": [[1.0]]}, [[2, -1]]),
    "boft": ([[1, 2]], {"block": 2}, {"Q": [[[1.0]]], "s": [3.0]}, [[6, -3]]),
    # A constant spectrum is a change of one entry: the inverse transform of ones is one at the origin.
    "fourierft": (ZERO, {"count": 4, "scale": 5.0}, {"c": [1.0] * 4}, [[5, 0], [0, 0]]),
    # Ones in all bands of [2, 2] meet in the first entry alone: (1 + 1 + 1 + 1) / 2.
    "waveft": (ZERO, {"count": 4, "scale": 1.0}, {"c": [1.0] * 4}, [[2, 0], [0, 0]]),
    # C[t, s] = w[(s - t) mod 3], over the number of inputs.
    "c3a": ([[0] * 3] * 3, {}, {"w": [[[3.0, 6.0, 9.0]]]}, [[1, 2, 3], [3, 1, 2], [2, 3, 1]]),
    # Diagonals from the lower left to the upper right.
    "surm": (ZERO, {"structure": "toeplitz"}, {"d": [[1.0, 2.0, 3.0]]}, [[2, 3], [1, 2]]),
    # relu(D W) = relu([1, -2] W) = [0, 1] of W = [[1, 3], [2, 1]], times U and 2.
    "hiwi": (
        [[1, 3], [2, 1]],
        {"rank": 1, "scale": 2.0},
        {"D": [[1.0, -2.0]], "U": [[1.0], [5.0]]},
        [[1, 5], [2, 11]],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_formula_by_hand(name):
    weight, options, tensors, expected = BY_HAND[name]
    found, _ = merged(*built(name, weight, **options), tensors)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0)


def test_what_turns_outputs_turns_the_bias_and_what_turns_inputs_leaves_it():
    _, bias = merged(*built("road", [[1], [2]], [1.0, 2.0], group=2), {"t": [math.pi / 2], "a": [1.0]})
    torch.testing.assert_close(bias, torch.tensor([-2.0, 1.0]))
    _, bias = merged(*built("boft", [[1, 2]], [7.0], block=2), {"Q": [[[1.0]]], "s": [3.0]})
    assert bias.tolist() == [7.0]
    weight, bias = merged(
        *built("hiwi", [[1], [2]], [1.0, 2.0], rank=1, of="biases"), {"D": [[1.0, 1.0]], "U": [[1.0], [2.0]]}
    )
    assert (weight.tolist(), bias.tolist()) == ([[1], [2]], [4.0, 8.0])


def test_lokr_with_whole_matrices_is_krona_and_has_fewer_numbers_without():
    layout = Layout(tiny("llama"))
    assert count_trained(LoKr(rank=64), layout) == count_trained(KronA(), layout)
    # q [32, 32]: A [4, 4] whole, B [8, 8] as [8, 1] and [1, 8]; v [16, 32]: B [4, 8]; two layers.
    assert count_trained(LoKr(rank=1), layout) == 2 * (16 + 16 + 16 + 12)


def test_orthogonal_maps_are_orthogonal_and_the_series_is_near():
    values = torch.randn(3, 10, dtype=torch.float64)
    skewed = skew(values, 5)
    one = torch.eye(5, dtype=torch.float64)
    exact = cayley(skewed)
    torch.testing.assert_close(exact @ exact.mT, one.expand(3, 5, 5))
    torch.testing.assert_close(upper(skewed), values)
    small = skewed * 0.02
    errors = [(cayley(small, terms) - cayley(small)).abs().max() for terms in (4, 6, 8)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    vectors = torch.randn(6, 4, dtype=torch.float64)
    chain = torch.eye(6, dtype=torch.float64)
    for u in vectors.T:
        chain = chain @ (torch.eye(6, dtype=torch.float64) - 2 * torch.outer(u, u) / u.dot(u))
    inner, outer = reflections(vectors)
    torch.testing.assert_close(torch.eye(6, dtype=torch.float64) - outer @ inner.T, chain)


def test_a_butterfly_takes_half_blocks_of_even_number_first_and_reaches_every_input():
    assert butterfly(8, 2, 1).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert butterfly(8, 2, 2).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    _, adapter = built("boft", [[0.0] * 8], block=2, factors=3)
    nn.init.normal_(adapter.Q)
    turned = adapter.turned(torch.eye(8))
    torch.testing.assert_close(turned @ turned.T, torch.eye(8))
    torch.testing.assert_close(adapter.turned(turned, back=True), torch.eye(8))
    assert bool((turned.abs() > 1e-6).all())


def test_circulant_products_are_those_of_the_matrices():
    rows = torch.randn(2, 3, 5)
    blocks = circulant(rows).transpose(1, 2).flatten(2).flatten(0, 1)
    x = torch.randn(4, 15)
    torch.testing.assert_close(product(x.unflatten(-1, (3, 5)), rows).flatten(-2), x @ blocks.T)
    toeplitz = circulant(embedded(torch.arange(5.0)))[:3, :3]
    assert toeplitz.tolist() == [[2, 3, 4], [1, 2, 3], [0, 1, 2]]


def test_the_haar_transform_keeps_lengths_and_cuts_odd_sides():
    bands = torch.randn(6, 4)
    assert float(haar(bands).norm()) == pytest.approx(float(bands.norm()))
    assert haar(torch.randn(5, 3)).shape == (5, 3)


def test_blocks_that_do_not_fit_are_refused_with_what_would():
    layout = Layout(tiny("llama"))
    for name, options, told in (
        ("c3a", {"block": 5}, "choose a divisor of"),
        ("gralora", {"rank": 3}, "divides the rank and both sides"),
        ("miss", {"rank": 5, "variant": "bat"}, "common divisor"),
        ("road", {"group": 10}, "choose another"),
        ("boft", {"block": 2, "factors": 6}, "fewer factors"),
        ("vblora", {"top": 300}, "bank of 256"),
    ):
        with pytest.raises(PeftkitError, match=told):
            METHODS[name].from_options(options).sites(layout)


def test_the_numbers_of_c3a_fall_with_the_size_of_blocks():
    layout = Layout(tiny("llama"))
    counts = [count_trained(C3A(block=block), layout) for block in C3A().sizes(layout)]
    assert counts == sorted(counts)


def test_fastfood_is_linear_keeps_lengths_and_follows_from_the_seed():
    matrix = hadamard(torch.eye(128))
    assert torch.equal(matrix @ matrix, 128 * torch.eye(128))
    adapter = IntrinsicSAID(dimension=64).build(Site("linear", nn.Linear(64, 64), 64, 64))
    again = IntrinsicSAID(dimension=64).build(Site("linear", nn.Linear(64, 64), 64, 64))
    assert torch.equal(adapter.signs, again.signs)
    assert torch.equal(adapter.normal, again.normal)
    arguments = (adapter.signs, adapter.order, adapter.normal, 4096)
    one, other = torch.randn(2, 64)
    both = fastfood(one + 2 * other, *arguments)
    torch.testing.assert_close(both, fastfood(one, *arguments) + 2 * fastfood(other, *arguments))
    assert float(fastfood(one, *arguments).norm()) == pytest.approx(float(one.norm()), rel=0.3)


def test_the_projection_of_unilora_is_an_isometry():
    adaptation = attach(tiny("llama"), [UniLoRA(length=300)])
    part = adaptation.parts[0]
    taken = torch.zeros(300)
    for adapter in part.adapters.values():
        for places in (adapter.a, adapter.b):
            taken.index_add_(0, places.flatten().long(), part.shared.weights[places.flatten()].square())
    # The squares of a column of P add up to one: P'P = I. With 1,200 entries each of 300 is taken.
    assert torch.allclose(taken[taken > 0], torch.ones(int((taken > 0).sum())))
    assert count_trained(UniLoRA(length=300), adaptation.layout) == 300


def test_masked_copies_raise_the_rank_and_a_full_mask_is_lora():
    _, adapter = built("capaboost", [[0.0] * 12] * 12, rank=2, copies=3)
    nn.init.normal_(adapter.B)
    assert torch.linalg.matrix_rank(adapter.delta(torch.zeros(12, 12))) == 6
    _, whole = built("capaboost", [[0.0] * 4] * 4, rank=2, copies=1, density=1.0)
    nn.init.normal_(whole.B)
    assert torch.equal(whole.delta(torch.zeros(4, 4)), whole.B @ whole.A * whole.scale)


def test_randlora_has_full_rank_and_a_composed_vector_is_a_mixture_of_the_bank():
    adaptation = attach(tiny("llama"), [METHODS["randlora"].from_options({"rank": 6})])
    adapter = next(iter(adaptation.adapters()))
    nn.init.normal_(adapter.l)
    nn.init.normal_(adapter.g)
    assert torch.linalg.matrix_rank(adapter.delta(torch.zeros(32, 32))) == 32
    options = {"vectors": 5, "length": 16, "top": 2, "rank": 1}
    adapter = next(iter(attach(tiny("llama"), [METHODS["vblora"].from_options(options)]).adapters()))
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([0.0, math.log(3), -9, 0, -9]).expand_as(adapter.a))
        adapter.a[..., 3] = -1.0
    bank = adapter.shared.vectors
    torch.testing.assert_close(adapter.matrices()[0][0, :16], 0.25 * bank[0] + 0.75 * bank[1])
