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
    "speed": "trained tokens/s against the Trainer (2: half as far from the limit)",
    "memory": "peak memory above the model against the Trainer",
    "own_lora": "step time against our own LoRA",
    "limit": "step over the limit",
}
LIMITS = {"e2e": 1.15, "e2e-grouped": 1.2, "e2e-template": 1.25, "coqa": 1.5}
"""How far a step in fp32 may be from the limit, which means the same on every processor."""


def _distances() -> Sequence[Goal]:
    """List the distances to the limit: in fp32 themselves, in bf16 (where AMX is) half of the Trainer's."""
    goals = [Goal(Cell("60m", profile), "limit", bound) for profile, bound in LIMITS.items()]
    for profile in ("e2e", "e2e-grouped", "e2e-template"):
        goals.append(Goal(Cell("350m", profile), "limit", LIMITS[profile]))
    for cell in (("60m", "e2e"), ("350m", "e2e"), ("350m", "e2e-grouped"), ("350m", "e2e-template")):
        goals.append(Goal(Cell(*cell, precision="bf16"), "speed", 2.0))
    return goals


def _on_a_gpu(size: str, profile: str, method: str) -> Sequence[Goal]:
    cell = Cell(size, profile, method, "bf16")
    if profile == "long":
        # 45 % of the matrix rate.
        return [Goal(cell, "limit", 2.22)]
    return [Goal(cell, "speed", 1.8), Goal(cell, "memory", 1.0)]


GPU_WORK = "1b e2e lora, 7b e2e lora, 1b coqa lora, 7b e2e qlora, 7b coqa lora, 1b long lora, 7b long lora, "
GPU_WORK += "1b e2e qlora, 7b coqa qlora, 1b coqa qlora"
GPU_GOALS: Sequence[Goal] = tuple(goal for work in GPU_WORK.split(", ") for goal in _on_a_gpu(*work.split()))
"""What a GPU has to reach."""
CPU_GOALS: Sequence[Goal] = (
    *_distances(),
    Goal(Cell("60m", "e2e"), "memory", 0.45),
    Goal(Cell("60m", "e2e-grouped"), "memory", 0.4),
    Goal(Cell("60m", "e2e-template"), "memory", 0.4),
    Goal(Cell("60m", "coqa"), "memory", 0.2),
    *(
        Goal(Cell("60m", "e2e", method), "own_lora", bound)
        for method, bound in (("dora", 1.25), ("lora-fa", 1.0), ("prefix", 1.1), ("prompt", 1.1), ("ia3", 1.0))
    ),
)
