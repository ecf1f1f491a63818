"""`peft report`: set runs side by side, or beside a table of a paper, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftkit_cli.arguments import opened
from peftkit_cli.terminal import progress, say, table


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that peft compare wrote.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")] = Path(
        "runs/report"
    ),
    paper: Annotated[
        str | None, typer.Option(metavar="NAME", help="Beside what the position paper prints: table1, table2, figure1.")
    ] = None,
) -> None:
    """Write report.html and report.md: scores with intervals, significance, losses, examples and costs of runs."""
    from peftkit.report import report as write_report
    from peftkit.report.document import Table

    runs = [opened(run)[0] for run in runs]
    with progress("resampling") as on_progress:
        page = write_report(runs, output, paper=paper, on_progress=on_progress)
    first = next((block for block in page.blocks if isinstance(block, Table)), None)
    if first is not None:
        table(first.heads, first.rows, page.title)
    say(f"\nThe report is in {output}: report.html shows all of it.")
