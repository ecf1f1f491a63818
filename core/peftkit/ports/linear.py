"""The port of linear maps: an adapter that equals a change of the weight, so that it can be merged."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from peftkit.ports.adapter import Adapter, Call
from peftkit.quantization.weight import dense, has_original, original, packed_shape, rounded, store


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply `x [..., in]` by `weight [out, in]` in the dtype of `x`; master weights stay in fp32."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class LinearAdapter(Adapter):
    """An adapter of a linear site. Law: `forward(call, x) == F.linear(x, *merge(W, b))`."""

    batched: ClassVar[bool] = False
    """Whether `merge` also takes a stack of weights [n, out, in], with its own tensors stacked alike."""

    def weight(self) -> Tensor:
        """Return the frozen weight of the site [out, in], whatever its format."""
        weight = dense(self.site.module)
        rows = self.site.rows
        return weight if rows is None else rows.take(weight.T).T

    def frozen_bias(self) -> Tensor | None:
        """Return the frozen bias of the site [out]; None where it has none."""
        bias, rows = getattr(self.site.module, "bias", None), self.site.rows
        return bias if bias is None or rows is None else rows.take(bias)

    @property
    def exact(self) -> bool:
        """Whether the weight is stored as it is, and not packed."""
        return packed_shape(self.site.module) is None

    @property
    def has_original(self) -> bool:
        """Whether the weight can be had as it was before it was packed."""
        return has_original(self.site.module)

    def original(self) -> Tensor:
        """Return the weight of the site [out, in] as it was before it was packed."""
        weight, rows = original(self.site.module), self.site.rows
        return weight if rows is None else rows.take(weight.T).T

    def rounded(self, weight: Tensor) -> Tensor:
        """Return what would be left of `weight` [out, in] in the format of the site's module, in fp32."""
        module, rows = self.site.module, self.site.rows
        if rows is None:
            return rounded(module, weight)
        return rows.take(rounded(module, rows.put(original(module).detach().float().T, weight.T).T).T).T

    def put(self, weight: Tensor) -> None:
        """Write the frozen weight of the site [out, in], cast once to what its format keeps."""
        module, rows = self.site.module, self.site.rows
        store(module, weight if rows is None else rows.put(dense(module).detach().float().T, weight.T).T)


class Delta(LinearAdapter):
    """W + delta: a subclass gives `delta(W) [out, in]`, and a faster `forward` where it has one."""

    def delta(self, weight: Tensor) -> Tensor:
        """Return what is added to the frozen weight [out, in], in fp32."""
        raise TypeError(f"{type(self).__name__} does not define its delta")

    def forward(self, call: Call, x: Tensor) -> Tensor:
        return call(x) + linear(x, self.delta(self.weight()))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.delta(weight), bias
