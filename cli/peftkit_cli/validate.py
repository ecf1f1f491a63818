"""`peft validate`: say what a recipe would do, without loading a weight."""

from __future__ import annotations

from peftkit_cli.arguments import OverrideArgument, RecipeArgument, run_folder


def validate(recipe: RecipeArgument, overrides: OverrideArgument = None) -> None:
    """Check a recipe and show what it would train, on what, and what it needs; no weights are loaded."""
    from peftkit.plan import plan
    from peftkit.recipe import load
    from peftkit_cli.planned import show

    loaded = load(recipe, overrides or ())
    show(plan(loaded), run_folder(recipe, loaded))
