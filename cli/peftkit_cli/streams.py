"""The standard streams as a command finds them: closed, on a full device, without a reader, or not UTF-8."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peftkit.errors import OutputLost, PeftkitError


class Written(io.RawIOBase):
    """Passes bytes on to a standard stream."""

    def __init__(self, stream: Any):
        # Without its text layer the lower one would be closed.
        self.stream, self.target = stream, getattr(stream.buffer, "raw", stream.buffer)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.target.fileno()

    def isatty(self) -> bool:
        return self.target.isatty()

    def write(self, data: Any) -> int | None:
        return self.target.write(data)


class Output(Written):
    """Standard output: the first write that fails raises OutputLost, and what follows is dropped."""

    lost: OutputLost | None = None

    def write(self, data: Any) -> int | None:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = OutputLost("standard output", error)
                raise self.lost from None
        return len(data)


class Messages(Written):
    """Standard error: what it does not take is dropped, since there is nowhere else to say so."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare() -> None:
    """Make the streams of this process fit to be used; to be done before any file is opened."""
    # Else a file of the run would get the number of a closed stream, and what libraries write there.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is not None:
        sys.stdin.reconfigure(errors="strict")  # pyright: ignore[reportAttributeAccessIssue]
    if sys.stdout is not None:
        sys.stdout = _over(Output(sys.stdout), sys.stdout)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.stderr = _over(Messages(sys.stderr), sys.stderr)


def _over(raw: Written, stream: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def check(arguments: Sequence[str]) -> None:
    """Raise PeftkitError where there is no standard output, and for an argument that is not UTF-8."""
    if sys.stdout is None:
        raise PeftkitError("standard output is closed, and the answer goes there: `> /dev/null` throws it away.")
    for position, argument in enumerate(arguments, 1):
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            raise PeftkitError(f"the argument number {position}, '{shown}', is not UTF-8 text.")


def flush() -> int:
    """Write what is left of the output; returns the exit code of an output that was lost, 0 for one that was not.

    Raises OutputLost where it is lost only now.
    """
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = raw.lost if isinstance(raw, Output) else None
    if lost is not None:
        return lost.exit_code
    if sys.stdout is not None:
        sys.stdout.flush()
    return 0


@contextmanager
def reading() -> Iterator[None]:
    """Turn what the system or the encoding says about standard input into a PeftkitError."""
    if sys.stdin is None:
        raise PeftkitError("standard input is closed, and the text is to be read from there.")
    try:
        yield
    except OSError as error:
        raise PeftkitError(f"standard input cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise PeftkitError(f"standard input is not {error.encoding.upper()} text (byte {error.start}).") from None
