"""A flame chart of a step as one SVG file: time from left to right, modules inside others below them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from peftkit.profiling.watch import Interval

WIDTH, ROW, TOP = 1400, 18, 40
COLOURS = {"forward": "#8fb8de", "backward": "#f2b279"}
NARROW = 0.4
"""Boxes of fewer pixels are left out."""


def flame(intervals: Sequence[Interval]) -> str:
    """Draw the intervals of one step; a box tells its module and milliseconds to a pointer that rests on it."""
    first = min((i.start for i in intervals), default=0.0)
    last = max((i.end for i in intervals), default=1.0)
    scale = WIDTH / max(last - first, 1e-9)
    height = TOP + ROW * (2 + max((i.depth for i in intervals), default=0))
    boxes = [_box(i, (i.start - first) * scale, (i.end - i.start) * scale) for i in intervals]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11">'
        f'<text x="4" y="16" font-size="13">One training step, {1e3 * (last - first):.1f} ms</text>'
        f'<rect x="4" y="22" width="10" height="10" fill="{COLOURS["forward"]}"/><text x="18" y="31">forward</text>'
        f'<rect x="74" y="22" width="10" height="10" fill="{COLOURS["backward"]}"/><text x="88" y="31">backward</text>'
    )
    return head + "".join(boxes) + "</svg>\n"


def _box(interval: Interval, x: float, width: float) -> str:
    if width < NARROW:
        return ""
    y = TOP + ROW * interval.depth
    name = interval.path.rpartition(".")[2]
    shown = f'<text x="{x + 3:.1f}" y="{y + 13}">{escape(name)}</text>' if width > 7 * len(name) else ""
    told = f"{interval.path}, {interval.phase}, {1e3 * (interval.end - interval.start):.2f} ms"
    return (
        f'<g><title>{escape(told)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" '
        f'fill="{COLOURS[interval.phase]}" stroke="#ffffff" stroke-width="0.3"/>{shown}</g>'
    )
