"""Diff pruning with a gate for each weight as a whole beside those of its entries (Guo et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.methods.diff_pruning import DiffPruning


@dataclass(frozen=True, kw_only=True)
class StructuredDiffPruning(DiffPruning, name="diff-pruning-structured"):
    """W + g z * w with one gate g [1] for each weight beside the gates z [out, in]: whole weights can close.

    The groups are the weights, as in the official code. All else is `diff-pruning`.
    """

    summary: ClassVar[str] = (
        "Diff pruning that can also close a whole weight by one gate. The changes that are kept gather in the weights "
        "that matter."
    )
    default_learning_rate: ClassVar[float] = 0.018

    structured: bool = True
    """Whether each weight has one more gate of its own."""
