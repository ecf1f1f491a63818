"""The `peft` command: its sub-commands, and how a fault of any kind ends: a paragraph on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from peftkit import __version__
from peftkit.errors import PeftkitError
from peftkit_cli import eval, export, generate, list, merge, new, score, train, validate

UsageFault: type[Exception] = typer.BadParameter.__mro__[2]  # pyright: ignore[reportAssignmentType]
"""typer's class of every misuse of the command line: it is public only through its children."""

app = typer.Typer(
    name="peft",
    help="Fine-tune language models with few trainable parameters: a YAML recipe in, a run folder out.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("train", short_help="Train a recipe into a run folder.")(train.train)
app.command("eval", short_help="Score a run, or a recipe's untrained model.")(eval.evaluate)
app.command("generate", short_help="Answer a prompt with a run.")(generate.generate)
app.command("merge", short_help="Write a run's adapter into its model's weights.")(merge.merge)
app.command("export", short_help="Write a run for another program.")(export.export)
app.command("validate", short_help="Say what a recipe would do; loads no weights.")(validate.validate)
app.command("new", short_help="Write a commented recipe.")(new.new)
app.command("list", short_help="List methods, recipes, datasets, models and more.")(list.list_entries)
app.command("score", short_help="Score a file of predictions; needs no model.")(score.score)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"peft {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    command = typer.main.get_command(app)
    return guarded(lambda: command.main(args=arguments, prog_name="peft", standalone_mode=False))


def guarded(action: Callable[[], object]) -> int:
    """Do `action` and return the exit code.

    0 done · 1 a fault of this program · 2 a fault in what was given · 130 and 143 interrupted by SIGINT and SIGTERM.
    """
    tell_warnings()
    try:
        code = action()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PeftkitError as error:
        return complain(str(error), error.exit_code)
    except UsageFault as error:
        return complain(usage(error), getattr(error, "exit_code", 2))
    except (KeyboardInterrupt, typer.Abort):
        return complain("interrupted.", 130)
    except BrokenPipeError:
        # What reads our output has gone; Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return explain_fault(error)


def tell_warnings() -> None:
    """Print what the core logs as a warning, on whatever stderr is at that moment."""
    import logging

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(f"peft: note: {record.getMessage()}", file=sys.stderr)

    logger = logging.getLogger("peftkit")
    logger.handlers[:] = [Notice(logging.WARNING)]
    logger.propagate = False


def complain(message: str, code: int) -> int:
    """Print `message` on stderr as it is, and return `code`."""
    print(f"peft: {message}", file=sys.stderr)
    return code


def usage(error: Exception) -> str:
    """Say what was wrong with the arguments, and where the right ones are written."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)  # pyright: ignore
    context = getattr(error, "ctx", None)
    stop = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{stop} See '{context.command_path if context else 'peft'} --help'."


def explain_fault(error: Exception) -> int:
    """Tell of an exception that nobody expected: memory that ran out, or a bug, whose traceback goes to a file."""
    import tempfile
    import traceback

    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return complain(
            f"the memory ran out ({str(error).splitlines()[0] if str(error) else 'no more is known'}). Lower "
            "train.batch_tokens or train.max_length, raise train.accumulation to keep the batch, or set "
            "train.gradient_checkpointing=true.",
            2,
        )
    lines = traceback.format_exception(error)
    with tempfile.NamedTemporaryFile("w", prefix="peft-", suffix=".log", delete=False, encoding="utf-8") as report:
        report.write(f"peft {__version__}, Python {sys.version.split()[0]}\n$ {' '.join(sys.argv)}\n\n{''.join(lines)}")
    summary = lines[-1].strip().splitlines()[0]
    return complain(
        f"this is a bug, not your fault: {summary} Please report it to the project's issue tracker, "
        f"with the file {report.name}, which holds the command and the traceback.",
        1,
    )


if __name__ == "__main__":
    sys.exit(main())
