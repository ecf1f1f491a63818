"""The `peft` command: what it answers at once, and how a fault of any kind ends: a paragraph and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from peftkit import __version__
from peftkit.errors import PeftkitError
from peftkit.visible import visible

SUMMARY = "Fine-tune language models with few trainable parameters: a YAML recipe in, a run folder out."
COMMANDS = {
    "train": "Train a recipe into a run folder.",
    "compare": "Train and score several methods side by side.",
    "eval": "Score a run, or a recipe's untrained model.",
    "report": "Set runs side by side on one page.",
    "generate": "Answer a prompt with a run.",
    "merge": "Write a run's adapter into its model's weights.",
    "export": "Write a run for another program.",
    "combine": "Make one adapter of several.",
    "quantize": "Pack a model's weights into a folder.",
    "validate": "Say what a recipe would do; loads no weights.",
    "estimate": "Predict the memory of a run; loads no weights.",
    "profile": "Watch training steps: time and memory by module.",
    "new": "Write a commented recipe.",
    "list": "List methods, recipes, datasets, models and more.",
    "score": "Score a file of predictions; needs no model.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in ([], ["--help"], ["-h"]):
        return guarded(lambda: print(overview()))
    if given == ["--version"]:
        return guarded(lambda: print(f"peft {__version__}"))
    return guarded(lambda: run(given))


def overview() -> str:
    """Write the help of the whole command, without the parser, which takes longer to load than Python itself."""
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items())
    return (
        f"Usage: peft COMMAND [ARGUMENTS]...\n\n{SUMMARY}\n\nCommands:\n{commands}\n\n"
        "Options:\n  --version   Print the version and leave.\n  -h, --help  Show this message, or that of a command."
    )


def run(arguments: Sequence[str]) -> object:
    """Load the parser and run the command that `arguments` name."""
    from peftkit_cli.commands import run as run_command

    return run_command(arguments)


def guarded(action: Callable[[], object]) -> int:
    """Do `action` and return the exit code.

    0 done · 1 a fault of this program · 2 a fault in what was given · 130 and 143 interrupted by SIGINT and SIGTERM.
    """
    try:
        code = action()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PeftkitError as error:
        return complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return complain("interrupted.", 130)
    except BrokenPipeError:
        # What reads our output has gone; Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return explain_fault(error)


def complain(message: str, code: int) -> int:
    """Print `message` on stderr, what is not printable as escapes, and return `code`."""
    print(f"peft: {visible(message)}", file=sys.stderr)
    return code


def explain_fault(error: Exception) -> int:
    """Tell of an exception that nobody expected: what the system refused, or a bug, whose traceback goes to a file."""
    import tempfile
    import traceback

    from peftkit_cli import system

    answer = system.told(error)
    if answer is not None:
        return complain(answer, 2)
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    with tempfile.NamedTemporaryFile("w", prefix="peft-", suffix=".log", delete=False, encoding="utf-8") as report:
        report.write(f"peft {__version__}, Python {sys.version.split()[0]}\n$ {' '.join(sys.argv)}\n\n{''.join(lines)}")
    summary = lines[-1].strip().partition("\n")[0]
    return complain(
        f"this is a bug, not your fault: {summary} Please report it to the project's issue tracker, "
        f"with the file {report.name}, which holds the command and the traceback.",
        1,
    )


if __name__ == "__main__":
    sys.exit(main())
