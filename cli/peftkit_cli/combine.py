"""`peft combine`: make one adapter of several trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftkit.errors import PeftkitError
from peftkit_cli.arguments import OutputFolder, TrustOption, agree, opened
from peftkit_cli.report import show_report
from peftkit_cli.terminal import print_json


def combine(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or adapter folders, over one base model.")
    ],
    output: OutputFolder,
    how: Annotated[
        str,
        typer.Option(
            metavar="linear|average|concatenate|svd",
            help="Sum or average tensors of equal methods; or sum the changes of low-rank ones, exactly or cut to a "
            "rank.",
        ),
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,…", help="A number for each run, in order; by default all are 1.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="The rank that svd cuts to; by default the largest of the runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: TrustOption = False,
) -> None:
    """Combine the adapters of several runs into a folder that every command takes as a run."""
    from peftkit.export.combined import combine_runs

    runs = [opened(run)[0] for run in runs]
    agree(runs, trust)

    report = combine_runs(runs, output, how, None if weights is None else numbers(weights), rank)
    if as_json:
        print_json(report)
    else:
        show_report(report, output)


def numbers(text: str) -> list[float]:
    """Read numbers that commas part."""
    parts = text.split(",")
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise PeftkitError(
            f"--weights: found '{text}'; allowed: numbers with commas between, such as 0.5,0.5."
        ) from None
