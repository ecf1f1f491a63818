"""`peft suggest`: a recipe for a model, data and memory, with the reason of each choice."""

from __future__ import annotations

from typing import Annotated

import typer

from peftkit_cli import figures
from peftkit_cli.terminal import working


def suggest(
    model: Annotated[str, typer.Option(help="A model folder, a Hugging Face id, or a bundled one.")],
    data: Annotated[str, typer.Option(help="The file or folder of your examples.")],
    memory: Annotated[str, typer.Option(metavar="SIZE", help="What the run may take, such as 8GB.")],
) -> None:
    """Print a recipe that fits into memory, with the reason of each choice; no weights are loaded."""
    from peftkit.suggestion import suggest as find

    with working():
        found = find(model, data, memory)
    expected = found.plan.memory
    least = "about" if expected.unknown is None else "at least"
    peak, where = figures.size(expected.peak), f"{expected.device}, {expected.precision}"
    print(f"# Expected memory: {least} {peak} of {memory} ({where}).")
    print("# The time is not estimated: `peft profile` measures it.")
    print(found.to_yaml(), end="")
