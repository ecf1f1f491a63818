"""`peft export`: write a run in a form that another program opens."""

from __future__ import annotations

from typing import Annotated

import typer

from peftkit_cli.arguments import BaseArgument, OutputFolder, RunArgument, TrustOption, agree, opened_alone
from peftkit_cli.report import show_report


def export(
    run: RunArgument,
    output: OutputFolder,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="The form to write (`peft list formats`).")],
    overrides: BaseArgument = None,
    trust: TrustOption = False,
) -> None:
    """Write a run as an adapter or a model that another program opens."""
    from peftkit.export import export as export_run

    run = opened_alone(run, overrides)
    agree([run], trust)

    show_report(export_run(run, output, form), output)
