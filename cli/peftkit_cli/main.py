"""The `peft` command: what it answers at once, and how a fault of any kind ends: a paragraph and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from peftkit import __version__
from peftkit.errors import OutputLost, PeftkitError
from peftkit.visible import visible
from peftkit_cli import streams

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
    "import": "Make a run of another library's adapter.",
    "quantize": "Pack a model's weights into a folder.",
    "validate": "Say what a recipe would do; loads no weights.",
    "estimate": "Predict the memory of a run; loads no weights.",
    "profile": "Watch training steps: time and memory by module.",
    "data": "Show examples as the model sees them.",
    "modules": "Show a model's modules; loads no weights.",
    "check": "Hold a method of your own to what all promise.",
    "doctor": "Show versions, device, kernels and missing packages.",
    "convert-config": "Make a recipe of another tool's configuration.",
    "suggest": "Suggest a recipe that fits into memory.",
    "new": "Write a commented recipe.",
    "list": "List methods, recipes, datasets, models and more.",
    "score": "Score a file of predictions; needs no model.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if arguments is None:
        streams.prepare()
    given = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: answer(given))


def answer(arguments: Sequence[str]) -> object:
    """Answer at once what needs no parser, and run the command that `arguments` name otherwise."""
    streams.check(arguments)
    if arguments in ([], ["--help"], ["-h"]):
        return print(overview())
    if arguments == ["--version"]:
        return print(f"peft {__version__}")
    return run(arguments)


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

    0 done · 1 a fault of this program · 2 a fault in what was given, or an output that takes no more · 129, 130 and 143
    interrupted by SIGHUP, SIGINT and SIGTERM · 141 nobody reads the output any more.
    """
    code = attempted(action)
    try:
        lost = streams.flush()
    except OutputLost as error:
        lost = complain(str(error), error.exit_code)
    return code or lost


def attempted(action: Callable[[], object]) -> int:
    """Do `action`, tell of what it raised, and return the exit code."""
    try:
        code = action()
        return code if isinstance(code, int) else 0
    except PeftkitError as error:
        return complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return complain("interrupted.", 130)
    except Exception as error:
        return explain_fault(error)


def complain(message: str, code: int) -> int:
    """Print `message`, if there is one, on stderr, what is not printable as escapes, and return `code`."""
    if message:
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
    facts = f"peft {__version__}, Python {sys.version.split()[0]}\n$ {' '.join(sys.argv)}\n\n{''.join(lines)}"
    summary = f"this is a bug, not your fault: {lines[-1].strip().partition(chr(10))[0]} Please report it to the"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="peft-", suffix=".log", delete=False, encoding="utf-8") as report:
            report.write(visible(facts))
    except OSError as refused:
        return complain(
            f"{summary} project's issue tracker with this, for which there is no place ({refused.strerror}):\n{facts}",
            1,
        )
    return complain(
        f"{summary} project's issue tracker, with the file {report.name}, which holds the command and the traceback.", 1
    )


if __name__ == "__main__":
    sys.exit(main())
