"""`peft generate`: answer a prompt with a run's adapted model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from peftkit.visible import visible
from peftkit_cli import streams
from peftkit_cli.arguments import RunArgument, TrustOption, agree, opened


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from standard input.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of generation to set, as generation.max_new_tokens=32."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system turn in front, where the chat template has one.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The key by which adapters are chosen, where the run has several sets."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Answer without the adapter.")] = False,
    trust: TrustOption = False,
) -> None:
    """Continue a prompt under the run's own template; a terminal sees control characters as escapes."""
    if prompt == "-":
        with streams.reading():
            prompt = sys.stdin.read()
    from peftkit.evaluation import answer

    run, overrides = opened(run, overrides)
    agree([run], trust)
    said = answer(run, prompt, overrides or (), system=system, key=key, base=base)
    typer.echo(visible(said) if sys.stdout.isatty() else said)
