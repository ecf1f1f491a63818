"""The outputs of functions with a backward pass of their own may be written to by the model, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from peftkit.kernels.elementwise import gated, norm, rotated
from peftkit.kernels.low_rank import Pair, add_pair, linears_with_pairs
from peftkit.kernels.recompute import Recompute
from peftkit.kernels.tree import grow
from peftkit.kernels.tree_attention import attend
from peftkit.kernels.tree_plan import plan_of

WIDTH, TOKENS = 8, 5


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def pair(x: Tensor) -> Pair:
    return Pair(x, drawn(2, WIDTH), drawn(WIDTH, 2), 0.5)


def attention(x: Tensor, rows: list[list[int]], heads: int, cap: float | None = None, front: int = 0) -> Tensor:
    tree = grow(rows)
    q, k, v = (x[:, :, : WIDTH // 2].expand(heads, -1, -1)[None] * factor for factor in (1.0, 2.0, 3.0))
    keys, values = (torch.cat([part[:, :, :front], part], 2) for part in (k, v))
    return attend(q, keys, values, plan_of(tree), first=front, scale=0.5, cap=cap)


FUNCTIONS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "beside": lambda x: (add_pair(x * 2, pair(x)),),
    "one linear": lambda x: linears_with_pairs(x, [(drawn(WIDTH, WIDTH).detach(), None)], [[pair(x)]]),
    "three linears": lambda x: linears_with_pairs(x, [(drawn(8, WIDTH).detach(), None)] * 3, [[pair(x)]] * 3),
    "spans": lambda x: linears_with_pairs(x, [(drawn(8, WIDTH).detach(), None)], [[pair(x), None]], (2, 3)),
    "norm": lambda x: (norm(Recompute(), x, drawn(WIDTH).detach(), 1e-6),),
    "gated": lambda x: (gated(Recompute(), x * 1, x * 2, torch.nn.functional.silu),),
    "rotated": lambda x: (rotated(x, drawn(TOKENS, WIDTH).detach(), drawn(TOKENS, WIDTH).detach()),),
    "capped attention": lambda x: (attention(x, [[1, 2, 3], [4, 5]], 2, cap=3.0),),
    "capped attention of one head": lambda x: (attention(x, [[1, 2, 3, 4, 5]], 1, cap=3.0),),
}


def test_attention_that_keeps_its_output_says_so_as_that_of_torch_does():
    x = drawn(1, TOKENS, WIDTH)
    own = torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])
    for y in (own, attention(x, [[1, 2, 3], [4, 5]], 2), attention(x, [[1, 2, 3, 4, 5]], 1, front=1)):
        y += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_outputs_may_be_written_to(name: str):
    def run(in_place: bool) -> list[Tensor]:
        torch.manual_seed(0)
        x = drawn(1, TOKENS, WIDTH)
        outputs = FUNCTIONS[name](x)
        changed = []
        for y in outputs:
            if in_place:
                y += 1
                y *= 2
            else:
                y = (y + 1) * 2
            changed.append(y)
        total = torch.stack([y.square().sum() for y in changed]).sum()
        return [*changed, *torch.autograd.grad(total, [x])]

    for one, other in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
