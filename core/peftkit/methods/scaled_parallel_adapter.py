"""The scaled parallel adapter multiplies a parallel adapter by a factor (He et al. 2021, arXiv:2110.04366)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt

from peftkit.methods.parallel_adapter import ParallelAdapter


@dataclass(frozen=True, kw_only=True)
class ScaledParallelAdapter(ParallelAdapter, name="scaled-parallel-adapter"):
    """The feed-forward block f gives f(x) + s (U ReLU(D x + b) + c) with s = 4, the paper's choice.

    Shapes and start are those of `parallel-adapter`; the start is the base. The paper also learns s, which it finds no
    better than the fixed one.
    """

    summary: ClassVar[str] = (
        "Runs a small trainable bottleneck beside each feed-forward block and multiplies what it adds by four. It is "
        "the form that its paper recommends for feed-forward blocks."
    )
    default_learning_rate: ClassVar[float] = 0.018

    scale: Annotated[float, Gt(0)] = 4.0
    """Factor s of what the adapter adds."""
