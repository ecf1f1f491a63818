"""`peft quantize`: pack a model's weights into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftkit_cli.arguments import OutputFolder
from peftkit_cli.report import show_report


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a Hugging Face id, or a bundled one.")],
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="How weights are stored, such as nf4 or int8.")
    ],
    output: OutputFolder,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the format, or formats of roles: head=int8."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data for formats that are calibrated, such as bundled/e2e.")
    ] = None,
    data_path: Annotated[Path | None, typer.Option(metavar="PATH", help="Where these data are.")] = None,
) -> None:
    """Pack a model's weights and write a folder that recipes name as their model (`peft list quantization`)."""
    from peftkit.export.packed import quantize as quantize_model

    show_report(quantize_model(model, form, output, options or [], data=data, data_path=data_path), output)
