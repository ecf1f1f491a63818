"""The command line's surface is frozen: a command or option that comes, goes or changes its name is seen here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from peftkit_cli.commands import app
from peftkit_cli.main import COMMANDS

SURFACE = {
    "train": [
        "--dry-run",
        "--output",
        "--resume",
        "--together",
        "-o",
        "[KEY=VALUE]...",
        "RECIPE",
        "--trust-remote-code",
    ],
    "compare": ["--budget", "--methods", "--output", "--seeds", "-o", "[KEY=VALUE]...", "RECIPE"],
    "eval": [
        "--base",
        "--json",
        "--limit",
        "--split",
        "--suite",
        "--suite-path",
        "RUN|RECIPE",
        "[KEY=VALUE]...",
        "--trust-remote-code",
    ],
    "report": ["--output", "--paper", "-o", "RUN..."],
    "generate": ["--base", "--key", "--system", "PROMPT", "RUN", "[KEY=VALUE]...", "--trust-remote-code"],
    "merge": [
        "--bound",
        "--into",
        "--keep-zeros",
        "--output",
        "--requantize",
        "-o",
        "RUN",
        "[KEY=VALUE]...",
        "--trust-remote-code",
    ],
    "export": ["--format", "--output", "-o", "RUN", "[KEY=VALUE]...", "--trust-remote-code"],
    "combine": ["--how", "--json", "--output", "--rank", "--weights", "-o", "RUN...", "--trust-remote-code"],
    "import": ["--json", "--output", "-o", "FOLDER", "[KEY=VALUE]..."],
    "quantize": ["--data", "--data-path", "--format", "--output", "-o", "MODEL", "[KEY=VALUE]..."],
    "validate": ["[KEY=VALUE]...", "RECIPE"],
    "estimate": ["--json", "[KEY=VALUE]...", "RECIPE"],
    "profile": ["--json", "--output", "--steps", "-o", "[KEY=VALUE]...", "RECIPE"],
    "data show": ["--rows", "--split", "[KEY=VALUE]...", "RECIPE"],
    "modules": ["--targets", "MODEL|RECIPE", "[KEY=VALUE]..."],
    "check method": ["FILE|NAME", "[KEY=VALUE]..."],
    "doctor": ["--json"],
    "convert-config": ["--output", "-o", "FILE"],
    "suggest": ["--data", "--memory", "--model"],
    "new": ["--dataset", "--method", "--model", "--output", "--path", "--rank", "-o"],
    "list": ["KIND"],
    "score": ["--json", "--official", "--predictions", "--references", "TASK"],
}


def commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the commands of a group, and of the groups in it, each under all of its words."""
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        yield from commands(command, f"{above}{name} ") if inner else [(above + name, command)]


def surface() -> dict[str, list[str]]:
    """Collect the names of all commands, options and arguments from the parser itself."""
    found = {}
    for name, command in commands(typer.main.get_command(app)):
        names = []
        for parameter in command.params:
            given = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]
            names += [option for option in given if option not in ("--help", "-h")]
        found[name] = sorted(names)
    return found


def test_commands_and_options_are_the_frozen_ones():
    assert surface() == {name: sorted(names) for name, names in SURFACE.items()}
    assert list(COMMANDS) == list(dict.fromkeys(name.split()[0] for name in SURFACE))


@pytest.mark.parametrize("command", SURFACE)
def test_help_of_every_command_names_all_its_options(peft, command):
    done = peft(*command.split(), "--help")
    assert done.code == 0
    for option in SURFACE[command]:
        assert option.strip("[]").split("]")[0] in done.out
    assert "No help" not in done.out


def test_help_lists_every_command_and_is_the_answer_to_nothing(peft):
    done = peft("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.out
    assert peft().out == done.out


def test_version_is_printed(peft):
    from peftkit import __version__

    assert peft("--version").out == f"peft {__version__}\n"
