"""`peft validate`: say what a recipe would do, without loading a weight."""

from __future__ import annotations

from peftkit_cli.arguments import OverrideArgument, RecipeArgument
from peftkit_cli.terminal import working


def validate(recipe: RecipeArgument, overrides: OverrideArgument = None) -> None:
    """Check a recipe and show what it would train, on what, and what it needs; no weights are loaded."""
    from peftkit_cli.planned import show
    from peftkit_cli.together import jobs_of

    jobs = jobs_of([recipe], overrides or (), None)
    from peftkit.plan import plan

    for job in jobs:
        with working() as tell:
            planned = plan(job.recipe, tell)
        show(planned, job.run)
