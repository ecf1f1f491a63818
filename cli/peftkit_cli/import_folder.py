"""`peft import`: make a run of an adapter that another library trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftkit_cli.arguments import OutputFolder
from peftkit_cli.report import show_report
from peftkit_cli.terminal import print_json


def import_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="An adapter of Hugging Face peft, AdapterHub or OpenDelta: its folder, or its id."
        ),
    ],
    output: OutputFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the run's recipe, as model=NAME or dataset=e2e."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run folder with the adapter in this project's form, once it is seen to fit its base model."""
    from peftkit.interchange import import_folder as import_adapter

    report = import_adapter(folder, output, overrides or ())
    if as_json:
        print_json(report)
    else:
        show_report({**report, "methods": ", ".join(report["methods"])}, output)
