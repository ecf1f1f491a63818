"""The table of the benchmark of training: its rows, the machine, how they are printed beside goals, and written."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from goals import WORDS, Cell, Goal

USUAL = "trainer"
"""The side that the others are set against."""
MEBI = 2**20


@dataclass
class Row:
    """A line of the table: one side of one cell. Seconds and bytes; ratios are those to the usual side."""

    size: str
    profile: str
    method: str
    precision: str
    side: str
    trained_per_s: float
    tokens_per_s: float
    step_s: float
    speed: float | None
    """Times as many trained tokens a second as the usual side."""
    limit: float
    """Times the limit."""
    own_lora: float | None
    """The step's time against that of our own LoRA."""
    slower: float | None = None
    """The step's time against that of ours."""
    whole: int | None = None
    above: int | None = None
    whole_ratio: float | None = None
    memory: float | None = None
    """`above` against that of the usual side."""
    loss: float = 0.0
    """Of the last step."""


def print_rows(rows: Sequence[Row]) -> None:
    """Print the sides of a cell in columns."""
    heads = (
        "side",
        "trained/s",
        "tokens/s",
        "step s",
        "speed",
        "x limit",
        "own lora",
        "whole MiB",
        "ratio",
        "above MiB",
    )
    print("".join(f"{head:>{12 if number else 13}}" for number, head in enumerate((*heads, "ratio"))))
    for row in rows:
        sizes = [None if size is None else size / MEBI for size in (row.whole, row.above)]
        cells = (
            (row.trained_per_s, ".1f"),
            (row.tokens_per_s, ".0f"),
            (row.step_s, ".3f"),
            (row.speed, ".2f"),
            (row.limit, ".2f"),
            (row.own_lora, ".2f"),
            (sizes[0], ".0f"),
            (row.whole_ratio, ".2f"),
            (sizes[1], ".0f"),
            (row.memory, ".2f"),
        )
        print(
            f"{row.side:>13}" + "".join(f"{'-' if v is None else format(v, form):>12}" for v, form in cells), flush=True
        )


def print_goals(rows: Sequence[Row], goals: Sequence[Goal]) -> None:
    """Print each goal that was measured beside what was reached."""
    print(f"\n{'work':<34}{'figure':<50}{'goal':>8}{'reached':>9}")
    ours = {Cell(row.size, row.profile, row.method, row.precision): row for row in rows if row.side == "ours"}
    for goal in goals:
        cell, row = goal.cell, ours.get(goal.cell)
        value = None if row is None else getattr(row, goal.figure)
        work = f"{cell.size} {cell.profile} {cell.method} {cell.precision}"
        bound = f"{'≥' if goal.least else '≤'} {goal.bound:g}"
        reached = "-" if value is None else f"{value:.2f}"
        verdict = "" if value is None else "  yes" if goal.reached(value) else "  no"
        print(f"{work:<34}{WORDS[goal.figure]:<50}{bound:>8}{reached:>9}{verdict}")


def print_turns(rows: Sequence[Row]) -> None:
    """Print how CoQA turn by turn compares with whole conversations, where both were measured."""
    speeds = {(row.size, row.method, row.precision, row.profile, row.side): row.trained_per_s for row in rows}
    for (*work, profile, side), speed in speeds.items():
        chat = speeds.get((*work, "coqa-chat", USUAL))
        if profile in ("coqa", "coqa-chat") and side in ("ours", USUAL) and chat:
            times = f"{speed / chat:.2f} x the tokens/s of coqa-chat with {USUAL}"
            print(f"{' '.join(work)}: {profile} with {side} trains {times}")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV, times in seconds and sizes in bytes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def machine(device: str) -> str:
    """Name the kind of GPU or processor."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kind = " with AMX" if any("amx_bf16" in line for line in lines) else ""
    return (named[0] if named else platform.machine()) + kind
