"""The one error a person can mend: what was found, where, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeftkitError(Exception):
    """A fault in what was given, told in one paragraph; the command line prints it and exits with `exit_code`."""

    exit_code = 2


class OutputLost(PeftkitError):  # noqa: N818
    """An output that takes nothing more: 141, as SIGPIPE ends a process, where its reader has gone, else 2."""

    def __init__(self, name: str, error: OSError):
        gone = isinstance(error, BrokenPipeError)
        # Who left is told nothing, as every program does it.
        super().__init__("" if gone else f"{name} cannot be written: {error.strerror or error}.")
        self.reason = "its output is not read any more" if gone else str(self).rstrip(".")
        self.exit_code = 141 if gone else 2


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice spelt most like `name`, of several the one with its very letters; None when none is close."""
    word = str(name)

    def likeness(choice: str) -> tuple[float, bool]:
        return difflib.SequenceMatcher(None, choice, word).ratio(), sorted(choice) == sorted(word)

    matches = difflib.get_close_matches(word, [str(choice) for choice in choices], n=5, cutoff=0.5)
    return max(matches, key=likeness, default=None)


def hint(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the choice spelt most like `name`, or nothing."""
    guess = nearest(name, choices)
    return f" Did you mean '{guess}'?" if guess else ""


def unknown(kind: str, name: str, choices: Iterable[str]) -> str:
    """Say that `name` is not a known `kind`, with the nearest valid spelling and all that is allowed."""
    allowed = sorted(choices)
    return f"'{name}' is not a {kind}.{hint(name, allowed)} Allowed: {', '.join(allowed) or 'none'}."
