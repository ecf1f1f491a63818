"""LoRA-FA freezes A, so that its backward pass needs A x instead of x (Zhang et al. 2023, arXiv:2308.03303)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from peftkit.kernels.low_rank import Pair
from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class LoRAFA(LoRA, name="lora-fa"):
    """W + s B A with A [rank, in] frozen at its random start and B [out, rank] trained from zero: the base at first.

    What is kept of each token for the backward pass is A x, `rank` numbers instead of `in`. A dropout mask is drawn
    again from its seed instead of being kept. The first version of the paper trains B plainly (`correction: none`);
    the later one, and Hugging Face peft, multiply the gradient of B by (A A^T)^-1 / s^2 (`correction: projected`),
    which makes the step of s B A the nearest to the gradient of W.
    """

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2308.03303"
    summary: ClassVar[str] = (
        "LoRA with A frozen: half the trainable parameters, and activations of the rank's size are all that it keeps. "
        "Merges as LoRA does."
    )
    default_learning_rate: ClassVar[float] = 0.1

    correction: Literal["none", "projected"] = "none"
    """Whether the gradient of B is taken as it is, or so that s B A follows the gradient of W most closely."""

    def build(self, site: Site) -> Adapter:
        return HalfFrozen(site, self)

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        for adapter in cast(dict[str, HalfFrozen], adapters).values() if self.correction == "projected" else ():
            if adapter.B.grad is not None:
                gram = (adapter.A @ adapter.A.mT) * self.scale_at(adapter.site) ** 2
                adapter.B.grad = torch.linalg.solve(gram, adapter.B.grad, left=False)


class HalfFrozen(LowRank):
    """A low-rank pair of which B alone is trained."""

    def __init__(self, site: Site, method: LoRAFA):
        super().__init__(site, method)
        self.A.requires_grad_(False)

    def pair(self, x: Tensor) -> Pair | None:
        return None if self.dropout and self.training else super().pair(x)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if not (self.dropout and self.training):
            return super().forward(call, x)
        rate = self.dropout
        # The seed comes from the generator that gradient checkpointing puts back for the second pass.
        seed = int(torch.randint(2**62, ()))
        return call(x) + cast(Tensor, SeededPair.apply(x, self.A, self.B, self.scale, rate, seed))


class SeededPair(torch.autograd.Function):
    """s B A drop(x) that keeps A drop(x) [..., rank] for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, rate: float, seed: int) -> Tensor:
        """Return [..., out] for x [..., in], A `down` [rank, in] and B `up` [out, rank]."""
        inner = linear(_drop(x, rate, seed), down)
        ctx.save_for_backward(inner, down, up)
        ctx.scale, ctx.rate, ctx.seed, ctx.dtype = scale, rate, seed, x.dtype
        return linear(inner, up) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and B."""
        inner, down, up = ctx.saved_tensors
        gradient = gradients[0] * ctx.scale
        of_x = of_up = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ up.to(gradient.dtype) @ down.to(gradient.dtype)
            of_x = _drop(of_x.to(ctx.dtype), ctx.rate, ctx.seed)
        if ctx.needs_input_grad[2]:
            of_up = (gradient.flatten(0, -2).T @ inner.to(gradient.dtype).flatten(0, -2)).to(up.dtype)
        return of_x, None, of_up, None, None, None


def _drop(x: Tensor, rate: float, seed: int) -> Tensor:
    """Drop elements of x under a mask that follows from the seed; the rest is scaled up."""
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * kept / (1 - rate)
