"""Draw live.png, the live display of a real run: `python docs/pictures/make.py RUN` reads the run's log."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

from matplotlib import font_manager, pyplot
from rich.console import Console
from rich.segment import Segment
from rich.style import Style

from peftkit_cli.display import Live

HERE = Path(__file__).parent
COLUMNS = 100
BACKGROUND, INK = "#12161c", "#d8dee6"
CELL_WIDTH, CELL_HEIGHT = 0.0845, 0.163
"""Inches of one character of DejaVu Sans Mono at 10.1 points."""
SHARE = 0.7
"""How much of the run has passed in the picture."""


def replay(run: Path) -> list[list[Segment]]:
    """Feed the first part of a run's log to the display and return its lines."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").split("\n") if line]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    console = Console(width=COLUMNS, force_terminal=True, color_system="truecolor", file=io.StringIO())
    display = Live(console)
    display.loading.stop()
    display.progress.begin({**summary, "step": 0, "steps": len(records)})
    shown = records[: int(len(records) * SHARE)]
    for record in shown:
        display.step(record)
        if "validation_loss" in record:
            display.evaluated(record)
    display.progress.began = time.monotonic() - shown[-1]["elapsed_s"]
    return console.render_lines(display.picture(), pad=False)


def draw(lines: list[list[Segment]], path: Path) -> None:
    """Draw lines of styled text as a picture."""
    font = font_manager.FontProperties(family="DejaVu Sans Mono", size=10.1)
    width, height = (COLUMNS + 4) * CELL_WIDTH, (len(lines) + 2) * CELL_HEIGHT
    figure = pyplot.figure(figsize=(width, height), facecolor=BACKGROUND)
    for row, line in enumerate(lines):
        column = 2
        for segment in line:
            for character in segment.text:
                figure.text(
                    column * CELL_WIDTH / width,
                    1 - (row + 1.8) * CELL_HEIGHT / height,
                    character,
                    color=colour(segment.style),
                    fontproperties=font,
                )
                column += 1
    figure.savefig(path, dpi=140, facecolor=BACKGROUND)


def colour(style: Style | None) -> str:
    """Return the colour of a rich style as a hexadecimal number."""
    if style is None:
        return INK
    if style.color is not None:
        return style.color.get_truecolor().hex
    return "#7d8794" if style.dim else INK


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/pictures/make.py RUN")
    draw(replay(Path(sys.argv[1])), HERE / "live.png")
