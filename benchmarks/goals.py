"""The goals of training's speed and memory, as ratios within one run of the benchmark, and which work measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One line of work: a model's size, a profile, a method and a precision."""

    size: str
    profile: str
    method: str = "lora"
    precision: str = "fp32"


@dataclass(frozen=True)
class Goal:
    """What one cell has to reach: `figure` is a column of the table, at least or at most `bound`."""

    cell: Cell
    figure: str
    bound: float

    @property
    def least(self) -> bool:
        """Whether more is better."""
        return self.figure == "speed"

    def reached(self, value: float) -> bool:
        """Say whether a value is within the bound."""
        return value >= self.bound if self.least else value <= self.bound


WORDS = {
    "speed": "trained tokens/s against the Trainer",
    "memory": "peak memory above the model against the Trainer",
    "own_lora": "step time against our own LoRA",
    "limit": "step over the limit (2.22: 45 % of the matrix rate)",
}


def _speeds() -> Sequence[Goal]:
    found = [
        Goal(Cell("60m", "e2e"), "speed", 2.1),
        Goal(Cell("60m", "e2e", precision="bf16"), "speed", 3.0),
        Goal(Cell("60m", "e2e-grouped"), "speed", 2.8),
        Goal(Cell("60m", "e2e-template"), "speed", 2.8),
        Goal(Cell("60m", "coqa"), "speed", 9.0),
    ]
    for precision, plain, shared in (("fp32", 1.6, 2.2), ("bf16", 2.4, 3.2)):
        found.append(Goal(Cell("350m", "e2e", precision=precision), "speed", plain))
        for profile in ("e2e-grouped", "e2e-template"):
            found.append(Goal(Cell("350m", profile, precision=precision), "speed", shared))
    return found


def _on_a_gpu(size: str, profile: str, method: str) -> Sequence[Goal]:
    cell = Cell(size, profile, method, "bf16")
    if profile == "long":
        return [Goal(cell, "limit", 2.22)]
    return [Goal(cell, "speed", 1.8), Goal(cell, "memory", 1.0)]


GPU_WORK = "1b e2e lora, 7b e2e lora, 1b coqa lora, 7b e2e qlora, 7b coqa lora, 1b long lora, 7b long lora, "
GPU_WORK += "1b e2e qlora, 7b coqa qlora, 1b coqa qlora"
GPU_GOALS: Sequence[Goal] = tuple(goal for work in GPU_WORK.split(", ") for goal in _on_a_gpu(*work.split()))
"""What a GPU has to reach."""
CPU_GOALS: Sequence[Goal] = (
    *_speeds(),
    Goal(Cell("60m", "e2e"), "memory", 0.45),
    Goal(Cell("60m", "e2e-grouped"), "memory", 0.4),
    Goal(Cell("60m", "e2e-template"), "memory", 0.4),
    Goal(Cell("60m", "coqa"), "memory", 0.2),
    *(
        Goal(Cell("60m", "e2e", method), "own_lora", bound)
        for method, bound in (("dora", 1.25), ("lora-fa", 1.0), ("prefix", 1.1), ("prompt", 1.1), ("ia3", 1.0))
    ),
)
