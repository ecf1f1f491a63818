"""`peft check method`: a method of your own, held to what every method promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from peftkit.errors import PeftkitError
from peftkit_cli.terminal import say, table, working

if TYPE_CHECKING:
    from peftkit.inspection import Finding

app = typer.Typer(help="Hold a plugin to what its kind promises.", no_args_is_help=False, rich_markup_mode=None)
WORDS = {True: "yes", False: "NO", None: "–"}


@app.callback(invoke_without_command=True)
def check(context: typer.Context) -> None:
    """Hold a plugin to what its kind promises."""
    if context.invoked_subcommand is None:
        raise PeftkitError("found `check` without what to check; allowed: method, as in `peft check method FILE`.")


@app.command("method", short_help="Hold the methods of a Python file to what every method promises.")
def method(
    file: Annotated[
        str, typer.Argument(metavar="FILE|NAME", help="A Python file that registers methods, or a method's name.")
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the method, such as rank=4.")
    ] = None,
) -> None:
    """Attach, train, save, load, merge and pack each method on tiny models; ends with 1 where a promise is broken."""
    from peftkit.inspection import check_method, own_methods

    broken = 0
    for chosen in own_methods(file, dict(map(_option, options or ()))):
        with working():
            found = list(check_method(chosen))
        show(chosen.name, found)
        broken += sum(finding.kept is False for finding in found)
    if broken:
        say(f"\n{broken} broken")
        raise typer.Exit(1)


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        if equals:
            return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise PeftkitError(f"found '{text}'; allowed: KEY=VALUE with a YAML value, such as rank=4.")


def show(name: str, findings: list[Finding]) -> None:
    """Print what was found of one method."""
    rows = [(each.promise, each.architecture, WORDS[each.kept], each.told) for each in findings]
    table(("promise", "model", "kept", "what was seen"), rows, name)
