"""The pictures of a report on runs: loss curves, and scores against trainable parameters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from peftkit.plot import GREY, INK, smooth
from peftkit.report.evidence import Evidence

LINES = ("-", "--", ":", "-.")


def look(position: int) -> dict[str, Any]:
    """Return colour and line of the run at `position`; forty look different."""
    return {"color": f"C{position % 10}", "linestyle": LINES[position // 10 % len(LINES)]}


def canvas(
    columns: int, height: float, width: float = 7.5, ratios: Sequence[float] | None = None
) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, side by side, with a light grid and without frames.

    Axes whose widths are given by `ratios` are placed by the caller.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), dpi=130, layout=None if ratios else "constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0])
    for axes in panels:
        axes.grid(color=GREY, alpha=0.3, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def png(figure: Any) -> bytes:
    """Return a figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def curves(runs: Sequence[Evidence]) -> bytes:
    """Draw the training loss of each run, smoothed, and its validation losses as points."""
    logged = [(position, run) for position, run in enumerate(runs, 1) if run.records]
    figure, (axes,) = canvas(1, 4.6, 10)
    last, first = [], []
    for position, run in logged:
        losses = smooth([record["loss"] for record in run.records], max(1, len(run.records) // 10))
        steps = [record["step"] for record in run.records]
        axes.plot(steps, losses, linewidth=1.4, label=f"{position}  {run.label}"[:70], **look(position - 1))
        measured = [(r["step"], r["validation_loss"]) for r in run.records if "validation_loss" in r]
        if measured:
            place = {"linestyle": "none", "marker": "o", "markersize": 4, "color": look(position - 1)["color"]}
            axes.plot(*zip(*measured, strict=True), **place)
        last.append(losses[-1])
        first.append(losses[0])
    if logged:
        # The steep first steps of one run do not flatten all others.
        axes.set_ylim(bottom=max(0.0, 0.9 * min(last)), top=min(max(first), 4 * sorted(last)[len(last) // 2]))
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per trained token)\nline: training, smoothed; points: validation")
    return png(figure)


def against_parameters(
    runs: Sequence[tuple[int, Evidence]], name: str, spans: Sequence[tuple[float, float] | None], base: float | None
) -> bytes:
    """Draw the score `name` of each numbered run, with its interval, against its trainable parameters."""
    figure, (axes,) = canvas(1, 4.6, 8)
    for (position, run), span in zip(runs, spans, strict=True):
        if run.answers is None or run.summary is None:
            continue
        count, score = run.summary["trainable_parameters"], run.answers.scores[name]
        error = None if span is None else [[max(0.0, score - span[0])], [max(0.0, span[1] - score)]]
        axes.errorbar(count, score, yerr=error, fmt="o", markersize=5, capsize=3, color=look(position - 1)["color"])
        place = {"textcoords": "offset points", "xytext": (6, 4), "fontsize": 8, "color": INK}
        axes.annotate(str(position), (count, score), **place)
    if base is not None:
        axes.axhline(base, color=GREY, linestyle="--", linewidth=1)
        place = {"ha": "right", "va": "bottom", "fontsize": 8, "color": INK}
        axes.annotate("untrained", (0.99, base), xycoords=("axes fraction", "data"), **place)
    axes.set_xscale("log")
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(name)
    return png(figure)
