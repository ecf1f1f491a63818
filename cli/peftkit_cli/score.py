"""`peft score`: score a file of predictions against a file of references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftkit.errors import PeftkitError
from peftkit_cli.terminal import print_json, print_scores


def score(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task that scores (`peft list datasets`).")],
    predictions: Annotated[Path, typer.Option(metavar="FILE", help="The predictions: a JSON list, or a line each.")],
    references: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The references: the task's official file, a JSON list of lists, or blocks of lines."
        ),
    ],
    official: Annotated[
        bool, typer.Option("--official", help="Take treebank tokens from the official program, of peftkit[meteor].")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score predictions of any system with the metrics of a task; no model is needed."""
    from peftkit.metrics.ptb import treebank_tokens
    from peftkit.tasks import TASKS

    with treebank_tokens(official=official) as source:
        scores = TASKS[task].score_files(predictions, references)
    if official and not source.used:
        raise PeftkitError(f"--official: no score of {task} counts treebank tokens; leave it out.")
    if as_json:
        told = {"treebank_tokens": source.name} if official else {}
        missing = {"unavailable": scores.unavailable} if scores.unavailable else {}
        print_json({**scores, **told, **missing})
    else:
        print_scores(scores, scores.unavailable, f"treebank tokens of {source.name}" if official else None)
