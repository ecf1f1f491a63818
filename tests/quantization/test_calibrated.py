"""GPTQ and AWQ by themselves: the papers' equations, and that they keep a layer's outputs better than rounding."""

from __future__ import annotations

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.quantization import feedback
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import ZERO_POINTS

CALIBRATED = [name for name, cls in QUANTIZERS.items() if cls.calibrated]


def gptq(bits=3, **options):
    return QUANTIZERS["gptq"].from_options({"bits": bits, "group_size": 16, "double_quant": False, **options})


def awq(bits=3, **options):
    return QUANTIZERS["awq"].from_options({"bits": bits, "group_size": 16, "double_quant": False, **options})


def seen(x):
    inputs = Inputs(x.shape[-1])
    for piece in x.split(7):
        inputs.add(piece)
    return inputs


def correlated(width=32, count=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator)
    return torch.randn(count, width // 4, generator=generator) @ mixed[: width // 4] + 0.1 * torch.randn(
        count, width, generator=generator
    )


def matrix(out=24, width=32, seed=1):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


def output_error(quantizer, weight, parts, x):
    return float(((weight - quantizer.decode(parts, tuple(weight.shape))) @ x.T).square().sum())


def test_sums_of_inputs_are_those_of_all_tokens():
    x = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0))
    full, diagonal = Inputs(6), Inputs(6, products=False)
    for row in x:
        full.add(row)
        diagonal.add(row[None].bfloat16().float())
    rows = x.view(30, 6)
    assert full.count == 30
    assert torch.allclose(full.moments, rows.T @ rows / 30, atol=1e-6)
    assert torch.allclose(full.mean_size, rows.abs().mean(0), atol=1e-6)
    assert torch.allclose(full.norms, rows.square().mean(0).sqrt(), atol=1e-6)
    assert torch.allclose(diagonal.norms, full.norms, rtol=1e-2)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"double_quant": True}, {"symmetric": True}, {"group_size": 0}], ids=str)
def test_inputs_that_have_nothing_to_do_with_each_other_round_to_nearest(bits, options):
    quantizer, weight = gptq(bits, **options), matrix()
    inputs = Inputs(32)
    inputs.add(torch.eye(32) * 3)
    found, plain = quantizer.quantize(weight, inputs=inputs), quantizer.quantize(weight)
    assert set(found) == set(plain)
    assert all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("by_size", [True, False])
def test_outputs_are_kept_better_than_by_rounding_on_the_same_grid(bits, by_size):
    quantizer, weight, x = gptq(bits, by_size=by_size), matrix(), correlated()
    found, plain = quantizer.quantize(weight, inputs=seen(x)), quantizer.quantize(weight)
    assert all(torch.equal(found[key], plain[key]) for key in plain if key != "codes")
    assert output_error(quantizer, weight, found, x) < 0.6 * output_error(quantizer, weight, plain, x)


def by_the_paper(weight, hessian, order, scale, zero, bits, size):
    """Round one column after the other as in the paper's equations 2 and 3, the inverse Hessian shrunk each time."""
    left, inverse = weight.double().clone(), torch.linalg.inv(hessian.double())
    codes = torch.zeros(weight.shape, dtype=torch.long)
    for column in order:
        step, middle = scale[:, column // size], zero[:, column // size]
        codes[:, column] = ((left[:, column] / step).round() + middle).clamp(0, 2**bits - 1)
        kept = (codes[:, column] - middle) * step
        error = (left[:, column] - kept) / inverse[column, column]
        left -= error[:, None] * inverse[column]
        inverse -= inverse[:, column, None] * inverse[None, column] / inverse[column, column]
        left[:, column] = kept
        # Its row and column are zero now but for what rounding leaves.
        inverse[column], inverse[:, column] = 0, 0
        inverse[column, column] = 1
    return codes


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("block", [5, 128])
def test_codes_are_those_of_the_papers_equations(by_size, block, monkeypatch):
    monkeypatch.setattr(feedback, "BLOCK", block)
    quantizer, weight, x = gptq(by_size=by_size, damping=0.05), matrix(6), correlated()
    moments = seen(x).moments
    hessian = moments + 0.05 * moments.diagonal().mean() * torch.eye(32)
    order = moments.diagonal().argsort(descending=True, stable=True).tolist() if by_size else range(32)
    _, scale, zero = quantizer.grid(weight.view(-1, 16))
    scale, zero = scale.view(6, -1), zero.view(6, -1)
    codes = by_the_paper(weight, hessian, order, scale.double(), zero.double(), 3, 16)
    basis = quantizer.basis(quantizer.quantize(weight, inputs=seen(x)), (6, 32))
    assert torch.equal(basis.long(), codes - zero.long().repeat_interleave(16, 1))
    assert not torch.equal(basis, quantizer.basis(quantizer.quantize(weight), (6, 32)))


def test_two_columns_by_hand():
    """H = [[2, 1], [1, 1]], H^-1 = [[1, -1], [-1, 2]]: rounding 0.6 to 1 moves the second weight by -(-0.4)/1 * -1."""
    upper = feedback.factor(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), 1e-12)
    assert torch.allclose(upper, torch.tensor([[1.0, -1.0], [0.0, 1.0]]), atol=1e-5)
    given = []

    def nearest(values, column):
        given.append(float(values[0]))
        return values.round().to(torch.uint8), values.round()

    codes = feedback.round_in_turn(torch.tensor([[0.6, 2.2]]), upper, torch.arange(2), nearest)
    assert given == pytest.approx([0.6, 2.2 - 0.4])
    assert codes.tolist() == [[1, 2]]


