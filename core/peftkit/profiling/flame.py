"""A profile as flame charts on one HTML page that needs no other file: time, and saved memory, along the modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape

from peftkit.profiling.measure import PHASES, Profile, Row
from peftkit.profiling.owners import LOSS, WHOLE, ancestors
from peftkit.profiling.spans import BACKWARD, FORWARD

WIDTH, HEIGHT = 1200, 18
"""Of a chart and of one bar, in pixels."""
LETTER = 6.5
"""Pixels that a letter takes."""
SMALLEST = 0.3
"""Pixels under which a bar, with all above it, is left out."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } rect { stroke: #fff; stroke-width: .6; }
text { font: 11px system-ui, sans-serif; pointer-events: none; }
"""


@dataclass
class Bar:
    """A bar of a chart: what is within it stands on it."""

    name: str
    about: str
    size: float
    inner: list[Bar] = field(default_factory=list)


def html(profile: Profile) -> str:
    """Write the page."""
    title = f"{' + '.join(profile.about['methods'])} on {profile.about['dataset']}, {profile.about['model']}"
    step = Bar("step", "", 0.0)
    for phase in PHASES:
        seconds = profile.phases[phase]
        step.inner.append(Bar(phase, "", seconds, _phase(profile, phase)))
        step.size += seconds
    saved = Bar("saved for the backward pass", "", profile.saved, _tree(profile, lambda row: row.saved))
    batch = profile.batch
    parts = [
        f"<h1>{escape(title)}</h1><p>{profile.about['device']}, {profile.about['precision']}. A bar is a module, and "
        "the modules within it stand below. Point at a bar for its path and its share.</p>",
        f"<h2>Time of a step (mean of {profile.steps})</h2>" + chart(step, lambda size: f"{size * 1e3:,.2f} ms"),
        f"<h2>Memory saved by a micro-batch of {batch['rows']} rows, {batch['tokens']} tokens</h2>"
        + chart(saved, lambda size: f"{size:,.0f} bytes"),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def chart(root: Bar, told: Callable[[float], str]) -> str:
    """Draw a bar and all within it as SVG, from the top down."""
    drawn = list(_drawn(root, 0.0, 0, WIDTH / root.size if root.size else 0.0))
    depth = 1 + max((level for _, _, level, _ in drawn), default=0)
    shapes = []
    for bar, x, level, width in drawn:
        share = f"{bar.size / root.size:.1%}"
        title = escape(" · ".join(part for part in (bar.name, bar.about, told(bar.size), share) if part))
        y, letters = level * HEIGHT, int((width - 4) / LETTER)
        label = bar.name.rpartition(".")[2]
        text = f'<text x="{x + 3:.1f}" y="{y + 13}">{escape(label[:letters])}</text>' if letters > 2 else ""
        shapes.append(
            f'<g><title>{title}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{HEIGHT}" '
            f'fill="{_colour(bar.about or bar.name)}"/>{text}</g>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {depth * HEIGHT}" role="img">' + "\n".join(shapes) + "</svg>"


def _phase(profile: Profile, phase: str) -> list[Bar]:
    if phase == FORWARD:
        return _tree(profile, lambda row: row.forward)
    return _tree(profile, lambda row: row.backward) if phase == BACKWARD else []


def _tree(profile: Profile, own: Callable[[Row], float]) -> list[Bar]:
    """Return the bars of the modules at the top, in the order of the model; each holds its own size and the inner."""
    bars = {row.name: Bar(row.name, row.label, own(row)) for row in profile.paths}
    roots = []
    for path, bar in bars.items():
        around = next((path for path in ancestors(path) if path in bars), None)
        (roots if around is None else bars[around].inner).append(bar)
    for path in sorted(bars, key=lambda path: -len(list(ancestors(path)))):
        bars[path].size += sum(inner.size for inner in bars[path].inner)
    return sorted(roots, key=lambda bar: (bar.name == LOSS, bar.name != WHOLE))


def _drawn(bar: Bar, x: float, level: int, scale: float) -> Iterator[tuple[Bar, float, int, float]]:
    width = bar.size * scale
    if width < SMALLEST:
        return
    yield bar, x, level, width
    for inner in bar.inner:
        yield from _drawn(inner, x, level + 1, scale)
        x += inner.size * scale


def _colour(text: str) -> str:
    """Return the colour of a label: light, warm, and the same every time."""
    value = sum(place * ord(letter) for place, letter in enumerate(text, 1))
    return f"hsl({12 + value % 48}, {60 + value % 30}%, {68 + value // 7 % 14}%)"
