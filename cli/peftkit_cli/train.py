"""`peft train`: run a recipe, watch it, and leave a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli.arguments import OverrideArgument, RecipeArgument, run_folder

if TYPE_CHECKING:
    from peftkit.recipe import Recipe


def train(
    recipe: RecipeArgument,
    overrides: OverrideArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The run folder; by default runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and stop.")] = False,
) -> None:
    """Train a recipe and write a run folder: the adapter, the log, the summary and checkpoints."""
    from peftkit.recipe import load

    loaded = load(recipe, overrides or ())
    run = run_folder(recipe, loaded, output)
    if dry_run:
        from peftkit.plan import plan
        from peftkit_cli.planned import show

        show(plan(loaded), run)
        return
    run_recipe(loaded, run, resume)
    typer.echo(f"The run is in {run}. Score it with `peft eval {run}`.")


def run_recipe(recipe: Recipe, run: Path, resume: bool = False) -> None:
    """Train `recipe` into `run` under the display that suits standard output, and leave the terminal tidy."""
    from peftkit.training import train as train_recipe
    from peftkit_cli.display import observer

    display = observer()
    try:
        train_recipe(recipe, run, resume=resume, observer=display)
    finally:
        display.close()
