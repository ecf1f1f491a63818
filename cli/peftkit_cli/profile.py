"""`peft profile`: say where the time and the memory of a training step go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli import figures
from peftkit_cli.arguments import OverrideArgument, RecipeArgument
from peftkit_cli.terminal import print_json, say, table

if TYPE_CHECKING:
    from peftkit.profiling import Profile
    from peftkit.profiling.measure import Row

LARGEST = 5


def profile(
    recipe: RecipeArgument,
    overrides: OverrideArgument = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Optimizer steps to measure.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The folder; by default profiles/RECIPE."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; times in seconds, sizes in bytes.")] = False,
) -> None:
    """Run a few training steps and say where time and memory go, by module; the run folder is left alone."""
    from peftkit.recipe import load

    loaded = load(recipe, overrides or ())
    from peftkit import profiling

    folder = output or Path("profiles") / Path(recipe).stem
    profiling.check(folder)
    measured = profiling.profile(loaded, steps)
    profiling.write(measured, folder)
    if as_json:
        print_json(measured.as_dict())
        return
    show(measured)
    say(f"\nThe figures and the Chrome trace are in {folder}: profile.json, trace.json.")


def show(profile: Profile) -> None:
    """Print the largest owners of saved memory and of time, and the phases of a step."""
    from peftkit.profiling.measure import by_saved, by_time

    kinds, batch = profile.kinds(), profile.batch
    title = (
        f"Saved for the backward pass: {figures.size(profile.saved)}, of a micro-batch of {batch['rows']} rows, "
        f"{batch['tokens']:,} tokens ({batch['computed_tokens']:,} computed)"
    )
    heads = ("saved", "share", "modules", "owner, over all layers", "place")
    cells = [
        (figures.size(row.saved), _share(row.saved, profile.saved), row.modules, row.label, _first(row.name))
        for row in by_saved(kinds)[:LARGEST]
    ]
    table(heads, cells, title)
    say("")
    single = by_saved(profile.paths)[:LARGEST]
    table(
        ("saved", "share", "owner, by path", "what"),
        [(figures.size(row.saved), _share(row.saved, profile.saved), row.name, row.label) for row in single],
    )
    phases = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in profile.phases.items())
    step = f"{profile.step_s * 1e3:.1f} ms, the median of {profile.steps}"
    say(f"\nA step took {step}. Watched, by phase, in ms: {phases}\n")
    show_times(by_time(kinds)[: 2 * LARGEST], sum(row.own for row in kinds))


def show_times(rows: Sequence[Row], whole: float) -> None:
    """Print what takes most time of its own."""
    heads = ("own ms", "share", "forward", "backward", "with inner", "modules", "owner, over all layers", "place")
    cells = []
    for row in rows:
        times = (f"{seconds * 1e3:.2f}" for seconds in (row.forward, row.backward, row.total))
        cells.append((f"{row.own * 1e3:.2f}", _share(row.own, whole), *times, row.modules, row.label, _first(row.name)))
    table(heads, cells)


def _first(places: str) -> str:
    """Shorten a list of places to the first of them and how many there are more."""
    first, *others = places.split(", ")
    return f"{first} and {len(others)} more" if others else first


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
