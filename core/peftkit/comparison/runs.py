"""The runs of a comparison, one after the other, each an ordinary run folder; what is finished is not run again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peftkit import files
from peftkit.comparison.entries import Entry
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.training import folder as run_folder
from peftkit.training.observer import Heeded
from peftkit.training.signals import Cause, Deferred, told

POLL_SECONDS = 0.2


class ComparisonStopped(PeftkitError):  # noqa: N818
    """A comparison that was stopped by a signal, or as its output was lost."""

    def __init__(self, cause: Cause, comparison: Path):
        stopped, self.exit_code = told(cause)
        super().__init__(f"the comparison in {comparison} was {stopped.rstrip(',')}. The same command continues it.")


class ComparisonWatcher(Protocol):
    """Receives what a comparison does."""

    def began(self, run: EntryRun, position: int, count: int) -> None:
        """A run begins: number `position`, from 1, of `count`."""

    def waited(self, run: EntryRun) -> None:
        """A run is going on; called a few times a second."""

    def ended(self, run: EntryRun, seconds: float) -> None:
        """A run has ended, well or with `run.failure`."""


@dataclass
class EntryRun:
    """One seed of one entry, or the untrained base (no entry)."""

    label: str
    folder: Path
    recipe: Recipe
    entry: Entry | None = None
    failure: str | None = None
    """Why it ended without a result."""

    @property
    def report(self) -> dict[str, Any] | None:
        """The evaluation as the recipe wants it, or None where it is still to be done."""
        section = self.recipe.eval
        ending = ".json" if self.entry else "-base.json"
        for path in sorted((self.folder / "eval").glob(f"*-{section.split}{ending}")):
            report = files.read_json(path)
            if report["limit"] == section.limit and report["split"] == section.split:
                return report
        return None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.report is not None and (self.entry is None or (self.folder / "summary.json").is_file())


def plan(recipe: Recipe, entries: Sequence[Entry], comparison: Path) -> list[EntryRun]:
    """List the runs, seed by seed so that a comparison that is stopped early has something of every method.

    Raises PeftkitError where a folder holds a run of another recipe.
    """
    trained = [entry for entry in entries if not entry.refused]
    runs = [EntryRun("base", comparison / "runs" / "base", entries[0].recipe(recipe, recipe.train.seed))]
    for seed in trained[0].seeds:
        for entry in trained:
            label, folder = f"{entry.label}, seed {seed}", entry.folder(comparison, seed)
            run = EntryRun(label, folder, entry.recipe(recipe, seed), entry)
            if (run.folder / "recipe.yaml").is_file():
                run_folder.check_resumed(run.folder, run.recipe)
            runs.append(run)
    return runs


def go(runs: Sequence[EntryRun], comparison: Path, watcher: ComparisonWatcher) -> None:
    """Do what is not finished; a run that fails keeps its reason and the others go on.

    Raises ComparisonStopped on a signal, after the run has written its checkpoint, and at its end where the output is
    lost.
    """
    heeded = Heeded(watcher)
    open_runs = [run for run in runs if not run.finished]
    with Deferred() as deferred:
        for position, run in enumerate(open_runs, 1):
            heeded.began(run, position, len(open_runs))
            began = time.monotonic()
            for _ in _wait(run, comparison, deferred):
                heeded.waited(run)
            if deferred.received is None:
                heeded.ended(run, time.monotonic() - began)
            if (cause := deferred.received or heeded.lost) is not None:
                raise ComparisonStopped(cause, comparison)


def _wait(run: EntryRun, comparison: Path, deferred: Deferred) -> Iterator[None]:
    """Start a run in a process and yield until it ends; a signal is passed on once."""
    name = run.folder.relative_to(comparison / "runs").as_posix().replace("/", "-")
    recipe, log = comparison / "recipes" / f"{name}.yaml", comparison / "logs" / f"{name}.txt"
    files.write_text(recipe, run.recipe.to_yaml())
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "peftkit.comparison.worker", str(recipe), str(run.folder)]
    with log.open("wb") as output:
        # In a session of its own the terminal's Ctrl-C does not reach it twice.
        process = subprocess.Popen(
            [*command, *([] if run.entry else ["--base"])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        passed_on = False
        while process.poll() is None:
            if deferred.received is not None and not passed_on:
                process.send_signal(deferred.received)
                passed_on = True
            yield
            time.sleep(POLL_SECONDS)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
        run.failure = f"{lines[-1] or 'it said nothing'} (exit code {process.returncode}; {log} has all it said)"
