"""`peft eval`: generate for a split and score what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit.errors import PeftkitError
from peftkit_cli.arguments import OverrideArgument, TrustOption, agree, opened, run_or_none
from peftkit_cli.terminal import print_json, print_scores, progress, table

if TYPE_CHECKING:
    from peftkit.recipe import Recipe


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="RUN|RECIPE", help="A run folder, or a recipe: then its untrained model is scored.")
    ],
    overrides: OverrideArgument = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; by default the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score only so many examples.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Score the model of a run without its adapter.")] = False,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="lm-eval:NAME,...|long-context:LENGTH,...",
            help="Run these tasks of lm-eval instead (arc_easy, glue, mmlu, ...), or look at texts of these lengths.",
        ),
    ] = None,
    suite_path: Annotated[
        Path | None,
        typer.Option(
            "--suite-path", metavar="PATH", help="A folder with lm-eval task files, or a long text, of your own."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: TrustOption = False,
) -> None:
    """Generate for every input of a split, and print the scores of the task's metrics; or run a suite."""
    if suite_path and not suite:
        raise PeftkitError(f"--suite-path is {suite_path} without --suite, which names the tasks in it to run.")
    if suite and split:
        raise PeftkitError(f"--split is '{split}', and a task of a suite has its own split: leave it out.")
    from peftkit.recipe import load

    run = run_or_none(target)
    if run:
        run, overrides = opened(run, overrides)
    agree([run] if run else [], trust)
    subject, asked = (run, overrides or ()) if run else (load(target, overrides or ()), ())
    if suite:
        show_suite(subject, suite, suite_path, asked, limit=limit, base=base, as_json=as_json)
        return
    from peftkit.evaluation import evaluate as evaluate_target

    with progress("answering") as on_progress:
        report = evaluate_target(subject, asked, split=split, limit=limit, base=base, on_progress=on_progress)
    if as_json:
        print_json(report)
    else:
        title = f"{report['dataset']}, {report['split']} split, {report['examples']:,} inputs"
        print_scores(report["scores"], report["unavailable"], title)


def show_suite(
    subject: Path | Recipe,
    suite: str,
    folder: Path | None,
    overrides: Sequence[str],
    *,
    limit: int | None,
    base: bool,
    as_json: bool,
) -> None:
    """Run the tasks of a suite, and print their scores."""
    from peftkit import suites

    report = suites.evaluate(subject, suite, overrides, folder=folder, limit=limit, base=base)
    if as_json:
        print_json(report)
        return
    shown = "without its adapter" if report["adapter"] is None else "adapted"
    heads = ("task", "metric", "score", "standard error", "shots", "inputs")
    table(heads, suites.rows(report["scores"]), f"{report['suite']}, {report['model']} {shown}")
