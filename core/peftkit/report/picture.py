"""A comparison as a picture: loss curves on the left, scores against stored parameters on the right."""

from __future__ import annotations

from typing import Any

from peftkit.plot import GREY, INK, smooth
from peftkit.report.drawings import canvas, look, png
from peftkit.report.results import Comparison
from peftkit.report.tables import names


def draw(comparison: Comparison) -> bytes:
    """Draw the picture and return it as PNG."""
    count = len(comparison.measured)
    figure, (left, right) = canvas(2, max(5.5, 2 + 0.19 * count), 7, ratios=(1.15, 1))
    figure.subplots_adjust(left=0.05, right=0.985, top=0.93, bottom=0.1, wspace=0.42)
    _curves(left, comparison)
    _scores(right, comparison)
    figure.text(0.05, 0.965, comparison.title, color=INK, fontsize=12)
    return png(figure)


def _curves(axes: Any, comparison: Comparison) -> None:
    entries = comparison.measured
    last: list[float] = []
    for position, (entry, name) in enumerate(zip(entries, names(entries), strict=True)):
        losses = smooth(entry.losses, max(1, len(entry.losses) // 10))
        axes.plot(entry.steps, losses, label=name, linewidth=1.3, **look(position))
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
        color = look(position)["color"]
        axes.errorbar(entry.stored, score.mean, yerr=score.deviation, fmt="o", color=color, markersize=4, capsize=2)
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
