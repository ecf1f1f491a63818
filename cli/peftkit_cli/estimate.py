"""`peft estimate`: say how much memory a recipe's run will take, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli import figures
from peftkit_cli.arguments import OverrideArgument, RecipeArgument
from peftkit_cli.planned import memory_plan
from peftkit_cli.terminal import print_json, say, table, working

if TYPE_CHECKING:
    from peftkit.estimation.estimate import Estimate


def estimate(
    recipe: RecipeArgument,
    overrides: OverrideArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every size in bytes.")] = False,
) -> None:
    """Predict the memory of a recipe's run, part by part and at its peak; no weights are loaded."""
    from peftkit.recipe import load

    loaded = load(recipe, overrides or ())
    from peftkit.plan import plan

    with working() as tell:
        planned = plan(loaded, tell)
    if as_json:
        print_json(planned.memory.as_dict())
    else:
        show(planned.memory)


def show(memory: Estimate) -> None:
    """Print an estimate as a table of its parts and a line about the peak."""
    from peftkit.estimation.estimate import MOMENTS

    rows = [(name, *map(figures.known_size, sizes)) for name, sizes in memory.told().items()]
    table(("part", "largest", "at the peak"), rows)
    least = "" if memory.unknown is None else "at least "
    peak = f"{least}{figures.size(memory.peak)} {MOMENTS[memory.moment]}"
    say(f"\npeak          {peak} ({memory.device}, {memory.precision})")
    say(f"micro-batch   {memory.rows} rows of {memory.tokens} tokens, the largest of an epoch")
    if memory.unknown is not None:
        say(f"unknown       {memory.unknown}")
    if memory.memory_plan is not None:
        say(f"train.memory  {memory_plan(memory)}")
