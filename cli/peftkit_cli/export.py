"""`peft export`: write a run in a form that another program opens."""

from __future__ import annotations

from typing import Annotated

import typer

from peftkit_cli.arguments import OutputFolder, RunArgument, TrustOption, agree
from peftkit_cli.report import show_report


def export(
    run: RunArgument,
    output: OutputFolder,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="The form to write (`peft list formats`).")],
    trust: TrustOption = False,
) -> None:
    """Write a run as an adapter or a model that another program opens."""
    from peftkit.export import export as export_run

    agree([run], trust)

    show_report(export_run(run, output, form), output)
