"""`peft profile`: watch a few training steps and say where their time and memory go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli import figures
from peftkit_cli.arguments import OverrideArgument, RecipeArgument
from peftkit_cli.terminal import print_json, say, table

if TYPE_CHECKING:
    from peftkit.profiling import Profile

SHOWN = 12


def profile(
    recipe: RecipeArgument,
    overrides: OverrideArgument = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Steps whose time is averaged.")] = 3,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.", show_default="profile")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every module.")] = False,
) -> None:
    """Watch training steps of a recipe: time by module, memory kept for the backward pass by owner."""
    from peftkit.profiling import profile as measure
    from peftkit.recipe import load

    found = measure(load(recipe, overrides or ()), steps)
    paths = found.write(output or Path("profile"))
    if as_json:
        print_json(found.as_dict())
    else:
        show(found)
        say(f"\n{', '.join(str(path) for path in paths)} show all of it; chrome://tracing and Perfetto open the trace.")


def show(found: Profile) -> None:
    """Print the modules that take longest and the owners of most saved memory."""
    rows = [
        (line.place, line.kind, str(line.calls), *(f"{1e3 * t:.1f}" for t in (line.own, line.forward, line.backward)))
        for line in found.lines[:SHOWN]
    ]
    table(("module", "class", "calls", "own ms", "forward ms", "backward ms"), rows)
    say(f"\na step takes {1e3 * found.seconds:.0f} ms (mean of {found.steps})\n")
    owners = [(place, figures.size(size), f"{size / max(1, found.saved):.0%}") for place, size in found.owners[:5]]
    table(("owner of saved memory", "bytes", "share"), owners)
    say(f"\n{figures.size(found.saved)} are saved for the backward pass of a step")
