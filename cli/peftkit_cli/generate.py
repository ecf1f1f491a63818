"""`peft generate`: answer a prompt with a run's adapted model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from peftkit.visible import visible
from peftkit_cli import streams
from peftkit_cli.arguments import RunArgument, TrustOption, agree


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from standard input.")],
    base: Annotated[bool, typer.Option("--base", help="Answer without the adapter.")] = False,
    trust: TrustOption = False,
) -> None:
    """Continue a prompt under the run's own template; a terminal sees control characters as escapes."""
    if prompt == "-":
        with streams.reading():
            prompt = sys.stdin.read()
    from peftkit.evaluation import answer

    agree([run], trust)

    said = answer(run, prompt, base=base)
    typer.echo(visible(said) if sys.stdout.isatty() else said)
