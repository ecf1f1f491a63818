"""`peft convert-config`: a configuration of another tool as a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftkit.visible import visible


def convert_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML or JSON file, or one with a command line.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The recipe to write; must not be there yet.")
    ] = None,
) -> None:
    """Write a recipe for a configuration of LLaMA-Factory, Axolotl, TRL or Hugging Face peft.

    Keys without counterpart are named on standard error.
    """
    from peftkit import files
    from peftkit.conversion import convert
    from peftkit.errors import PeftkitError

    if output is not None and output.exists():
        raise PeftkitError(f"{output} is there already and is left as it is: name another file with --output.")
    converted = convert(file)
    for line in converted.told:
        print(f"peft: note: {visible(line)}", file=sys.stderr)
    if output is None:
        print(converted.text, end="")
    else:
        files.write_text(output, converted.text)
        print(f"written: {visible(str(output))}. Check it with `peft validate {visible(str(output))}`.")
