"""The parser of the command line: each sub-command under its name, and misuse told as every other mistake is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from peftkit.errors import PeftkitError
from peftkit_cli import (
    check,
    combine,
    compare,
    convert_config,
    data,
    doctor,
    estimate,
    eval,
    export,
    generate,
    import_folder,
    list,
    merge,
    modules,
    new,
    profile,
    quantize,
    run_report,
    score,
    suggest,
    train,
    validate,
)
from peftkit_cli.main import COMMANDS, SUMMARY
from peftkit_cli.terminal import tell_warnings

UsageFault: type[Exception] = typer.BadParameter.__mro__[2]  # pyright: ignore[reportAssignmentType]
"""typer's class of every misuse of the command line: it is public only through its children."""
FUNCTIONS: dict[str, Callable[..., object] | typer.Typer] = {
    "train": train.train,
    "compare": compare.compare,
    "eval": eval.evaluate,
    "report": run_report.report,
    "generate": generate.generate,
    "merge": merge.merge,
    "export": export.export,
    "combine": combine.combine,
    "import": import_folder.import_folder,
    "quantize": quantize.quantize,
    "validate": validate.validate,
    "estimate": estimate.estimate,
    "profile": profile.profile,
    "data": data.app,
    "modules": modules.modules,
    "check": check.app,
    "doctor": doctor.doctor,
    "convert-config": convert_config.convert_config,
    "suggest": suggest.suggest,
    "new": new.new,
    "list": list.list_entries,
    "score": score.score,
}

app = typer.Typer(
    name="peft",
    help=SUMMARY,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for name, summary in COMMANDS.items():
    entry = FUNCTIONS[name]
    if isinstance(entry, typer.Typer):
        app.add_typer(entry, name=name, short_help=summary)
    else:
        app.command(name, short_help=summary)(entry)


def run(arguments: Sequence[str]) -> object:
    """Run the command that `arguments` name; returns its exit code where it has one.

    Raises PeftkitError for arguments that are not understood.
    """
    tell_warnings()
    try:
        return typer.main.get_command(app).main(args=arguments, prog_name="peft", standalone_mode=False)
    except UsageFault as error:
        raise PeftkitError(usage(error)) from None
    except typer.Abort:
        raise KeyboardInterrupt from None


def usage(error: Exception) -> str:
    """Say what was wrong with the arguments, and where the right ones are written."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)  # pyright: ignore
    stop = "" if message.endswith((".", "?", "!")) else "."
    context = getattr(error, "ctx", None)
    return f"{message}{stop} See '{context.command_path if context else 'peft'} --help'."
