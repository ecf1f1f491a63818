"""Stanford's PTBTokenizer itself, as the captioning tools start it: `peftkit[meteor]` installs it with its Java."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from peftkit.metrics import UnavailableError
from peftkit.metrics.java import LOCALE, runtime

NAME = "stanford-corenlp-3.4.1"
# The serial collector keeps a short-lived program to one core.
OPTIONS = ("-XX:+UseSerialGC",)
PROGRAM = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
WAIT_S = 900.0
"""Seconds for a file of texts; a core reads 50,000 lines in ten."""


def archive() -> Path | None:
    """Return where the program is, or None where it is not installed."""
    package = importlib.util.find_spec("pycocoevalcap")
    folders = package.submodule_search_locations if package else None
    found = next((Path(folder) / "tokenizer" / f"{NAME}.jar" for folder in folders or ()), None)
    return found if found is not None and found.is_file() else None


def tokenize(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the program's tokens of each line, punctuation among them.

    Raises UnavailableError where it is not installed, fails, or gives another number of lines.
    """
    return _tokenize(tuple(lines))


# Each metric of a set asks for the same two files.
@lru_cache(maxsize=8)
def _tokenize(lines: tuple[str, ...]) -> list[tuple[str, ...]]:
    java, jar = runtime(), archive()
    if java is None or jar is None:
        raise UnavailableError("the official tokenizer is not installed: install peftkit[meteor]")
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        texts.write_bytes("\n".join(lines).encode("utf-8", "replace"))
        command = [java, *LOCALE, *OPTIONS, "-cp", str(jar), *PROGRAM, str(texts)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=WAIT_S, check=True)
        except OSError as error:
            raise UnavailableError(f"{java} does not start ({error.strerror})") from None
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"the official tokenizer gave no answer in {WAIT_S:g} seconds") from None
        except subprocess.CalledProcessError as error:
            told = error.stderr.decode("utf-8", "replace").strip().split("\n")
            raise UnavailableError(f"the official tokenizer ended, exit code {error.returncode}: {told[-1]}") from None
    answers = done.stdout.decode("utf-8", "replace").split("\n")
    # Empty lines at the end are not always answered.
    answers += [""] * (len(lines) - len(answers))
    if any(answers[len(lines) :]):
        raise UnavailableError(
            f"the official tokenizer gave {len(answers):,} lines for {len(lines):,} texts, so its lines are out of step"
        )
    return [tuple(word for word in answer.rstrip().split(" ") if word) for answer in answers[: len(lines)]]
