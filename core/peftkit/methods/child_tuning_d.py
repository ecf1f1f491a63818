"""Child-Tuning-D trains a fixed network within the model, found by Fisher information (Xu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Lt

from peftkit.methods.fishmask import FishMask


@dataclass(frozen=True, kw_only=True)
class ChildTuningD(FishMask, name="child-tuning-d"):
    """W + a change at the share `density` of weights with the largest Fisher information, a third of them by default.

    It is FISH Mask at the density of a network of its own. The official code decays all weights, those outside the
    child network too, where this leaves them alone, and squares the gradients of batches where this squares those of
    examples.
    """

    paper: ClassVar[str] = "Xu et al. 2021, arXiv:2109.05687"
    summary: ClassVar[str] = (
        "Trains a fixed part of all weights, chosen once by Fisher information. It overfits less than full fine-tuning "
        "and stores a third of it."
    )
    default_learning_rate: ClassVar[float] = 0.0056

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.3
    """Share of the adapted weights that is trained."""
