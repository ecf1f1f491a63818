"""The one function of a frozen map and a vector on its input equals the plain expression, also at zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftkit.ports.scaled import scale_input


class Frozen:
    """A frozen linear map, which tells its weight as a seat's call does, or keeps it to itself."""

    def __init__(self, layer: nn.Linear, tells: bool):
        self.layer = layer
        if tells:
            self.plain = (layer.weight, layer.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


def ready(bias: bool, tells: bool) -> tuple[Frozen, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=bias, dtype=torch.float64).requires_grad_(False)
    scale = torch.randn(6, dtype=torch.float64)
    scale[2] = 0
    return Frozen(layer, tells), torch.randn(2, 4, 6, dtype=torch.float64).requires_grad_(), scale.requires_grad_()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tells", [False, True])
def test_value_and_gradients(bias: bool, tells: bool):
    call, x, scale = ready(bias, tells)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        return scale_input(call, x, scale)

    torch.testing.assert_close(run(x, scale), call.layer(x * scale))
    assert torch.autograd.gradcheck(run, (x, scale))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen: int):
    call, *given = ready(True, True)
    given[frozen].requires_grad_(False)
    scale_input(call, *given).sum().backward()
    assert [tensor.grad is None for tensor in given] == [frozen == 0, frozen == 1]


def test_the_vector_is_in_fp32_beside_bf16():
    call, x, scale = ready(True, True)
    call.layer.to(torch.bfloat16)
    call.plain = (call.layer.weight, call.layer.bias)
    x, scale = x.detach().bfloat16().requires_grad_(), scale.detach().float().requires_grad_()
    y = scale_input(call, x, scale)
    y.float().sum().backward()
    assert (y.dtype, x.grad.dtype, scale.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
