"""The final figures of a run, as summary.json holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from peftkit import schemas
from peftkit.schemas import Count, Stored

EARLIER = {"rung": "memory_plan"}
"""What keys were called in summaries of earlier versions."""
GONE = {"utilisation"}
"""Keys of earlier versions that are not written any more."""
CHANGED = "The file was changed after the run wrote it."


@dataclass(frozen=True)
class Summary:
    """What a run came to: counts of parameters, steps and tokens; seconds, bytes; losses per trained token (nats)."""

    model: str
    methods: list[str]
    dataset: str
    trainable_parameters: int
    total_parameters: int
    examples: int
    dropped_examples: int
    steps: int
    epochs: float
    tokens: int
    trained_tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    wall_s: float
    losses: dict[str, float | None]
    device: str
    precision: str
    versions: dict[str, str]
    scores: dict[str, float] | None = None
    """Of the kept adapter on the part of the validation split that `train.score_every` answers."""
    trained_tokens_per_second: float | None = None
    computed_tokens: int | None = None
    """Tokens that went through the model; padding is among them where examples are padded."""
    padding_tokens_saved: int | None = None
    """Padding that the micro-batches would have had, were they not packed."""
    shared_tokens_saved: int | None = None
    """Tokens that were not computed, as an example of the same micro-batch began alike."""
    memory_parts: dict[str, int] | None = None
    """The peak memory in bytes by part: weights, adapter, gradients, optimizer, rest (`training.parts`)."""
    best: dict[str, Any] | None = None
    """Where `train.keep_best` chose the adapter: the metric, its value and the step."""
    stopped_early: bool = False
    """Whether `train.patience` ended the run before its last step."""
    memory_plan: str | None = None
    """What the run gave up for memory in the end, where the recipe has `train.memory`."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return asdict(self)


def figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up a run's log: steps, epochs, tokens, speed, memory, time and losses (first, last, best, validation)."""
    losses = [record["loss"] for record in records]
    measured = [record["validation_loss"] for record in records if "validation_loss" in record]
    tokens = sum(record["tokens"] for record in records)
    took = [record["tokens"] / record["tokens_per_s"] if record["tokens_per_s"] else 0.0 for record in records]
    busy, trained = sum(took), sum(record["trained_tokens"] for record in records)
    counted = ("computed_tokens", "padding_tokens_saved", "shared_tokens_saved")
    return {
        "steps": len(records),
        "epochs": records[-1]["epoch"],
        "tokens": tokens,
        "trained_tokens": trained,
        # A record of an earlier version lacks them.
        **{key: sum(record.get(key, 0) for record in records) for key in counted},
        "tokens_per_second": round(tokens / busy, 1) if busy else 0.0,
        "trained_tokens_per_second": round(trained / busy, 1) if busy else 0.0,
        "peak_memory_bytes": max(record["memory"] for record in records),
        "wall_s": records[-1]["elapsed_s"],
        "losses": {
            "first": losses[0],
            "last": losses[-1],
            "best": min(losses),
            "validation": measured[-1] if measured else None,
        },
    }


class ToldLosses(Stored):
    """The losses of a run."""

    validation: float | None


class ToldSummary(Stored):
    """What reports and comparisons take from a summary; earlier versions wrote it too."""

    trainable_parameters: Count
    total_parameters: Annotated[int, Field(ge=1)]
    steps: Count
    tokens: Count
    tokens_per_second: float
    peak_memory_bytes: Count
    wall_s: float
    losses: ToldLosses
    device: str = ""
    precision: str = ""
    versions: dict[str, str] = {}


def read_told(path: Path) -> dict[str, Any]:
    """Read the figures of a summary.json that reports take."""
    return schemas.read(path, ToldSummary, CHANGED)


def read(path: Path) -> Summary:
    """Read a summary.json."""
    content = schemas.read(path, dict[str, Any], CHANGED)
    figures = {EARLIER.get(key, key): value for key, value in content.items() if key not in GONE}
    return Summary(**schemas.check(Summary, figures, str(path), CHANGED))
