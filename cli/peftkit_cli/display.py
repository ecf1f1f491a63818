"""How a run is watched: a live picture on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.visible import visible
from peftkit_cli import figures
from peftkit_cli.terminal import console

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINES = 40
"""About how many lines a whole run writes into a pipe."""
PAUSE = 10.0
"""Seconds between two lines of what a run does before its first step."""
SCORES = 4
"""So many scores are shown of those that a run measures; the log has them all."""


def observer() -> Live | Lines:
    """Return the observer that suits standard output."""
    return Live(console()) if sys.stdout.isatty() else Lines()


class Progress:
    """What both displays know of a run: its size, its records and the time it still needs."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}
        self.steps = 0
        self.step = self.first = 0
        self.losses: list[float] = []
        self.record: dict[str, Any] = {}
        self.validations: list[tuple[int, float]] = []
        self.began = time.monotonic()

    def begin(self, info: Mapping[str, Any]) -> None:
        """Take the run's size; `step` steps of it are already done."""
        self.info = dict(info)
        self.steps = info["steps"]
        self.first = self.step = info["step"]
        self.began = time.monotonic()

    def advance(self, record: Mapping[str, Any]) -> None:
        """Take the record of one step."""
        self.record = dict(record)
        self.step = int(record["step"])
        self.losses.append(float(record["loss"]))

    def left(self) -> str:
        """Say how long the rest will take, from the steps of this process."""
        done = self.step - self.first
        if not done:
            return "–"
        return figures.duration((time.monotonic() - self.began) / done * (self.steps - self.step))

    def headline(self) -> str:
        """Name what is trained on what, and how much of it."""
        if not self.info:
            return ""
        info = self.info
        trained = figures.count(info["trainable_parameters"])
        return " · ".join(
            (
                " + ".join(info["methods"]),
                info["model"],
                f"{info['dataset']}, {info['examples']:,} examples",
                f"{trained} of {figures.count(info['total_parameters'])} parameters",
                f"{info['device']}, {info['precision']}",
            )
        )

    def savings(self) -> list[str]:
        """Say how much of the batches packing and shared prompts leave out; nothing that is below a hundredth."""
        saved = self.info.get("saved", {})
        causes = (
            ("packing", "padding", "of padded batches would be padding, and is not computed"),
            (
                "shared prompts",
                "shared",
                "of the tokens are computed once, with an example that begins alike",
            ),
        )
        return [f"{name}: {saved[key]:.0%} {what}" for name, key, what in causes if saved.get(key, 0) >= 0.01]

    def peak(self) -> list[str]:
        """Say which step of the first epoch takes most memory, where it is still to come and not the next."""
        largest = self.info.get("largest")
        if largest is None or largest["step"] <= self.first + 1:
            return []
        size = f"{largest['tokens']:,} tokens"
        return [f"memory: the largest micro-batch of the first epoch, {size}, comes in step {largest['step']:,}"]

    def measures(self) -> list[tuple[str, str]]:
        """Return the latest figures by name."""
        record = self.record
        shown = [("loss", f"{record['loss']:.4f}")] if record else []
        if self.validations:
            shown.append(("validation", f"{self.validations[-1][1]:.4f}"))
        for key, name, form in (
            ("stage", "stage", str),
            ("lr", "learning rate", lambda value: f"{value:.2e}"),
            ("grad_norm", "gradient norm", lambda value: f"{value:.3g}"),
            ("tokens_per_s", "tokens/s", figures.count),
            ("memory", "memory", figures.size),
        ):
            if record.get(key) is not None:
                shown.append((name, form(record[key])))
        return shown


def closing(summary: Mapping[str, Any]) -> str:
    """Say in a line how a run ended."""
    losses = summary["losses"]
    parts = [
        f"done: {summary['steps']:,} steps in {figures.duration(summary['wall_s'])}",
        f"loss {losses['first']:.4f} → {losses['last']:.4f}",
        f"{figures.count(summary['tokens_per_second'])} tokens/s",
        f"peak memory {figures.size(summary['peak_memory_bytes'])}",
    ]
    if losses["validation"] is not None:
        parts.insert(2, f"validation {losses['validation']:.4f}")
    return " · ".join(parts)


def measured(record: Mapping[str, Any]) -> str:
    """Say what was measured at a step: the validation loss and the first scores."""
    scores = list(record.get("scores", {}).items())[:SCORES]
    parts = [f"validation loss {record['validation_loss']:.4f}"] if "validation_loss" in record else []
    return " · ".join((*parts, *(f"{name} {value:.4f}" for name, value in scores)))


