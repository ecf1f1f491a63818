"""Whole numbers of 8 bits, one scale for each output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from peftkit.quantization.groups import Groupwise
from peftkit.quantization.weight import ZERO_POINTS


@dataclass(frozen=True, kw_only=True)
class Int8(Groupwise, name="int8"):
    """One scale max |w| / 127 for each output; columns with outliers may stay in 16 bits (LLM.int8()).

    LLM.int8() multiplies in 16 bits those inputs whose activations are above 6, found in every batch, because it rounds
    activations too. Here activations are never rounded; the columns are those of the largest weights, chosen once.
    """

    bits: ClassVar[int] = 8
    paper: ClassVar[str] = "Dettmers et al. 2022, arXiv:2208.07339"
    summary: ClassVar[str] = "Evenly spaced, 256 values an output; columns of outliers may stay in 16 bits."

    group_size: int = 0
    """Inputs of one output that share a scale; it divides the number of inputs. 0 takes all of them."""
    symmetric: bool = True
    """Without zero points."""
    double_quant: bool = False
    """Store the scales in 8 bits too."""
    outliers: float = 0.0
    """Share of the input columns, those with the largest weights, that is kept in bfloat16."""

    def faults(self) -> list[str]:
        fault = f"outliers: found {self.outliers}; allowed: from 0 to 0.5"
        return [*super().faults(), *([] if 0 <= self.outliers <= 0.5 else [fault])]

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        count = round(self.outliers * weight.shape[1])
        if not count:
            return super().encode(weight)
        columns = weight.abs().amax(0).topk(count).indices.sort().values
        rest = weight.index_fill(1, columns, 0)
        return {**super().encode(rest), "columns": columns.int(), "outliers": weight[:, columns].bfloat16()}

    def decode(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        weight = super().decode(parts, shape)
        if "columns" not in parts:
            return weight
        return weight.index_copy(1, parts["columns"].long(), parts["outliers"].float())

    @property
    def traits(self) -> frozenset[str]:
        # Columns that are kept apart take no offset.
        return super().traits - {ZERO_POINTS} if self.outliers else super().traits

    def basis(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor:
        basis = super().basis(parts, shape)
        return basis.index_fill(1, parts["columns"].long(), 0) if "columns" in parts else basis

    def error_bound(self, weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        if "columns" not in parts:
            return super().error_bound(weight, parts)
        columns = parts["columns"].long()
        bound = super().error_bound(weight.index_fill(1, columns, 0), parts)
        return bound.index_copy(1, columns, weight[:, columns].float().abs() / 256)
