"""DoRA trains the length of each weight row beside a low-rank change of its direction (Liu et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear
from peftkit.quantization.weight import dense

BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA, name="dora"):
    """W' = m (W + s B A) / n with A [rank, in], B [out, rank], m [out] and n [out], the row norms of W + s B A.

    B is zero and m the row norms of W at the start, which is thus the base. The paper prints column norms of W
    [in, out]; its code and this one take the rows of W [out, in]. n^2 = |W|^2 + 2 s <W, B A> + s^2 |B A|^2 takes only
    products of the size of A and B. Dropout acts on the pair, in Hugging Face peft on the magnitude's term too.
    """

    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    summary: ClassVar[str] = (
        "Trains the length of each weight row and, by a low-rank pair, its direction. LoRA and one number an output."
    )
    default_learning_rate: ClassVar[float] = 0.032

    detach_norm: bool = True
    """Take the norm as a constant in the backward pass of training (section 4.3): less memory, the same result."""

    def build(self, site: Site) -> Adapter:
        return Decomposed(site, self)


class Decomposed(LowRank):
    """A low-rank pair whose sum with the frozen weight keeps rows of the trained lengths m [out]."""

    batched: ClassVar[bool] = False

    def __init__(self, site: Site, method: DoRA):
        super().__init__(site, method)
        self.detach_norm = method.detach_norm
        self.squares = nn.Buffer(row_squares(self.weight().detach()), persistent=False)
        self.m = nn.Parameter(self.squares.sqrt())

    def forward(self, call: Call, x: Tensor) -> Tensor:
        # m / n is near one: the difference keeps in bf16 what the ratio would lose.
        y, change = call(x), self.m / self.norm() - 1
        up = (self.scale * (1 + change))[:, None] * self.B
        flat, inner = (part.reshape(-1, part.shape[-1]).to(y.dtype) for part in (y, linear(self.dropped(x), self.A)))
        return cast(Tensor, Stretched.apply(flat, inner, up.to(y.dtype), change.to(y.dtype), self.frozen_bias())).view(
            y.shape
        )

    def settle(self) -> None:
        super().settle()
        if self.factorise is not None:
            self.squares = row_squares(self.weight().detach())

    def norm(self) -> Tensor:
        """Return the row norms n [out] of W + s B A in fp32, from products of the size of A and B."""
        tracked = torch.is_grad_enabled() and not (self.detach_norm and self.training)
        with torch.set_grad_enabled(tracked), torch.autocast(self.A.device.type, enabled=False):
            rows, cross = self.site.rows, _product(dense(self.site.module).detach(), self.A)
            cross = cross if rows is None else rows.take(cross.T).T
            both = torch.addmm(cross, self.B, self.A @ self.A.T, beta=2 * self.scale, alpha=self.scale**2)
            # A row of zeros has no direction: it stays as it is, and gives no NaN.
            return (self.squares + both.mul(self.B).sum(1)).clamp(min=torch.finfo(torch.float32).tiny).sqrt()

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ratio, own = self.m / self.norm(), self.frozen_bias()
        merged = ratio[:, None] * (weight + self.delta(weight))
        if bias is None:
            return merged, None
        # Only what adapters inside this one added to the bias is scaled; the frozen bias is outside the formula.
        return merged, ratio * bias if own is None else own + ratio * (bias - own)


class Stretched(torch.autograd.Function):
    """y + change (y - bias) + inner up^T in few passes over [tokens, out]; what is kept of that size is y - bias."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, inner: Tensor, up: Tensor, change: Tensor, bias: Tensor | None) -> Tensor:
        """Return [tokens, out] for y [tokens, out], inner [tokens, rank], up [out, rank], change and bias [out]."""
        own = y if bias is None else y - bias.to(y.dtype)
        ctx.save_for_backward(own, inner, up, change)
        return torch.addcmul(y, own, change).addmm_(inner, up.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all five."""
        (given,), (own, inner, up, change) = gradients, ctx.saved_tensors
        of_bias = -change * given.sum(0) if ctx.needs_input_grad[4] else None
        return torch.addcmul(given, given, change), given @ up, given.T @ inner, (given * own).sum(0), of_bias


def row_squares(weight: Tensor) -> Tensor:
    """Return the squared row norms [out] of a weight [out, in], in fp32."""
    return torch.cat([block.float().square().sum(1) for block in weight.split(BLOCK)])


def _product(weight: Tensor, down: Tensor) -> Tensor:
    """Return W A^T [out, rank] in the dtype of A [rank, in]; a weight in another dtype is cast block by block."""
    if weight.dtype == down.dtype:
        return weight @ down.T
    return torch.cat([block.to(down.dtype) @ down.T for block in weight.split(BLOCK)])
