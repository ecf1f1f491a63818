"""`peft score`: score a file of predictions against a file of references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score predictions of any system with the metrics of a task; no model is needed."""
    from peftkit.tasks import TASKS

    scores = TASKS[task].score_files(predictions, references)
    if as_json:
        print_json({**scores, "unavailable": scores.unavailable} if scores.unavailable else scores)
    else:
        print_scores(scores, scores.unavailable)