@pytest.mark.parametrize("name", CALIBRATED)
def test_pruned_weights_stay_zero_whatever_the_others_leave(name):
    quantizer = QUANTIZERS[name].from_options({"bits": 2, "group_size": 16})
    weight, x = matrix(), correlated()
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5] = 0
    kept = quantizer.decode(quantizer.quantize(weight, inputs=seen(x)), (24, 32))
    assert (kept[weight == 0] == 0).all()
    assert (kept != 0).any()


@pytest.mark.parametrize("name", CALIBRATED)
def test_inputs_that_no_token_reached_are_as_none(name):
    quantizer, weight = QUANTIZERS[name].from_options({"group_size": 16}), matrix()
    plain = quantizer.quantize(weight)
    for inputs in (Inputs(32), seen(torch.zeros(9, 32))):
        found = quantizer.quantize(weight, inputs=inputs)
        assert all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("name", CALIBRATED)
def test_the_same_inputs_give_the_same_bits_and_the_size_is_stated(name):
    quantizer, weight = QUANTIZERS[name].from_options({"group_size": 16}), matrix()
    once, twice = (quantizer.quantize(weight, inputs=seen(correlated())) for _ in range(2))
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert sum(part.nbytes for part in once.values()) == quantizer.size((24, 32))


@pytest.mark.parametrize("name", CALIBRATED)
def test_inputs_that_are_not_finite_are_refused_by_name(name):
    inputs = seen(torch.full((2, 32), float("inf")))
    with pytest.raises(PeftkitError, match=r"layers\.0\.up has inputs of NaN or infinity"):
        QUANTIZERS[name].from_options({"group_size": 16}).quantize(matrix(), "layers.0.up", inputs)


def outliers():
    x = correlated() * 0.1
    x[:, [3, 17]] *= 60
    return x


def test_alpha_of_zero_alone_is_the_plain_format():
    quantizer, weight = awq(alphas=1), matrix()
    parts = quantizer.quantize(weight, inputs=seen(outliers()))
    assert torch.equal(parts["channels"], torch.ones(32))
    plain = QUANTIZERS["int3"].from_options({"group_size": 16, "double_quant": False})
    expected = plain.decode(plain.quantize(weight), (24, 32))
    assert torch.equal(quantizer.decode(parts, (24, 32)), expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_outputs_with_outlier_channels_are_kept_better_than_in_the_plain_format(bits):
    quantizer, weight, x = awq(bits), matrix(), outliers()
    scaled, plain = quantizer.quantize(weight, inputs=seen(x)), quantizer.quantize(weight)
    assert output_error(quantizer, weight, scaled, x) < 0.7 * output_error(quantizer, weight, plain, x)
    channels = scaled["channels"]
    assert set(channels.topk(2).indices.tolist()) == {3, 17}


def test_the_chosen_alpha_is_the_best_of_the_grid():
    quantizer, weight, x = awq(alphas=4), matrix(), outliers()
    size, errors = x.abs().mean(0), {}
    for alpha in (0, 0.25, 0.5, 0.75):
        channels = size**alpha
        channels = channels / (channels.max() * channels.min()).sqrt()
        scaled = weight * channels
        groups = scaled.view(-1, 16)
        low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
        step = (high - low) / 7
        zero = (-low / step).round()
        kept = ((((groups / step).round() + zero).clamp(0, 7) - zero) * step).view(24, 32) / channels
        errors[alpha] = float(((weight - kept) @ x.T).square().sum())
    found = output_error(quantizer, weight, quantizer.quantize(weight, inputs=seen(x)), x)
    assert found == pytest.approx(min(errors.values()), rel=1e-3)
    assert min(errors, key=lambda alpha: errors[alpha]) > 0


def test_scaling_without_rounding_is_exact_and_has_no_place_for_an_offset():
    quantizer, weight = awq(4), matrix()
    channels = torch.linspace(0.5, 2, 32)
    parts = quantizer.scaled(weight, channels)
    moved = quantizer.decode(quantizer.shift(parts, (24, 32), torch.ones(24, 2), None), (24, 32))
    basis = quantizer.basis(parts, (24, 32))
    assert torch.allclose(moved - quantizer.decode(parts, (24, 32)), basis, atol=1e-5)
    assert ZERO_POINTS not in quantizer.traits


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize(
    ("options", "told"),
    [({"bits": 5}, "bits: found 5; allowed: 2, 3, 4"), ({"bit": 4}, "Did you mean 'bits'"), ({"bits": "4"}, "number")],
    ids=str,
)
def test_wrong_options_are_told(name, options, told):
    with pytest.raises(PeftkitError, match=told):
        QUANTIZERS[name].from_options(options)


def test_options_of_one_format_have_bounds():
    with pytest.raises(PeftkitError, match=r"damping: found 0\.0; allowed: above 0"):
        gptq(damping=0.0)
    with pytest.raises(PeftkitError, match="alphas: found 0; allowed: from 1"):
        awq(alphas=0)
