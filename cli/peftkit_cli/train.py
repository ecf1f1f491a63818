"""`peft train`: run a recipe, watch it, and leave a run folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli.arguments import RecipeArgument, TrustOption, agree
from peftkit_cli.terminal import working

if TYPE_CHECKING:
    from peftkit.recipe import Recipe


def train(
    recipe: RecipeArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Recipe keys to set, as rank=16; with --together more recipes, too."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The run folder; by default runs/RECIPE.")
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Train several recipes over one frozen base in one pass.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    trust: TrustOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and stop.")] = False,
) -> int:
    """Train a recipe and write a run folder: the adapter, the log, the summary and checkpoints."""
    from peftkit.errors import PeftkitError
    from peftkit_cli.together import jobs_of, run_together

    sources = [recipe, *(text for text in overrides or () if "=" not in text)]
    if len(sources) > 1 and not together:
        raise PeftkitError(
            f"found '{sources[1]}' behind the recipe; allowed: key=value, such as rank=16, or with --together the name "
            "of another recipe."
        )
    jobs = jobs_of(sources, [text for text in overrides or () if "=" in text], output)
    if dry_run:
        from peftkit.plan import plan
        from peftkit_cli.planned import show

        for job in jobs:
            with working() as tell:
                planned = plan(job.recipe, tell)
            show(planned, job.run)
        return 0
    agree([job.run for job in jobs] if resume else [], trust)
    if together or len(jobs) > 1:
        return run_together(jobs, resume)
    run_recipe(jobs[0].recipe, jobs[0].run, resume)
    typer.echo(f"The run is in {jobs[0].run}. Score it with `peft eval {jobs[0].run}`.")
    return 0


def run_recipe(recipe: Recipe, run: Path, resume: bool = False) -> None:
    """Train `recipe` into `run` under the display that suits standard output, and leave the terminal tidy."""
    from peftkit.errors import OutputLost
    from peftkit.training import train as train_recipe
    from peftkit_cli.display import observer

    display = observer()
    try:
        train_recipe(recipe, run, resume=resume, observer=display)
    finally:
        with suppress(OutputLost):
            display.close()
