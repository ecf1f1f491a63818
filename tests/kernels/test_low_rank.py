"""Pairs beside frozen maps as one function equal the plain expression, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftkit.kernels.low_rank import Pair, add_pair, linears_with_pairs

SCALE = 1.7


def ready(bias: bool, dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=bias, dtype=dtype).requires_grad_(False)
    x, down, up = (torch.randn(*s, dtype=dtype).requires_grad_() for s in ((2, 4, 6), (3, 6), (5, 3)))
    return layer, x, down, up


def adapted(layer: nn.Linear, whole: bool, x: Tensor, down: Tensor, up: Tensor, kept: Tensor | float = 1.0) -> Tensor:
    """Return the output with the pair, of one function or of one beside the frozen map."""
    if whole:
        return linears_with_pairs(x, [(layer.weight, layer.bias)], [[Pair(x, down, up, SCALE)]])[0]
    return add_pair(layer(x), Pair(x * kept, down, up, SCALE))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("whole", "dropped"), [(True, False), (False, False), (False, True)])
def test_value_and_gradients(bias: bool, whole: bool, dropped: bool):
    layer, x, down, up = ready(bias)
    kept = torch.arange(6) % 2 if dropped else torch.ones(6)

    def run(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return adapted(layer, whole, x, down, up, kept)

    torch.testing.assert_close(run(x, down, up), layer(x) + SCALE * (x * kept) @ down.T @ up.T)
    assert torch.autograd.gradcheck(run, (x, down, up))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["x", "down", "up"])
def test_what_is_frozen_gets_no_gradient(whole: bool, name: str):
    layer, *tensors = ready(True)
    named = dict(zip(("x", "down", "up"), tensors, strict=True))
    named[name].requires_grad_(False)
    adapted(layer, whole, *named.values()).sum().backward()
    for key, tensor in named.items():
        assert (tensor.grad is None) == (key == name)


def test_x_is_kept_for_a_trained_first_matrix_alone():
    def kept(trained: bool) -> int:
        layer, x, down, up = ready(True)
        down.requires_grad_(trained)
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.shape[-1] * len(t)), t)[1], lambda t: t
        )
        with hooks:
            adapted(layer, True, x, down, up)
        return sum(sizes)

    assert kept(True) - kept(False) == 8 * 6


@pytest.mark.parametrize("whole", [False, True])
def test_the_pair_is_in_fp32_beside_bf16(whole: bool):
    layer, x, down, up = ready(True, torch.bfloat16)
    wide = [tensor.detach().float().requires_grad_() for tensor in (down, up)]
    y = adapted(layer, whole, x, *wide)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert [tensor.grad.dtype for tensor in wide] == [torch.float32] * 2  # type: ignore[union-attr]
    expected = layer(x).float() + SCALE * x.float() @ wide[0].T @ wide[1].T
    torch.testing.assert_close(y.float(), expected, atol=0.1, rtol=0.02)


def test_several_linears_with_other_pairs_in_each_span():
    """Spans of 3, 1 and 4 tokens: a pair of each linear, of the second alone, and of none."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x = drawn(1, 8, 6)
    linears = [(drawn(5, 6).detach(), None), (drawn(4, 6).detach(), drawn(4).detach())]
    tensors = [drawn(2, 6), drawn(5, 2), drawn(3, 6), drawn(4, 3), drawn(1, 6), drawn(4, 1)]

    def run(x: Tensor, *t: Tensor) -> tuple[Tensor, ...]:
        pairs = [[Pair(x, t[0], t[1], 0.5), None, None], [Pair(x, t[2], t[3], 2.0), Pair(x, t[4], t[5], 1.5), None]]
        return linears_with_pairs(x, linears, pairs, (3, 1, 4))

    def plain(x: Tensor, *t: Tensor) -> tuple[Tensor, ...]:
        first, second = (nn.functional.linear(x, *linear) for linear in linears)
        inner = x.split((3, 1, 4), 1)
        first = first + torch.cat([0.5 * inner[0] @ t[0].T @ t[1].T, torch.zeros(1, 5, 5)], 1)
        added = [2.0 * inner[0] @ t[2].T @ t[3].T, 1.5 * inner[1] @ t[4].T @ t[5].T, torch.zeros(1, 4, 4)]
        return first, second + torch.cat(added, 1)

    torch.testing.assert_close(run(x, *tensors), plain(x, *tensors))
    assert torch.autograd.gradcheck(run, (x, *tensors))
