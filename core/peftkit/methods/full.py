"""Full fine-tuning trains every weight of the model: the reference for every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import Method


@dataclass(frozen=True, kw_only=True)
class Full(Method, name="full"):
    """Every parameter is trained; a tied weight is one parameter, counted and saved once."""

    port: ClassVar[str] = "own parameters"
    family: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "the reference of Houlsby et al. 2019, arXiv:1902.00751"
    summary: ClassVar[str] = (
        "Trains every weight of the model. It needs memory for gradients and optimizer states of all of them."
    )
    default_learning_rate: ClassVar[float] = 3.2e-3

    def sites(self, layout: Layout) -> list[Site]:
        if layout.packed:
            raise PeftkitError(
                f"{self.name}: {layout.packed[0]} keeps its weight in a packed format, which no gradient reaches: load "
                "the model without quantization."
            )
        return []

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return True
