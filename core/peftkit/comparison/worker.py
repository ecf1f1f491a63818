"""`python -m peftkit.comparison.worker RECIPE RUN [--base]`: one run of a comparison, in a process of its own.

It trains, or continues, and evaluates. A process for each run keeps their peak memory apart, and the model of one from
the random state of another. Exit codes are those of `peft`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peftkit.errors import PeftkitError
from peftkit.evaluation import evaluate
from peftkit.recipe import load
from peftkit.training import train


def main(recipe_file: str, run_folder: str, base: bool) -> int:
    """Train and evaluate the recipe into the run folder; with `base` evaluate its untrained model there."""
    recipe, run = load(recipe_file), Path(run_folder)
    if base:
        evaluate(recipe.model_copy(update={"output": str(run)}))
        return 0
    train(recipe, run, resume=(run / "recipe.yaml").is_file())
    evaluate(run, split=recipe.eval.split, limit=recipe.eval.limit)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2], "--base" in sys.argv[3:]))
    except PeftkitError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