class Lines:
    """Plain lines, about `count` of them for a whole run, each behind `prefix`."""

    def __init__(self, prefix: str = "", count: int = LINES) -> None:
        self.progress = Progress()
        self.prefix, self.count = prefix, count
        self.told = float("-inf")

    def working(self, text: str) -> None:
        if time.monotonic() - self.told > PAUSE:
            self.told = time.monotonic()
            self._write(f"{text} …")

    def start(self, info: dict[str, Any]) -> None:
        self.progress.begin(info)
        for line in (self.progress.headline(), *self.progress.savings(), *self.progress.peak()):
            self._write(line)
        if self.progress.first:
            self._write(f"resumed after step {self.progress.first}")

    def step(self, record: dict[str, Any]) -> None:
        progress = self.progress
        progress.advance(record)
        every = max(1, progress.steps // self.count)
        if progress.step % every and progress.step not in (progress.first + 1, progress.steps):
            return
        shown = " · ".join(f"{name} {value}" for name, value in progress.measures() if name != "validation")
        self._write(f"step {progress.step}/{progress.steps} · {shown} · {progress.left()} left")

    def evaluated(self, record: dict[str, Any]) -> None:
        self._write(f"step {record['step']} · {measured(record)}")

    def saved(self, path: Path) -> None:
        self._write(f"saved {path}")

    def notice(self, text: str) -> None:
        self._write(text)

    def end(self, summary: dict[str, Any]) -> None:
        self._write(closing(summary))

    def close(self) -> None:
        """Lines need no tidying."""

    def _write(self, text: str) -> None:
        print(visible(f"{self.prefix}{text}"), flush=True)


class Live:
    """A picture drawn anew four times a second: progress, the loss as a curve of bars, the latest figures."""

    def __init__(self, screen: Console) -> None:
        from rich.live import Live as Screen

        self.progress = Progress()
        self.console = screen
        self.loading = screen.status("loading the model and the data …")
        self.loading.start()
        self.screen = Screen(get_renderable=self.picture, console=screen, refresh_per_second=4)

    def working(self, text: str) -> None:
        self.loading.update(f"{visible(text)} …")

    def start(self, info: dict[str, Any]) -> None:
        self.progress.begin(info)
        self.loading.stop()
        for line in (*self.progress.savings(), *self.progress.peak()):
            self.console.print(line, style="dim", markup=False, highlight=False)
        self.screen.start()

    def step(self, record: dict[str, Any]) -> None:
        self.progress.advance(record)

    def evaluated(self, record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            self.progress.validations.append((int(record["step"]), float(record["validation_loss"])))
        if "scores" in record:
            self.console.print(f"step {record['step']} · {measured(record)}", markup=False, highlight=False)

    def saved(self, path: Path) -> None:
        self.console.print(f"saved {path}", style="dim", markup=False, highlight=False)

    def notice(self, text: str) -> None:
        self.console.print(visible(text), style="yellow", markup=False, highlight=False)

    def end(self, summary: dict[str, Any]) -> None:
        self.close()
        self.console.print(closing(summary), style="bold green", markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was; the last picture stays."""
        self.loading.stop()
        self.screen.stop()

    def picture(self) -> RenderableType:
        """Draw the run as it stands."""
        from rich.box import ROUNDED
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress = self.progress
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        elapsed = figures.duration(time.monotonic() - progress.began)
        bar.add_row(
            ProgressBar(total=progress.steps or 1, completed=progress.step),
            Text(f"step {progress.step:,}/{progress.steps:,} · {elapsed} · {progress.left()} left"),
        )
        values = Table.grid(padding=(0, 3))
        measures = progress.measures()
        if measures:
            values.add_row(*(Text(name, style="dim") for name, _ in measures))
            values.add_row(*(Text(value, style="bold") for _, value in measures))
        width = max(10, min(self.console.width - 30, 80))
        curve = Text.assemble(("loss  ", "dim"), (figures.sparkline(progress.losses, width), "cyan"))
        if len(progress.losses) > 1:
            curve.append(f"  {progress.losses[0]:.2f} → {progress.losses[-1]:.2f}", style="dim")
        shown: list[RenderableType] = [bar, Text(), curve, Text(), values]
        if progress.validations:
            row = "  ".join(f"{step:,}: {loss:.4f}" for step, loss in progress.validations[-5:])
            shown += [Text(), Text.assemble(("validation  ", "dim"), row)]
        return Panel(Group(*shown), title=Text(progress.headline()), title_align="left", box=ROUNDED, padding=(1, 2))
