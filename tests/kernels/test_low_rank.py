"""The one function of a frozen map and a pair beside it equals the plain expression, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftkit.kernels.low_rank import add_pair

SCALE = 1.7


class Frozen:
    """A frozen linear map, which tells its weight as a seat's call does, or keeps it to itself."""

    def __init__(self, layer: nn.Linear, tells: bool):
        self.layer = layer
        if tells:
            self.plain = (layer.weight, layer.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


def ready(bias: bool, tells: bool, dtype: torch.dtype = torch.float64) -> tuple[Frozen, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=bias, dtype=dtype).requires_grad_(False)
    x, down, up = (torch.randn(*s, dtype=dtype).requires_grad_() for s in ((2, 4, 6), (3, 6), (5, 3)))
    return Frozen(layer, tells), x, down, up


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_value_and_gradients(bias: bool, tells: bool, dropped: bool):
    call, x, down, up = ready(bias, tells)
    kept = torch.arange(6) % 2 if dropped else torch.ones(6)

    def run(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return add_pair(call, x, x * kept if dropped else x, down, up, SCALE)

    torch.testing.assert_close(run(x, down, up), call(x) + SCALE * (x * kept) @ down.T @ up.T)
    assert torch.autograd.gradcheck(run, (x, down, up))


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("name", ["x", "down", "up"])
def test_what_is_frozen_gets_no_gradient(tells: bool, name: str):
    call, *tensors = ready(True, tells)
    named = dict(zip(("x", "down", "up"), tensors, strict=True))
    named[name].requires_grad_(False)
    x, down, up = named.values()
    add_pair(call, x, x, down, up, SCALE).sum().backward()
    for key, tensor in named.items():
        assert (tensor.grad is None) == (key == name)


def test_x_is_kept_for_a_trained_first_matrix_alone():
    def kept(trained: bool) -> int:
        call, x, down, up = ready(True, True)
        down.requires_grad_(trained)
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.shape[-1] * len(t)), t)[1], lambda t: t
        )
        with hooks:
            add_pair(call, x, x, down, up, SCALE)
        return sum(sizes)

    assert kept(True) - kept(False) == 8 * 6


def test_the_pair_is_in_fp32_beside_bf16():
    call, x, down, up = ready(True, True, torch.bfloat16)
    wide = [tensor.detach().float().requires_grad_() for tensor in (down, up)]
    y = add_pair(call, x, x, *wide, SCALE)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert [tensor.grad.dtype for tensor in wide] == [torch.float32] * 2  # type: ignore[union-attr]
    expected = call(x).float() + SCALE * x.float() @ wide[0].T @ wide[1].T
    torch.testing.assert_close(y.float(), expected, atol=0.1, rtol=0.02)
