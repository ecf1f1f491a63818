"""What the sub-commands take in common: RECIPE, KEY=VALUE, RUN and --output."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peftkit.recipe import Recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one (`peft list recipes`).")
]
OverrideArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set, as train.max_steps=200 or rank=16."),
]
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run folder, as `peft train` wrote it, or another library's adapter: its folder or id."
    ),
]
BaseArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Of another library's adapter, its base: model=NAME."),
]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the Python code that the run's model brings; this is remembered."),
]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")]


def run_folder(recipe: str, loaded: Recipe, output: Path | None = None) -> Path:
    """Return where a run of `recipe` goes: `output`, else what the recipe says, else runs/ and the recipe's name."""
    return output or Path(loaded.output or f"runs/{Path(recipe).stem}")


def run_or_none(target: str) -> Path | None:
    """Return the run, or the adapter of another library or on the hub, that is named; None where it is a recipe.

    Raises PeftkitError for what is none of them.
    """
    if Path(target).is_dir():
        return Path(target)
    from peftkit.errors import PeftkitError
    from peftkit.recipe.catalogue import find

    try:
        find(target)
    except PeftkitError as error:
        from peftkit.interchange import published_instead

        return published_instead(target, error)
    return None


def opened(folder: Path, overrides: Iterable[str] | None = None) -> tuple[Path, list[str]]:
    """Return the run of a folder, made where it holds another library's adapter, and what is left of `overrides`."""
    from peftkit.interchange import as_run

    return as_run(folder, list(overrides or ()))


def opened_alone(folder: Path, overrides: Iterable[str] | None = None) -> Path:
    """Return the run of a folder, of which nothing else is asked; PeftkitError for other keys than those of a base."""
    from peftkit.errors import PeftkitError

    run, left = opened(folder, overrides)
    if left:
        raise PeftkitError(f"override '{left[0][:80]}': of a run as it is nothing is set; allowed: leave it out.")
    return run


def agree(runs: Iterable[Path], given: bool) -> None:
    """Agree to the code of the models of runs where that is `given`."""
    if given:
        from peftkit.assembly import agree as agree_to

        for run in runs:
            agree_to(run)
