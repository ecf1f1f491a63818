"""A comparison as a picture: loss curves on the left, scores against stored parameters on the right."""

from __future__ import annotations

import io
from typing import Any

from peftkit.plot import GREY, INK, smooth
from peftkit.report.results import Comparison
from peftkit.report.tables import names

STYLES = ("-", "--", ":", "-.")


def draw(comparison: Comparison) -> bytes:
    """Draw the picture and return it as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(comparison.measured)
    figure = Figure(figsize=(14, max(5.5, 2 + 0.19 * count)), dpi=130)
    FigureCanvasAgg(figure)
    curves, scatter = figure.subplots(1, 2, width_ratios=(1.15, 1))
    figure.subplots_adjust(left=0.05, right=0.985, top=0.93, bottom=0.1, wspace=0.42)
    _curves(curves, comparison)
    _scores(scatter, comparison)
    for axes in (curves, scatter):
        axes.grid(color=GREY, alpha=0.3, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.text(0.05, 0.965, comparison.title, color=INK, fontsize=12)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _look(position: int) -> dict[str, Any]:
    """Return colour and line of the entry at `position`; forty look different."""
    return {"color": f"C{position % 10}", "linestyle": STYLES[position // 10 % len(STYLES)]}


def _curves(axes: Any, comparison: Comparison) -> None:
    entries = comparison.measured
    last: list[float] = []
    for position, (entry, name) in enumerate(zip(entries, names(entries), strict=True)):
        losses = smooth(entry.losses, max(1, len(entry.losses) // 10))
        axes.plot(entry.steps, losses, label=name, linewidth=1.3, **_look(position))
        last.append(losses[-1])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss, smoothed (nats per trained token)")
    if entries:
        axes.set_ylim(
            bottom=0.95 * min(last),
            top=min(max(entry.losses[0] for entry in entries), 4 * sorted(last)[len(last) // 2]),
        )
        columns = 1 + (len(entries) > 36)
        axes.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.01, 1.01), ncols=columns)


def _scores(axes: Any, comparison: Comparison) -> None:
    entries = comparison.measured
    for position, (entry, name) in enumerate(zip(entries, names(entries), strict=True)):
        score = entry.scores[comparison.headline]
        look = {"color": _look(position)["color"], "markersize": 4, "capsize": 2}
        axes.errorbar(entry.stored, score.mean, yerr=score.deviation, fmt="o", **look)
        place = {"textcoords": "offset points", "xytext": (4, 3), "fontsize": 7, "color": INK}
        axes.annotate(name, (entry.stored, score.mean), **place)
    base = comparison.base.scores.get(comparison.headline)
    if base is not None:
        axes.axhline(base.mean, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            "base", (0.99, base.mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
        )
    if comparison.measured:
        axes.set_xscale("log")
    axes.set_xlabel("stored parameters")
    axes.set_ylabel(comparison.headline)
