"""Computing in fp64 what a model computes in fp32, its own casts to fp32 included: the rounding is all but gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def doubled(*models: nn.Module) -> Iterator[None]:
    """Compute in fp64 inside, the models' own tensors in it; they are of the dtypes that they had after that."""
    default = torch.get_default_dtype()
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    before = [(tensor, tensor.dtype) for tensor in tensors if tensor.is_floating_point()]
    torch.set_default_dtype(torch.float64)
    try:
        for tensor, _ in before:
            tensor.data = tensor.data.double()
        with _Doubled():
            yield
    finally:
        torch.set_default_dtype(default)
        for tensor, dtype in before:
            tensor.data = tensor.data.to(dtype)


class _Doubled(TorchFunctionMode):
    """Puts fp64 wherever a function is asked for fp32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(_wider(x) for x in args)
        kwargs = {key: _wider(x) for key, x in (kwargs or {}).items()}
        if func is torch._grouped_mm:
            return _grouped(*args, **kwargs)
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


def _wider(x: Any) -> Any:
    return torch.float64 if x is torch.float32 else x


def _grouped(rows: Tensor, weights: Tensor, offs: Tensor, **rest: Any) -> Tensor:
    """Multiply each group of rows [N, in] that ends at `offs` by its own of the weights [E, in, out], in any dtype."""
    groups = rows.tensor_split(offs.cpu().long())[: len(weights)]
    y = torch.cat([group @ weight for group, weight in zip(groups, weights, strict=True)])
    bias = rest.get("bias")
    return y if bias is None else y + bias
