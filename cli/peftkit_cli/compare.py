"""`peft compare`: train and evaluate several methods on the same data, and set them side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli import figures
from peftkit_cli.arguments import OverrideArgument, RecipeArgument
from peftkit_cli.terminal import console, say, table

if TYPE_CHECKING:
    from peftkit.comparison import EntryRun
    from peftkit.report.results import Comparison


def compare(
    recipe: RecipeArgument,
    overrides: OverrideArgument = None,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Methods, or 'all'; a+b is a combination.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Stored parameters of each method, such as 2e6.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="NUMBER", help="Runs of each method.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="By default runs/compare-RECIPE.")
    ] = None,
) -> None:
    """Train and evaluate methods on the same data in the same order; running it again continues it."""
    from peftkit.errors import PeftkitError
    from peftkit.recipe import load

    given = {"methods": f"[{methods}]" if methods else None, "budget": budget, "seeds": seeds}
    options = [f"compare.{key}={value}" for key, value in given.items() if value is not None]
    loaded = load(recipe, [*(overrides or ()), *options])
    from peftkit.comparison import compare as compare_recipe

    folder = output or Path(loaded.output or f"runs/compare-{Path(recipe).stem}")
    watcher = Watching()
    try:
        result = compare_recipe(loaded, folder, watcher)
    finally:
        watcher.close()
    show(result, folder)
    failed = [entry.label for entry in result.entries if entry.reason and entry.label in watcher.failed]
    if failed:
        raise PeftkitError(f"{', '.join(failed)}: not every run came to an end; the reasons are told above.")


def show(result: Comparison, folder: Path) -> None:
    """Print the table, what was left out, and where the files are."""
    from peftkit.report.tables import cells, heads

    say("")
    table(heads(result), cells(result), result.title)
    for entry in result.entries:
        if entry.reason:
            say(f"left out: {entry.label}: {entry.reason}")
    say(f"\nThe comparison is in {folder}: comparison.html shows all of it.")


class Watching:
    """A line for each run that has ended, and on a terminal what is going on."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.position = self.count = 0
        self.status = console().status("reading …") if sys.stdout.isatty() else None
        if self.status:
            self.status.start()

    def began(self, run: EntryRun, position: int, count: int) -> None:
        self.position, self.count = position, count

    def waited(self, run: EntryRun) -> None:
        if self.status:
            log = run.folder / "log.jsonl"
            steps = log.read_bytes().count(b"\n") if log.exists() else 0
            self.status.update(f"{self.position}/{self.count} {run.label}: {steps} steps")

    def ended(self, run: EntryRun, seconds: float) -> None:
        if run.failure and run.entry:
            self.failed.add(run.entry.label)
        report = run.report
        score = "" if report is None else " · ".join(f"{key} {value:.4f}" for key, value in _shown(report["scores"]))
        say(f"[{self.position}/{self.count}] {run.label}: {run.failure or score} · {figures.duration(seconds)}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.status:
            self.status.stop()


def _shown(scores: dict[str, float]) -> list[tuple[str, float]]:
    return list(scores.items())[:4]
