"""`peft eval`: generate for a split and score what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftkit.errors import PeftkitError
from peftkit_cli.arguments import OverrideArgument
from peftkit_cli.terminal import print_json, print_scores, progress


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="RUN|RECIPE", help="A run folder, or a recipe: then its untrained model is scored.")
    ],
    overrides: OverrideArgument = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; by default the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only so many examples.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Score the model of a run without its adapter.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Generate for every input of a split, and print the scores of the task's metrics."""
    run = Path(target) if Path(target).is_dir() else None
    if run and overrides:
        raise PeftkitError(
            f"{overrides[0]}: a run is scored as its own recipe says, and key=value goes with a recipe only. "
            "--split and --limit choose another part of the run's data."
        )
    from peftkit.evaluation import evaluate as evaluate_target
    from peftkit.recipe import load

    subject = run or load(target, overrides or ())
    with progress("answering") as on_progress:
        report = evaluate_target(subject, split=split, limit=limit, base=base, on_progress=on_progress)
    if as_json:
        print_json(report)
    else:
        title = f"{report['dataset']}, {report['split']} split, {report['examples']:,} inputs"
        print_scores(report["scores"], report["unavailable"], title)
