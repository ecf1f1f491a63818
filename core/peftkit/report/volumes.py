"""Scores over a method's size for several volumes of data: curves, slopes, and the test of their interaction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftkit.report.document import Heading, Paragraph, Picture, Table
from peftkit.report.drawings import canvas, png
from peftkit.report.evidence import Evidence
from peftkit.report.results import Spread
from peftkit.report.tables import NONE, spread

Facts = Callable[[Evidence], dict[str, Any]]
Points = dict[float, dict[float, dict[int, float]]]
"""A score by line, x and seed."""
HOW = (
    "Points are means over seeds, bars one standard deviation on either side. A slope is that of the least-squares "
    "line of the score over log2 of the {x}, of each seed alone. The interaction is the slope at the largest {line} "
    "minus that at the smallest, seed by seed, with a two-sided t-test over the seeds. A slope whose p is not below "
    "0.05 lies within the noise of the seeds and does not count."
)


class Figure(BaseModel):
    """Scores over `x`, a line for each value of `line`, for each of the series that `series` tells apart."""

    model_config = ConfigDict(extra="forbid")
    line: str
    x: str
    series: dict[str, dict[str, Any]]
    keys: list[str]


def blocks(figure: Figure, groups: Mapping[str, Sequence[Evidence]], facts: Facts) -> list[Any]:
    """Return the pictures, tables and tests of each group of runs; groups with a single x are left out."""
    parts: list[Any] = []
    for number, (name, runs) in enumerate(groups.items(), 1):
        points = {key: collect(figure, runs, key, facts) for key in figure.keys}
        points = {key: lines for key, lines in points.items() if any(len(line) > 1 for line in lines.values())}
        if points:
            shows = f"{', '.join(points)} over {figure.x}, a line for each {figure.line} ({name})"
            picture = Picture(f"volumes-{number}", shows, draw(figure, points))
            parts += [Heading(name), picture, values(figure, points), slopes(points), Paragraph(_how(figure))]
    return parts or [Paragraph(f"not run: no runs with at least two values of {figure.x}.")]


def _how(figure: Figure) -> str:
    return HOW.format(x=figure.x, line=figure.line)


def collect(figure: Figure, runs: Sequence[Evidence], key: str, facts: Facts) -> Points:
    """Sort the score `key` of runs by line, x and seed."""
    points: Points = {}
    for run in runs:
        if run.answers is not None and key in run.answers.scores:
            known = facts(run)
            line = points.setdefault(known[figure.line], {})
            line.setdefault(known[figure.x], {})[run.recipe.train.seed] = run.answers.scores[key]
    return {line: dict(sorted(points[line].items())) for line in sorted(points)}


def draw(figure: Figure, points: Mapping[str, Points]) -> bytes:
    """Draw one panel a score."""
    drawing, panels = canvas(len(points), 3.8, 3.9)
    for axes, (key, lines) in zip(panels, points.items(), strict=True):
        ticks = sorted({x for line in lines.values() for x in line})
        for position, (name, line) in enumerate(lines.items()):
            means = [statistics.fmean(seeds.values()) for seeds in line.values()]
            bars = [statistics.stdev(seeds.values()) if len(seeds) > 1 else 0.0 for seeds in line.values()]
            label = f"{100 * name:g} % of the data"
            axes.errorbar(
                list(line), means, yerr=bars, fmt="o-", markersize=4, capsize=3, color=f"C{position}", label=label
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel(figure.x)
        axes.set_ylabel(key)
    panels[0].legend(frameon=False, fontsize=8)
    return png(drawing)


def values(figure: Figure, points: Mapping[str, Points]) -> Table:
    """Return the means, with their spread over seeds."""
    ticks = sorted({x for lines in points.values() for line in lines.values() for x in line})
    rows = []
    for key, lines in points.items():
        for name, line in lines.items():
            scores = [list(line.get(x, {}).values()) for x in ticks]
            cells = [spread(Spread.of(seeds), 4) if seeds else "not run" for seeds in scores]
            rows.append([key, f"{100 * name:g} %", *cells])
    return Table(["score", figure.line, *(f"{figure.x} {x:g}" for x in ticks)], rows)


def slopes(points: Mapping[str, Points]) -> Table:
    """Return the slope at each volume and the interaction, each with its test over seeds."""
    rows = []
    for key, lines in points.items():
        by_volume = {name: slope_by_seed(line) for name, line in lines.items()}
        rows += [[key, f"slope at {100 * name:g} %", *_tested(list(by_volume[name].values()))] for name in by_volume]
        small, large = by_volume[min(by_volume)], by_volume[max(by_volume)]
        if len(by_volume) > 1:
            both = sorted(small.keys() & large.keys())
            rows.append([key, "interaction", *_tested([large[seed] - small[seed] for seed in both])])
    return Table(["score", "what", "mean", "spread over seeds", "p", "seeds"], rows)


def slope_by_seed(line: Mapping[float, Mapping[int, float]]) -> dict[int, float]:
    """Return the least-squares slope over log2 of x of every seed that has at least two points."""
    slopes = {}
    for seed in sorted({seed for seeds in line.values() for seed in seeds}):
        pairs = [(math.log2(x), seeds[seed]) for x, seeds in line.items() if seed in seeds]
        if len(pairs) > 1:
            slopes[seed] = statistics.linear_regression(*zip(*pairs, strict=True)).slope
    return slopes


def _tested(values: Sequence[float]) -> list[str]:
    if not values:
        return [NONE, NONE, NONE, "0"]
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [f"{mean:+.5f}", NONE, NONE, "1"]
    deviation = statistics.stdev(values)
    p = two_sided(mean / (deviation / math.sqrt(len(values))), len(values) - 1) if deviation else float(mean == 0)
    return [f"{mean:+.5f}", f"{deviation:.5f}", f"{p:.3f}", str(len(values))]


def two_sided(t: float, freedom: int) -> float:
    """Return P(|T| >= |t|) of Student's distribution by finite sums (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (1.0, 1.0) if freedom % 2 == 0 else (cosine, cosine if freedom > 1 else 0.0)
    for k in range(2 if freedom % 2 == 0 else 3, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = sine * total if freedom % 2 == 0 else 2 / math.pi * (angle + sine * total)
    return max(0.0, 1.0 - inside)
