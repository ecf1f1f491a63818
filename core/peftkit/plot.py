"""The loss curve of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit import files

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563eb", "#d9480f", "#9aa5b1"


def smooth(values: Sequence[float], span: int) -> list[float]:
    """Average exponentially over about `span` values, unbiased at the start (the weights always add up to one)."""
    keep = 1.0 - 2.0 / (span + 1.0)
    average = weight = 0.0
    curve = []
    for value in values:
        average = keep * average + value
        weight = keep * weight + 1.0
        curve.append(average / weight)
    return curve


def draw_loss(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Draw the training loss (each step and smoothed), the validation loss and the learning rate of a run's log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150)
    figure.subplots_adjust(left=0.09, right=0.91, top=0.92, bottom=0.12)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = [record["step"] for record in records]
    losses = [record["loss"] for record in records]
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="training, each step")
    axes.plot(steps, smooth(losses, max(1, len(losses) // 20)), color=BLUE, linewidth=1.8, label="training, smoothed")
    measured = [(record["step"], record["validation_loss"]) for record in records if "validation_loss" in record]
    if measured:
        axes.plot(*zip(*measured, strict=True), "o-", color=ORANGE, markersize=4.5, linewidth=1.2, label="validation")
    _frame(axes, losses, [value for _, value in measured])
    rates = axes.twinx()
    rates.plot(steps, [record["lr"] for record in records], color=GREY, linewidth=1.0, linestyle="--")
    rates.set_ylabel("learning rate (dashed)", color=GREY)
    rates.tick_params(axis="y", colors=GREY)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rates.set_ylim(bottom=0)
    for side in ("top", "left", "right", "bottom"):
        rates.spines[side].set_visible(False)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per trained token)")
    axes.legend(frameon=False, loc="upper right")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    files.write_bytes(path, content.getvalue())


def _frame(axes: Any, losses: Sequence[float], measured: Sequence[float]) -> None:
    """Show every value but the steepest first steps, which would flatten the rest."""
    shown = sorted(losses)[: max(1, round(len(losses) * 0.98))] + list(measured)
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
