"""Reading and writing a layer's weight as a matrix [out, in]."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.errors import PeftkitError
from peftkit.quantization.weight import dense, shape, store

LINEARS = {"linear": lambda: nn.Linear(3, 5), "conv1d": lambda: Conv1D(5, 3)}


@pytest.mark.parametrize("kind", LINEARS)
def test_the_layer_computes_x_times_its_dense_weight_transposed(kind: str) -> None:
    layer, x = LINEARS[kind](), torch.randn(4, 3)
    assert dense(layer).shape == (5, 3) == shape(layer)
    torch.testing.assert_close(layer(x), F.linear(x, dense(layer), layer.bias))


@pytest.mark.parametrize("kind", LINEARS)
def test_a_stored_weight_is_what_the_layer_computes_with(kind: str) -> None:
    layer, x = LINEARS[kind](), torch.randn(4, 3)
    weight = torch.randn(5, 3)
    parameter = layer.weight
    store(layer, weight)
    assert layer.weight is parameter
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))


def test_an_embedding_is_read_and_written_by_rows() -> None:
    layer, weight = nn.Embedding(7, 2), torch.randn(7, 2)
    store(layer, weight)
    assert torch.equal(layer(torch.tensor([4])), weight[4:5])
    assert torch.equal(dense(layer), weight)


def test_a_subclass_counts_as_its_class() -> None:
    class Own(nn.Linear):
        pass

    assert dense(Own(3, 5)).shape == (5, 3)


def test_storing_casts_once_to_the_dtype_of_the_layer() -> None:
    layer, weight = nn.Linear(3, 5).bfloat16(), torch.randn(5, 3)
    store(layer, weight)
    assert torch.equal(layer.weight, weight.bfloat16())


def test_another_shape_or_a_layer_without_a_matrix_is_refused() -> None:
    with pytest.raises(PeftkitError, match=r"\[3, 5\].*\[5, 3\]"):
        store(nn.Linear(3, 5), torch.zeros(3, 5))
    with pytest.raises(PeftkitError, match="LayerNorm"):
        dense(nn.LayerNorm(3))
    with pytest.raises(PeftkitError, match="LayerNorm"):
        store(nn.LayerNorm(3), torch.zeros(3, 3))
    assert shape(nn.LayerNorm(3)) is None
