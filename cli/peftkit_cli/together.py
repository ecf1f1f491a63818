"""`peft train --together`, and sweeps: several runs over one base, each told of by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit_cli.arguments import run_folder
from peftkit_cli.terminal import say, table

if TYPE_CHECKING:
    from peftkit.together import Failed, Job
    from peftkit.training import Summary

FEWEST = 5
"""About how many lines each of many runs writes at least."""


def jobs_of(sources: Sequence[str], overrides: Sequence[str], output: Path | None) -> list[Job]:
    """Load recipes, with their sweeps, as jobs.

    A run goes to its recipe's own folder, within `output` where that is given; runs of a sweep go to folders in there.
    """
    from peftkit.recipe import load_sweep

    loaded = [(source, load_sweep(source, overrides)) for source in sources]
    from peftkit.together import Job

    jobs = []
    for source, recipes in loaded:
        stem = Path(source).stem
        for name, recipe in recipes.items():
            parent = output if output is not None and len(sources) == 1 else output and output / stem
            folder = run_folder(source, recipe, parent) / name
            title = (f"{stem}/{name}" if len(sources) > 1 else name) if name else stem
            jobs.append(Job(title, recipe, folder))
    return jobs


def run_together(jobs: Sequence[Job], resume: bool) -> int:
    """Train jobs together and show how each ended; returns 1 where one ended early, else 0."""
    from peftkit.together import Failed, train_together
    from peftkit_cli.display import LINES, Lines

    say(f"training {len(jobs)} runs together: {', '.join(job.name for job in jobs)}")
    count = max(FEWEST, LINES // len(jobs))
    watched = [replace(job, observer=Lines(f"{job.name}: ", count)) for job in jobs]
    results = train_together(watched, resume=resume)
    show(jobs, results)
    return 1 if any(isinstance(result, Failed) for result in results.values()) else 0


def show(jobs: Sequence[Job], results: Mapping[str, Summary | Failed]) -> None:
    """Print a line for each run: its losses and where it is, or why it ended."""
    from peftkit.together import Failed

    rows: list[Sequence[object]] = []
    reasons = []
    for job in jobs:
        result = results[job.name]
        if isinstance(result, Failed):
            rows.append((job.name, "", "", "", str(job.run)))
            reasons.append(f"ended early: {job.name}: {result.reason}")
        else:
            last, validation = result.losses["last"], result.losses["validation"]
            rows.append((job.name, result.steps, last, "" if validation is None else validation, str(job.run)))
    say("")
    table(("run", "steps", "loss", "validation", "folder"), rows)
    for reason in reasons:
        say(reason)
